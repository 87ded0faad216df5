"""Events that come once more: dead letters and replays."""

from __future__ import annotations

import asyncio
import datetime as dt
from decimal import Decimal
from typing import Any

import pytest

from ...errors import EventError
from ...event import now
from ...provider import Batch, addressee, only_header
from ...runtime import message_of
from ...wire import unpacked
from ..transport import Transport, consuming, history, hold, opened, publish
from .material import bare, bury, events, failure, letters, promising


class Again:
    """Of :class:`ProviderConformance`."""

    async def test_a_buried_event_is_a_dead_letter(self, transport: Transport) -> None:
        """With all that is known about it; another subscription of the event goes on; it does not come again."""
        event = events(1)[0].replace(payload={"n": Decimal("1.10")})
        async with opened(transport) as provider:
            before = now() - dt.timedelta(seconds=5)
            async with consuming(provider, hold) as stream:
                await publish(provider, event)
                (delivery,) = await stream.take(1)
                delivery.bury(failure(error="ValueError: ü"))
                delivery.ack()
            (letter,) = await letters(provider, 1)
            assert (letter.group, letter.subscription, letter.attempts) == ("group", "app.mail", 3)
            assert (letter.error, letter.traceback) == ("ValueError: ü", "Traceback …\nValueError: ü")
            assert (letter.event.id, letter.event.payload, letter.event.key) == (event.id, event.payload, event.key)
            assert before < letter.first_failed_at <= letter.last_failed_at < now() + dt.timedelta(seconds=5)
            async with consuming(provider) as stream:
                await publish(provider, *(late := events(1, 1, rows=1)))
                await stream.take(1)
                assert stream.ids == [str(late[0].id)]

    async def test_dead_letters_outlive_their_process(self, transport: Transport) -> None:
        """Where events are durable, so is what failed."""
        async with promising(transport, "durable") as provider:
            await bury(provider, *events(1))
        async with opened(transport) as provider:
            assert len(await letters(provider, 1)) == 1

    async def test_a_redriven_dead_letter_goes_to_its_subscription_alone(self, transport: Transport) -> None:
        """With attempts counted afresh, once; other groups get nothing; buried again, it is a dead letter again."""
        async with opened(transport) as provider, consuming(provider, hold, group="other") as other:
            await bury(provider, *events(1, rows=1))
            assert await provider.dead_letters.redrive() == 1
            async with consuming(provider, hold) as stream:
                (delivery,) = await stream.take(1)
                assert (delivery.only, delivery.attempts, delivery.event().payload) == ("app.mail", {}, 0)
                delivery.bury(failure(error="again"))
                delivery.ack()
            (letter,) = await letters(provider, 1)
            assert letter.error == "again"
            assert await provider.dead_letters.redrive([letter.id]) == 1
            async with consuming(provider) as stream:
                (delivery,) = await stream.take(1)
                assert delivery.only == "app.mail"
            await publish(provider, *events(1, 1, rows=1))
            async with consuming(provider) as stream:
                await stream.take(1)
                assert [event.payload for event in stream.events] == [1]
            assert await provider.dead_letters.list() == []
            await other.until(lambda: 1 in [event.payload for event in other.events])
            assert [one.event().payload for one in other.deliveries if one.only is None] == [0, 1]

    async def test_dead_letters_can_be_chosen_and_discarded(self, transport: Transport) -> None:
        """By id, group and pattern; pages follow each other; what is discarded is gone."""
        async with opened(transport) as provider:
            sent = [*events(3, rows=1), *events(3, 3, rows=1, type="public.things.delete")]
            await bury(provider, *sent)
            async with consuming(provider, lambda one: (one.bury(failure("app.log")), one.ack()), group="b") as stream:  # type: ignore[func-returns-value]
                await stream.take(6)
            await letters(provider, 12)
            desk = provider.dead_letters
            assert [one.event.payload for one in await desk.list(group="group")] == list(range(6))
            (others, *rest) = await desk.list(group="b", pattern="*.*.delete")
            assert (others.subscription, others.event.payload, len(rest)) == ("app.log", 3, 2)
            first = await desk.list(group="group", limit=4)
            assert [one.event.payload for one in await desk.list(group="group", after=first[-1].id)] == [4, 5]
            assert await desk.discard([first[0].id, first[2].id]) == 2
            assert await desk.discard([first[0].id]) == 0
            assert await desk.discard(group="b", pattern="*.*.update") == 3
            assert await desk.redrive(group="b") == 3
            assert [one.event.payload for one in await desk.list()] == [1, 3, 4, 5]
            assert await desk.discard() == 4
            assert await desk.list() == []

    async def test_history_gives_what_was_published(self, transport: Transport) -> None:
        """Also what every group is through with, oldest first, from a time on; then it ends and leaves no trace."""
        async with promising(transport, "history") as provider:
            async with consuming(provider) as stream:
                await publish(provider, *(old := events(30, rows=1)))
                await stream.take(30)
            await asyncio.sleep(0.05)
            middle = now()
            await asyncio.sleep(0.05)
            await publish(provider, *(new := events(30, 30, rows=1)))
            kept = [unpacked(one.body, one.headers) for one in await history(provider)]
            assert [bare(one) for one in kept] == [*old, *new]
            assert [unpacked(one.body, one.headers).id for one in await history(provider, since=middle)] == [
                one.id for one in new
            ]
            assert await history(provider, since=now() + dt.timedelta(hours=1)) == []
            with pytest.raises(EventError, match="no such position"):
                await history(provider, position="no such position")

    async def test_a_message_may_be_for_one_subscription(self, transport: Transport) -> None:
        """What replays are made of: only the group that is named gets it for that subscription, however odd the names."""
        first, second = events(2, rows=1)
        group, subscription = "a/b %ü", "app.<locals>.mäil/1"
        header = only_header(group, subscription)
        assert addressee(header) == (group, subscription)
        async with opened(transport) as provider:
            async with consuming(provider, group=group) as there, consuming(provider, group="group") as elsewhere:
                await publish(provider, first)
                await there.take(1)
                seq = there.events[0].seq
                marked = message_of(first.replace(seq=seq, metadata={"replay": "r-1"}))
                await provider.publish(Batch([_copy(marked, f"{first.id}:r-1", header)]))
                await there.take(2)
                await publish(provider, second)
                await there.until(lambda: str(second.id) in there.ids)
                await elsewhere.until(lambda: str(second.id) in elsewhere.ids)
                (replayed,) = [one for one in there.deliveries if one.only is not None]
                assert (replayed.only, replayed.event().id) == (subscription, first.id)
                assert replayed.event().metadata == {"replay": "r-1"}
                assert {one.only for one in elsewhere.deliveries} <= {None, ""}
                assert [one.event().payload for one in elsewhere.deliveries if one.only is None] == [0, 1]


def _copy(message: Any, message_id: str, headers: dict[str, str]) -> Any:
    from msgspec.structs import replace

    return replace(message, id=message_id, headers=headers)

"""The contract of a provider as tests: ours pass them, and a third party's class inherits them.

::

    class TestMine(ProviderConformance):
        @pytest.fixture
        def transport(self) -> Transport:
            return Transport(configured({"provider": "mine://…"}))

``Features`` choose: what a provider does not promise is skipped, with the name of the promise. Needs pytest and
pytest-asyncio. Nothing here is timed: a slow machine makes the suite slow and nothing else.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest

from ..errors import EventError, LeaseLost, ProviderUnavailable, PublishRejected
from ..event import Event, now
from ..provider import Batch, DeadLetter, Delivery, Failure, Provider, addressee, only_header
from ..runtime import message_of
from ..wire import WireSettings, packing, unpacked
from .transport import SECONDS, Stream, Transport, consuming, eventually, history, hold, lanes, opened, publish, victim

PAYLOADS: dict[str, Any] = {
    "nothing": None,
    "a row": {"key": {"id": 1}, "before": {}, "after": {"id": 1, "name": "Ann", "active": True, "score": None}},
    "every type": {
        "decimal": Decimal("1.10"),
        "float": [0.1, float("inf"), -1e300],
        "integer": 2**63 - 1,
        "uuid": uuid.UUID(int=7),
        "datetime": dt.datetime(2024, 2, 29, 23, 59, 59, 999999, dt.timezone(dt.timedelta(hours=5, minutes=30))),
        "date": dt.date(1, 1, 1),
        "time": dt.time(23, 59, 59, 1),
        "timedelta": dt.timedelta(days=-1, microseconds=1),
        "bytes": bytes(range(256)),
        "containers": [(1, 2), {3}, frozenset({4}), [], {}],
    },
    "unicode": {"text": "ü \U0001f600 \u2028 \x00 \x1f \\ \"quoted\" 'single' %s \ufeff", "ключ": "值"},
    "a megabyte": "0123456789" * 100_000,
}


def events(count: int, first: int = 0, rows: int = 5, type: str = "public.things.update", **fields: Any) -> list[Event]:  # noqa: A002 - the event's
    """Numbered events of so many rows."""
    return [
        Event(type=type, payload=number, key=f"row/{number % rows}", **fields) for number in range(first, first + count)
    ]


def failure(subscription: str = "app.mail", attempts: int = 3, error: str = "OSError: no route") -> Failure:
    return Failure(subscription, error, f"Traceback …\n{error}", attempts)


@asynccontextmanager
async def promising(transport: Transport, *promises: str) -> AsyncIterator[Provider]:
    """An opened provider, where it promises all of this; the test is skipped where it does not."""
    async with opened(transport) as provider:
        for promise in promises:
            if not getattr(provider.features, promise):
                pytest.skip(f"this provider does not promise {promise}")
        yield provider


def bare(event: Event) -> Event:
    """Without what a log adds."""
    return event.replace(seq=None)


@pytest.mark.asyncio
class ProviderConformance:
    """Inherit it, and override the fixture :meth:`transport`."""

    @pytest.fixture
    def transport(self) -> Transport:
        """A transport without any events or groups."""
        raise NotImplementedError(f"{type(self).__name__} must override the fixture 'transport'")

    # Arriving ----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("payload", PAYLOADS)
    async def test_an_event_arrives_unchanged(self, transport: Transport, payload: str) -> None:
        """Every field, every type of value, every character, a megabyte."""
        event = Event(
            type="public.order%2Elines.update",
            payload=PAYLOADS[payload],
            user_id=7,
            session_id='s"1',
            instance_id="host-ü",
            metadata={"request": "r-1", "at": dt.date(2024, 2, 29)},
            key="1,'ü'\n",
            schema_version=3,
        )
        async with opened(transport) as provider, consuming(provider) as stream:
            await publish(provider, event)
            (delivery,) = await stream.take(1)
            assert bare(delivery.event()) == event
            assert (delivery.type, delivery.only) == (event.type, None)
            assert not delivery.attempts
            assert not delivery.buried

    @pytest.mark.parametrize("form", ["gzip", "structured", "binary"])
    async def test_headers_arrive_with_the_body(self, transport: Transport, form: str) -> None:
        """Compressed and as CloudEvents: the headers say how to read the body."""
        wire = WireSettings(compression="gzip", compress_from=0) if form == "gzip" else WireSettings(cloudevents=form)
        pack, event = packing(wire), events(1)[0].replace(metadata={"ü": 1}, payload={"n": Decimal("1.0")})
        assert pack is not None
        async with opened(transport) as provider, consuming(provider) as stream:
            await provider.publish(Batch([pack(message_of(event))]))
            (delivery,) = await stream.take(1)
            assert bare(delivery.event()) == event

    async def test_the_events_of_a_row_arrive_in_order(self, transport: Transport) -> None:
        """Over many batches, each event once."""
        sent = events(600, rows=7)
        async with opened(transport) as provider, consuming(provider) as stream:
            for start in range(0, 600, 50):
                await publish(provider, *sent[start : start + 50])
            await stream.take(600)
            assert lanes(stream.events) == lanes(sent)
            assert len(stream.ids) == 600

    async def test_an_empty_batch_is_nothing(self, transport: Transport) -> None:
        """What comes after it arrives."""
        async with opened(transport) as provider, consuming(provider) as stream:
            await publish(provider)
            await publish(provider, *events(1))
            assert len(await stream.take(1)) == 1

    async def test_patterns_choose_what_a_group_gets(self, transport: Transport) -> None:
        """Everything that matches comes; where the provider filters, nothing else does."""
        sent = [
            Event(type=f"{schema}.{entity}.{operation}", key="1")
            for schema in ("public", "auth")
            for entity in ("users", "order_lines", "orders")
            for operation in ("create", "delete")
        ]
        last = Event(type="the.end", key="1")
        wanted = {
            **dict.fromkeys(["public.users.create", "public.users.delete", "auth.users.delete", "the.end"]),
            **dict.fromkeys(["auth.order_lines.delete", "auth.orders.delete", "public.order_lines.create"]),
            **dict.fromkeys(["public.order_lines.delete", "public.orders.delete"]),
        }
        patterns = ("public.users.*", "*.*.delete", "public.order_*.create", "the.end")
        async with opened(transport) as provider, consuming(provider, patterns=patterns) as stream:
            await publish(provider, *sent, last)
            await stream.until(lambda: stream.deliveries and stream.deliveries[-1].type == "the.end")
            got = [delivery.type for delivery in stream.deliveries]
            assert wanted.keys() <= set(got)
            if provider.features.provider_filter:
                assert sorted(got) == sorted(wanted)

    # Groups ------------------------------------------------------------------------------------------------------

    async def test_every_group_gets_every_event(self, transport: Transport) -> None:
        """What one group does with them is nothing to the other."""
        sent = events(50)
        async with opened(transport) as provider, consuming(provider, group="a") as a, consuming(provider, hold, group="b") as b:
            await publish(provider, *sent)
            await a.take(50)
            await b.take(50)
            assert lanes(a.events) == lanes(b.events) == lanes(sent)

    async def test_a_late_group_gets_old_events(self, transport: Transport) -> None:
        """Where events are durable, also those that others are through with."""
        sent = events(50)
        async with promising(transport, "durable") as provider:
            async with consuming(provider, group="early") as early:
                await publish(provider, *sent)
                await early.take(50)
            async with consuming(provider, group="late") as late:
                await late.take(50)
                assert lanes(late.events) == lanes(sent)

    async def test_consumers_of_a_group_share_its_events(self, transport: Transport) -> None:
        """Each event goes to one of them, and no two ever hold events of one row."""
        sent = events(200, rows=10)
        held: dict[str, str] = {}
        clashes: list[str] = []

        def settle_later(who: str) -> Any:
            def settle(delivery: Delivery) -> None:
                if held.setdefault(delivery.lane, who) != who:
                    clashes.append(delivery.lane)
                asyncio.get_running_loop().call_later(0.005, through, delivery)

            def through(delivery: Delivery) -> None:
                delivery.ack()
                if not any(other.lane == delivery.lane for other in in_hand(who) if other is not delivery):
                    held.pop(delivery.lane, None)
                done.add(id(delivery))

            return settle

        def in_hand(who: str) -> list[Delivery]:
            return [one for one in streams[who].deliveries if id(one) not in done]

        done: set[int] = set()
        streams: dict[str, Stream] = {}
        async with promising(transport, "shared_groups") as first, opened(transport) as second:
            async with (
                consuming(first, settle_later("one"), consumer="one", prefetch=20) as streams["one"],
                consuming(second, settle_later("two"), consumer="two", prefetch=20) as streams["two"],
            ):
                for start in range(0, 200, 20):
                    await publish(first, *sent[start : start + 20])
                await eventually(lambda: len(done) == 200)
                got = [*streams["one"].events, *streams["two"].events]
                assert sorted(event.payload for event in got) == list(range(200))
                assert clashes == []

    # Settling ----------------------------------------------------------------------------------------------------

    async def test_what_was_not_settled_comes_again(self, transport: Transport) -> None:
        """After the consumer closed; the same ids, in order; what was acknowledged, in whatever order, does not."""
        sent = events(60)
        async with opened(transport) as provider:
            async with consuming(provider, hold) as stream:
                await publish(provider, *sent)
                taken = await stream.take(60)
                for delivery in reversed(taken):
                    if delivery.event().payload % 3:
                        delivery.ack()
            async with consuming(provider) as stream:
                await publish(provider, *(late := events(1, 60)))
                left = [*(event for event in sent if event.payload % 3 == 0), *late]
                await stream.take(len(left))
                assert sorted(stream.ids) == sorted(str(event.id) for event in left)
                assert lanes(stream.events) == lanes(left)

    async def test_settled_deliveries_are_durable_when_the_provider_is_closed(self, transport: Transport) -> None:
        """Another process gets the rest and nothing else."""
        sent = events(20)
        async with promising(transport, "durable") as provider, consuming(provider, hold) as stream:
            await publish(provider, *sent)
            for delivery in (await stream.take(20))[:13]:
                delivery.ack()
        async with opened(transport) as provider, consuming(provider, consumer="two") as stream:
            await publish(provider, *(late := events(1, 20)))
            await stream.take(8)
            assert sorted(stream.ids) == sorted(str(event.id) for event in (*sent[13:], *late))

    async def test_no_more_than_the_prefetch_is_in_hand(self, transport: Transport) -> None:
        """The provider waits for acknowledgements; then it goes on."""
        async with opened(transport) as provider, consuming(provider, hold, prefetch=10) as stream:
            await publish(provider, *events(40, rows=40))
            settled = 0
            while settled < 40:
                await stream.take(settled + 1)
                await asyncio.sleep(0.02)
                assert len(stream.deliveries) - settled <= 10
                stream.deliveries[settled].ack()
                settled += 1
            assert len(set(stream.ids)) == 40

    async def test_a_consumer_that_was_killed_loses_nothing(self, transport: Transport) -> None:
        """kill -9: what it had not acknowledged goes to another one of its group, in order, with the same ids."""
        sent = events(60, rows=6)
        async with promising(transport, "durable", "cross_process") as provider:
            await publish(provider, *sent)
            with victim(transport, "group", count=40, acked=10) as other:
                had = await other.ids()
                assert len(had) == 40
                async with consuming(provider, consumer="heir") as stream:
                    other.kill()
                    must_come = {str(event.id) for event in sent} - set(had[:10])
                    await stream.until(lambda: must_come <= set(stream.ids))
                    payloads = lanes(stream.events).values()
                    assert all(numbers == sorted(numbers) for numbers in payloads)

    async def test_slow_work_and_retries_are_left_alone(self, transport: Transport) -> None:
        """What a living consumer works on, or waits to try again, for much longer than the redelivery timeout goes to nobody else."""
        async with promising(transport, "shared_groups") as first, opened(transport) as second:
            async with consuming(first, hold, consumer="slow") as slow:
                await publish(first, *events(2, rows=2))
                working, waiting = await slow.take(2)
                waiting.retry(failure(attempts=1), 3 * transport.redelivery)
                async with consuming(second, consumer="eager") as eager:
                    await asyncio.sleep(3 * transport.redelivery)
                    assert eager.deliveries == []
                    assert len(slow.deliveries) == 2
                    working.ack()
                    waiting.ack()

    async def test_attempts_survive_a_restart(self, transport: Transport) -> None:
        """How often each subscription has failed comes with the event, to another process too."""
        async with promising(transport, "retry_survives_restart") as provider, consuming(provider, hold) as stream:
            await publish(provider, *events(1))
            (delivery,) = await stream.take(1)
            delivery.retry(failure("app.mail", attempts=1), 0.01)
            delivery.retry(failure("app.mail", attempts=2), 60)
            delivery.retry(failure("app.log", attempts=1), 60)
        async with opened(transport) as provider, consuming(provider, hold, consumer="two") as stream:
            (delivery,) = await stream.take(1)
            assert delivery.attempts == {"app.mail": 2, "app.log": 1}
            delivery.ack()

    # Dead letters ------------------------------------------------------------------------------------------------

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
                await publish(provider, *(late := events(1, 1)))
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
            await bury(provider, *events(1))
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
            await publish(provider, *events(1, 1))
            async with consuming(provider) as stream:
                await stream.take(1)
                assert [event.payload for event in stream.events] == [1]
            assert await provider.dead_letters.list() == []
            await other.until(lambda: 1 in [event.payload for event in other.events])
            assert [one.event().payload for one in other.deliveries if one.only is None] == [0, 1]

    async def test_dead_letters_can_be_chosen_and_discarded(self, transport: Transport) -> None:
        """By id, group and pattern; pages follow each other; what is discarded is gone."""
        async with opened(transport) as provider:
            sent = [*events(3), *events(3, 3, type="public.others.update")]
            await bury(provider, *sent)
            async with consuming(provider, lambda one: (one.bury(failure("app.log")), one.ack()), group="b") as stream:  # type: ignore[func-returns-value]
                await stream.take(6)
            await letters(provider, 12)
            desk = provider.dead_letters
            assert [one.event.payload for one in await desk.list(group="group")] == list(range(6))
            (others, *rest) = await desk.list(group="b", pattern="public.others.*")
            assert (others.subscription, others.event.payload, len(rest)) == ("app.log", 3, 2)
            first = await desk.list(group="group", limit=4)
            assert [one.event.payload for one in await desk.list(group="group", after=first[-1].id)] == [4, 5]
            assert await desk.discard([first[0].id, first[2].id]) == 2
            assert await desk.discard([first[0].id]) == 0
            assert await desk.discard(group="b", pattern="*.things.*") == 3
            assert await desk.redrive(group="b") == 3
            assert [one.event.payload for one in await desk.list()] == [1, 3, 4, 5]
            assert await desk.discard() == 4
            assert await desk.list() == []

    # Replay ------------------------------------------------------------------------------------------------------

    async def test_history_gives_what_was_published(self, transport: Transport) -> None:
        """Also what every group is through with, oldest first, from a time on; then it ends and leaves no trace."""
        async with promising(transport, "history") as provider:
            async with consuming(provider) as stream:
                await publish(provider, *(old := events(30)))
                await stream.take(30)
            await asyncio.sleep(0.05)
            middle = now()
            await asyncio.sleep(0.05)
            await publish(provider, *(new := events(30, 30)))
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
        first, second = events(2)
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

    # Failures ----------------------------------------------------------------------------------------------------

    async def test_an_event_that_is_too_large_is_rejected(self, transport: Transport) -> None:
        """By its id; without it the rest of the batch goes through."""
        async with promising(transport, "max_message_bytes") as provider, consuming(provider) as stream:
            small, large = events(2)
            large = large.replace(payload="x" * (provider.features.max_message_bytes or 0))
            with pytest.raises(PublishRejected) as error:
                await provider.publish(Batch([message_of(small), message_of(large)]))
            assert error.value.event_id == str(large.id)
            await publish(provider, small)
            await stream.take(1)
            assert set(stream.ids) == {str(small.id)}

    async def test_publishing_again_adds_nothing(self, transport: Transport) -> None:
        """The same batch with the same position is there once; an older epoch is refused; the next batch goes on."""
        async with promising(transport, "idempotent_publish") as provider, consuming(provider) as stream:
            one, two = events(10), events(10, 10)
            batch = Batch([message_of(event) for event in one], "relay:x", 0, 2, '{"high":10,"gaps":[]}')
            for _ in range(3):
                await provider.publish(batch)
            later = Batch([message_of(event) for event in two], "relay:x", 0, 3, '{"high":20,"gaps":[]}')
            await provider.publish(later)
            with pytest.raises(LeaseLost):
                await provider.publish(Batch(batch.messages, "relay:x", 0, 2, '{"high":30,"gaps":[]}'))
            await publish(provider, *(last := events(1, 20)))
            await stream.until(lambda: str(last[0].id) in stream.ids)
            assert sorted(event.payload for event in stream.events) == list(range(21))

    async def test_a_server_that_crashes_and_comes_back_loses_nothing(self, transport: Transport) -> None:
        """Mid-stream: publishing says ProviderUnavailable meanwhile, consumers go on by themselves, in order."""
        if transport.stop is None or transport.start is None:
            pytest.skip("this transport has no server that can be stopped")
        sent = events(120, rows=4)
        async with promising(transport, "durable") as provider, consuming(provider, prefetch=10) as stream:
            await publish(provider, *sent[:60])
            await stream.take(20)
            transport.stop()
            with pytest.raises(ProviderUnavailable):
                async with asyncio.timeout(SECONDS):
                    await provider.publish(Batch([message_of(sent[60])]))
            transport.start()
            await publish(provider, *sent[60:])
            everything = {str(event.id) for event in sent}
            await stream.until(lambda: everything <= set(stream.ids))
            assert lanes(stream.events) == lanes(sent)

    async def test_a_server_that_does_not_answer_is_unavailable(self, transport: Transport) -> None:
        """At open, or at the first call where open does not connect; once it answers, all is well."""
        if transport.stop is None or transport.start is None:
            pytest.skip("this transport has no server that can be stopped")
        transport.stop()
        async with transport.make() as provider:
            with pytest.raises(ProviderUnavailable):
                async with asyncio.timeout(SECONDS):
                    await provider.open()
                    await provider.publish(Batch([message_of(events(1)[0])]))
            await provider.close()
        transport.start()
        async with opened(transport) as provider, consuming(provider) as stream:
            await publish(provider, *events(1, 1))
            await stream.take(1)

    async def test_a_cancelled_consumer_leaks_nothing(self, transport: Transport) -> None:
        """However often, whether it waits or has events in hand: no task is left, and the next one gets everything."""
        async with opened(transport) as provider:
            await publish(provider, *(sent := events(10)))
            async with consuming(provider, hold) as stream:
                await stream.take(10)
            before = asyncio.all_tasks()
            for number in range(5):
                async with consuming(provider, hold, consumer=f"c{number}") as stream:
                    if number % 2:
                        await stream.take(10)
            assert {task.get_name() for task in asyncio.all_tasks() - before} == set()
            async with consuming(provider) as stream:
                await stream.take(10)
                assert lanes(stream.events) == lanes(sent)

    async def test_closing_is_clean(self, transport: Transport) -> None:
        """Twice, and before opening: nothing is left running."""
        before = asyncio.all_tasks()
        async with transport.make() as provider:
            await provider.close()
            await provider.open()
            async with consuming(provider) as stream:
                await publish(provider, *events(1))
                await stream.take(1)
            await provider.close()
            await provider.close()
            await asyncio.sleep(0)
            assert {task.get_name() for task in asyncio.all_tasks() - before} == set()


def _copy(message: Any, message_id: str, headers: dict[str, str]) -> Any:
    from msgspec.structs import replace

    return replace(message, id=message_id, headers=headers)


async def bury(provider: Provider, *sent: Event) -> None:
    """Publish events and make dead letters of them."""
    async with consuming(provider, hold) as stream:
        await publish(provider, *sent)
        for delivery in await stream.take(len(sent)):
            delivery.bury(failure())
            delivery.ack()


async def letters(provider: Provider, count: int) -> list[DeadLetter]:
    """Every dead letter, once there are so many: they are written soon, not at once."""
    found: list[DeadLetter] = []

    async def enough() -> bool:
        found[:] = await provider.dead_letters.list()
        return len(found) >= count

    await eventually(enough)
    return found

"""Groups do not know each other; consumers of one group share its events, row by row."""

from __future__ import annotations

import asyncio
from typing import Any

from ...provider import Delivery
from ..transport import Stream, Transport, consuming, eventually, hold, lanes, opened, publish
from .material import events, promising


class Sharing:
    """Of :class:`ProviderConformance`."""

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

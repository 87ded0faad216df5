"""NATS: what a group's consumers are given, in which order, and what becomes of it when they or the server go away."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections import Counter
from typing import Any

import pytest

from sqla_events.errors import ConfigError, ProviderUnavailable
from sqla_events.event import Event
from sqla_events.filter import matches
from sqla_events.provider import Failure, Interest
from sqla_events.providers.nats import NatsProvider
from sqla_events.providers.nats.connection import Connection
from sqla_events.runtime import message_of
from sqla_events.testing.transport import (
    Stream,
    Transport,
    configured,
    consuming,
    eventually,
    hold,
    lanes,
    publish,
    victim,
)
from tests.providers.nats_support import STREAM, opened
from tests.servers.nats import NatsServer


def events(count: int, first: int = 0, rows: int = 5) -> list[Event]:
    return [Event(type="public.things.update", payload=number, key=str(number % rows)) for number in range(first, first + count)]


async def consumer(one: NatsProvider, name: str = "group") -> dict[str, Any]:
    return await one._jetstream.call(f"CONSUMER.INFO.{STREAM}.{name}")


# Filters in the server ----------------------------------------------------------------------------------------------


async def test_patterns_are_filters_of_the_consumer(nats: NatsServer) -> None:
    """What matches none of them never travels."""
    async with opened(nats) as one, consuming(one, patterns=("public.users.*", "auth.*.create", "public.users.create")) as stream:
        await publish(one, *(Event(type=f"public.other{n}.create", key="1") for n in range(50)))
        await publish(one, last := Event(type="public.users.create", key="1"))
        await stream.take(1)
        assert stream.ids == [str(last.id)]
        config = (await consumer(one))["config"]
        if one._connection.server_version >= (2, 10):
            assert config["filter_subjects"] == ["events.auth.*.create", "events.public.users.*"] or config["filter_subjects"] == [
                "events.public.users.*", "events.auth.*.create",
            ]  # fmt: skip
            received = one._connection._client.stats["in_msgs"]  # type: ignore[union-attr]
            assert received < 50
        else:
            assert "filter_subject" not in config


async def test_a_group_whose_patterns_change(nats: NatsServer) -> None:
    """New versions of the application subscribe to more, to less, to all: what came while it was away and matches as before
    is there; what matches only now comes from now on."""
    kinds = ("a.b.create", "c.d.update", "e.f.g")
    async with opened(nats) as one:
        for patterns in (("a.b.*",), ("a.b.*", "c.*.*"), ("a.b.*", "e.*.*"), ("*",), ("a.b.create",)):
            await publish(one, *(Event(type=kind) for kind in kinds * 20))
            async with consuming(one, patterns=patterns) as stream:
                await stream.until(lambda stream=stream: count(stream, "a.b.create") == 20)
                await publish(one, *(Event(type=kind) for kind in kinds))
                now = [kind for kind in kinds if any(matches(pattern, kind) for pattern in patterns)]
                await stream.until(lambda stream=stream, now=now: set(now) <= {one.type for one in stream.deliveries})
                await stream.until(lambda stream=stream: count(stream, "a.b.create") == 21)


def count(stream: Stream, kind: str) -> int:
    return [one.type for one in stream.deliveries].count(kind)


async def test_any_name_of_a_group(nats: NatsServer) -> None:
    """Names of consumers may hold less than names of groups."""
    async with opened(nats) as one:
        for name in ("a.b/c *>", "ü" * 200, "a=b", "x"):
            async with consuming(one, group=name) as stream:
                await publish(one, *events(3))
                await stream.take(3)


async def test_where_a_consumer_begins_can_be_chosen(nats: NatsServer) -> None:
    """Whoever operates makes it before the group is consumed; the provider sets the rest and leaves that."""
    async with opened(nats) as one:
        await publish(one, *(sent := events(30)))
        config = {"durable_name": "group", "deliver_policy": "by_start_sequence", "opt_start_seq": 21, "ack_policy": "explicit"}
        await one._jetstream.call(f"CONSUMER.DURABLE.CREATE.{STREAM}.group", {"stream_name": STREAM, "config": config})
        async with consuming(one, patterns=("public.things.*",)) as stream:
            await stream.take(10)
            assert stream.ids == [str(event.id) for event in sent[20:]]
            found = (await consumer(one))["config"]
            assert (found["opt_start_seq"], found["ack_wait"]) == (21, 1_000_000_000)
            if one._connection.server_version >= (2, 10):
                assert found["filter_subject"] == "events.public.things.*"


# Order --------------------------------------------------------------------------------------------------------------


async def test_what_was_delivered_elsewhere_comes_before_what_follows_it(nats: NatsServer) -> None:
    """Somebody else pulled from the consumer and died: nothing behind it is handed out first."""
    sent = events(60, rows=3)
    async with opened(nats, ack_wait=30) as one, opened(nats, ack_wait=30) as thief, consuming(one, prefetch=10) as stream:
        await publish(one, *sent[:10])
        await stream.take(10)
        client = await thief._connection.ready()
        stolen = await client.subscribe("stolen")
        await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.group", b'{"batch":7,"expires":30000000000}', reply="stolen")
        await client.flush()
        await publish(one, *sent[10:40])
        await stolen.next_msg()
        await publish(one, *sent[40:])
        await stream.take(60)
        assert lanes(stream.events) == lanes(sent)
        assert len(set(stream.ids)) == 60


async def test_an_acknowledgement_that_is_lost_runs_nothing_twice(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server delivers again, out of order, what this process is through with."""
    sent = events(20, rows=2)
    async with opened(nats, ack_wait=1) as one, consuming(one) as stream:
        write, lost = one._connection.write, 0

        async def lossy(outs: Any) -> None:
            nonlocal lost
            kept = [out for out in outs if out.body != b"+ACK" or lost >= 10]
            lost += len(outs) - len(kept)
            await write(kept)

        monkeypatch.setattr(one._connection, "write", lossy)
        await publish(one, *sent[:10])
        await stream.take(10)
        await publish(one, *sent[10:])
        await stream.take(20)

        async def all_settled() -> bool:
            return (await consumer(one))["num_ack_pending"] == 0

        await eventually(all_settled)
        assert lost >= 10
        assert lanes(stream.events) == lanes(sent)
        assert len(stream.deliveries) == 20


async def test_a_server_that_crashes_again_and_again(nats: NatsServer) -> None:
    """Published and consumed meanwhile: all of it, in order, and none twice to a process that lives."""
    sent = events(400, rows=7)
    async with opened(nats) as one, consuming(one, prefetch=20) as stream:

        async def produce() -> None:
            for start in range(0, 400, 10):
                await publish(one, *sent[start : start + 10])
                await asyncio.sleep(0.02)

        producer = asyncio.create_task(produce())
        for count in (40, 120, 250):
            await stream.take(count)
            nats.restart()
        await producer
        wanted = {str(event.id) for event in sent}
        await stream.until(lambda: wanted <= set(stream.ids))
        assert lanes(stream.events) == lanes(sent)


async def test_consumers_that_are_killed_one_after_the_other(nats: NatsServer) -> None:
    """Each took some and acknowledged a few: the last one gets the rest of every row in order, from the first that is missing."""
    sent = events(90, rows=6)
    transport = Transport(configured({"provider": "nats", "lease": 1.0, "nats": {"url": nats.url, "ack_wait": 20}}))
    acked: list[str] = []
    async with opened(nats, ack_wait=20) as one:
        await publish(one, *sent)
        for _ in range(3):
            with victim(transport, "group", count=25, acked=8) as other:
                acked += (await other.ids())[:8]
                await asyncio.sleep(0.2)  # that the acknowledgements are on their way
                other.kill()
        async with consuming(one, consumer="heir") as stream:
            must = {str(event.id) for event in sent} - set(acked)
            await stream.until(lambda: must <= set(stream.ids))
            left = [event for event in sent if str(event.id) in set(stream.ids)]
            assert lanes(stream.events) == lanes(left)
            assert not set(stream.ids) & set(acked)


# Several consumers --------------------------------------------------------------------------------------------------


async def test_the_second_consumer_waits_for_the_first(nats: NatsServer) -> None:
    """One partition, one process at work, the next one when it ends: at once, with what it had in hand."""
    sent = events(30)
    async with opened(nats, lease=30) as a, opened(nats, lease=30) as b, consuming(b, hold, consumer="b") as second:
        await publish(a, *sent[:10])
        await second.take(10)
        async with consuming(a, consumer="a") as first:
            await publish(a, *sent[10:])
            await second.take(30)
            assert first.deliveries == []
            await second.close()
            await first.take(30)
            assert lanes(first.events) == lanes(sent)


async def owners(one: NatsProvider) -> dict[str, int]:
    """How many leases each consumer has."""
    leases = await one._bucket.many(await one._bucket.keys("lease.>"))
    return dict(Counter(lease["owner"].rpartition("-")[0] for lease in leases.values()))


async def test_partitions_are_shared_by_processes(nats: NatsServer) -> None:
    """Who comes later gets its share as soon as what is in hand is settled; one takes over all when the other ends. Each
    row's events are in order all the time, and each comes once."""
    sent = events(600, rows=40)
    async with opened(nats, partitions=4) as a, opened(nats, partitions=4) as b, consuming(a, consumer="a") as first:
        await publish(a, *sent[:100])
        await first.take(100)
        assert await owners(a) == {"a": 4}
        async with consuming(b, consumer="b") as second:
            await eventually(lambda: shares(a, {"a": 2, "b": 2}))
            await publish(a, *sent[100:300])
            await eventually(lambda: len(first.deliveries) + len(second.deliveries) == 300)
            assert not {one.key for one in first.events[100:]} & {one.key for one in second.events}
            assert second.events
            await first.close()
            await publish(a, *sent[300:])
            await eventually(lambda: len(first.deliveries) + len(second.deliveries) == 600)
            assert await owners(a) == {"b": 4}
            together = sorted([*first.events, *second.events], key=lambda event: event.payload)
            assert [event.payload for event in together] == list(range(600))
            for stream in (first, second):
                assert all(numbers == sorted(numbers) for numbers in lanes(stream.events).values())


async def shares(one: NatsProvider, wanted: dict[str, int]) -> bool:
    return await owners(one) == wanted


async def test_a_partition_with_work_in_hand_stays(nats: NatsServer) -> None:
    """It is claimed, nothing new is handed out for a lease, then the claim is refused and it goes on."""
    async with opened(nats, partitions=2) as a, opened(nats, partitions=2) as b, consuming(a, hold, consumer="a") as first:
        await publish(a, *events(40, rows=40))
        await first.take(40)
        async with consuming(b, consumer="b") as second:

            async def refused() -> bool:
                leases = await a._bucket.many(await a._bucket.keys("lease.>"))
                claims.append(any(lease["claimant"] for lease in leases.values()))
                return True in claims and not claims[-1]

            claims: list[bool] = []
            await eventually(refused)
            await publish(a, *events(40, 40, rows=40))
            await first.take(80)
            assert second.deliveries == []
            for delivery in first.deliveries:
                delivery.ack()


async def test_another_number_of_partitions_is_an_error(nats: NatsServer) -> None:
    """A row would be in two hands."""
    async with opened(nats) as one:
        async with consuming(one) as stream:
            await publish(one, *events(1))
            await stream.take(1)
        async with opened(nats, partitions=3) as other:
            with pytest.raises(ConfigError, match="has 1 partitions on NATS and the setting 'partitions' is 3"):
                async for _ in other.consume(Interest("group", ("*",), "x", 10)):
                    raise AssertionError


# Failures -----------------------------------------------------------------------------------------------------------


async def test_an_event_that_kills_its_consumers_becomes_a_dead_letter(nats: NatsServer) -> None:
    """After so many deliveries; then the others go on, and when it is redriven every subscription gets it."""
    sent = events(3, rows=1)
    transport = Transport(configured({"provider": "nats", "lease": 1.0, "nats": {"url": nats.url, "max_deliver": 2}}))
    async with opened(nats, max_deliver=2) as one:
        await publish(one, *sent)
        for _ in range(2):
            with victim(transport, "group", count=1, acked=0) as other:
                await other.ids()
                other.kill()
        async with consuming(one) as stream:
            await stream.take(2)
            assert [event.payload for event in stream.events] == [1, 2]
            (letter,) = await one.dead_letters.list()
            assert letter.event.payload == 0
            assert "delivered 3 times" in letter.error
            assert await one.dead_letters.redrive([letter.id]) == 1
            await stream.take(3)
            assert (stream.deliveries[2].only, stream.events[2].payload) == (None, 0)


async def test_a_long_error_is_cut(nats: NatsServer) -> None:
    """The server takes 64 KB of headers; the event itself may be as large as any."""
    event = Event(type="a.b.c", payload="x" * 900_000)
    async with opened(nats) as one:
        async with consuming(one, hold) as stream:
            await publish(one, event)
            (delivery,) = await stream.take(1)
            delivery.bury(Failure("s", "ü" * 100_000, "line\n" * 100_000 + "the end", 1))
            delivery.ack()
        (letter,) = await one.dead_letters.list()
        assert letter.event.payload == event.payload
        assert letter.error.startswith("üüü")
        assert letter.traceback.endswith("line\nthe end")


async def test_failures_that_are_settled_are_forgotten(nats: NatsServer) -> None:
    """Attempts are kept as long as they matter."""
    async with opened(nats) as one, consuming(one, hold) as stream:
        await publish(one, *events(2))
        for delivery in await stream.take(2):
            delivery.retry(Failure("s", "no", "", 1), 60)

        async def kept(count: int) -> bool:
            return len(await one._bucket.keys("retry.>")) == count

        await eventually(lambda: kept(2))
        for delivery in stream.deliveries:
            delivery.ack()
        await eventually(lambda: kept(0))


async def test_a_consumer_that_was_deleted_is_made_again(nats: NatsServer) -> None:
    """By somebody's hand: it begins anew, at the beginning of the stream."""
    async with opened(nats) as one, consuming(one) as stream:
        await publish(one, *(sent := events(5)))
        await stream.take(5)
        await one._jetstream.call(f"CONSUMER.DELETE.{STREAM}.group")
        await publish(one, last := Event(type="a.b.c"))
        await stream.until(lambda: str(last.id) in stream.ids)
        assert {str(event.id) for event in sent} <= set(stream.ids)


async def test_foreign_messages_do_no_harm(nats: NatsServer) -> None:
    """Somebody publishes under our prefix what is no event."""
    async with opened(nats) as one, consuming(one, hold) as stream:
        client = await one._connection.ready()
        await client.publish("events.a.b.c", b"\xff no event", headers={"X-Odd": "1"})
        await publish(one, *events(1))
        odd, good = await stream.take(2)
        assert good.event().payload == 0
        assert odd.lane
        odd.bury(Failure("s", "cannot be read", "", 1))
        odd.ack()

        async def buried() -> bool:
            return len(await one.dead_letters.list()) == 1

        await eventually(buried)
        (letter,) = await one.dead_letters.list()
        assert (letter.event.type, letter.error) == ("a.b.c", "cannot be read")


async def test_history_begins_where_it_is_asked_to(nats: NatsServer) -> None:
    """At a number of the stream, or a time; many pages; gaps where messages were deleted."""
    async with opened(nats) as one:
        sent = events(1200)
        for start in range(0, 1200, 300):
            await publish(one, *sent[start : start + 300])
        await one._jetstream.delete(STREAM, 1000)
        kept = [message async for page in one.history(position="900") for message in page]
        assert [message.id for message in kept] == [str(event.id) for event in (*sent[899:999], *sent[1000:])]
        assert kept[0].lane == message_of(sent[899]).lane
        assert [page async for page in one.history(position="5000")] == []
        assert [page async for page in one.history(since=dt.datetime(2100, 1, 1, tzinfo=dt.UTC))] == []
        assert (await one._jetstream.info(STREAM))["state"]["consumer_count"] == 0


async def test_public_methods_of_nats_py_do_as_well(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the private ones are gone."""
    monkeypatch.setattr(Connection, "private", False)
    async with opened(nats) as one, consuming(one) as stream:
        await publish(one, *(sent := events(50)))
        await stream.take(50)
        assert lanes(stream.events) == lanes(sent)


async def test_without_jetstream_it_is_unavailable_and_says_why() -> None:
    """A server that does not have it enabled."""

    class Plain(NatsServer):
        @property
        def command(self) -> list[Any]:
            return [self._binary, "--addr", "127.0.0.1", "--port", str(self.port)]

    server = Plain()
    server.start()
    try:
        with pytest.raises(ProviderUnavailable, match="JetStream is not enabled"):
            async with opened(server):
                raise AssertionError
    finally:
        server.remove()

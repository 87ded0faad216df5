"""Consuming from Redis: leases, sleepers, even shares, other people's entries, attempts."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from redis.asyncio import Redis

from sqla_events.errors import EventError, ProviderUnavailable
from sqla_events.event import Event
from sqla_events.provider import Delivery, Failure
from sqla_events.providers.redis import consuming as redis_consuming
from sqla_events.providers.redis.consuming import Share
from sqla_events.providers.redis.link import Link, Script
from sqla_events.runtime import message_of
from sqla_events.testing.transport import consuming, hold, lanes, opened, publish
from tests.providers.redis_support import events, transport, until
from tests.servers.redis import RedisServer


@pytest.fixture
async def client(redis: RedisServer) -> AsyncIterator[Redis]:
    """redis-py, as somebody else would use it."""
    client = Redis(port=redis.port, protocol=2)
    yield client
    await client.aclose()


async def test_a_consumer_that_slept_takes_nothing_away(
    redis: RedisServer, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than its lease: another one has the events; what it still says about them counts for nothing."""
    keep, asleep = Share.keep, asyncio.Event()

    async def keep_and_sleep(share: Share) -> None:
        if "sleeper" in share._part.owner:
            await asleep.wait()
        await keep(share)

    monkeypatch.setattr(Share, "keep", keep_and_sleep)
    monkeypatch.setattr(Share, "_news", lambda share: asyncio.sleep(0.05) if "sleeper" not in share._part.owner else asleep.wait())
    async with opened(transport(redis)) as one, opened(transport(redis)) as two:
        await publish(one, *events(4))
        async with AsyncExitStack() as stack:
            sleeper = await stack.enter_async_context(consuming(one, hold, consumer="sleeper"))
            await sleeper.take(4)  # has the lease, before the other one is there
            heir = await stack.enter_async_context(consuming(two, hold, consumer="heir"))
            await heir.take(4)
            await publish(one, *events(4, 4))
            await heir.take(8)
            sleeper.deliveries[0].ack()
            sleeper.deliveries[1].bury(Failure("app.mail", "late", "", 1))
            asleep.set()
            await asyncio.sleep(0.3)
            assert len(sleeper.deliveries) == 4
            assert lanes(heir.events) == lanes(events_of(heir.events))
            assert (await client.xpending("sqla-events", "group"))["pending"] == 8
            assert await one.dead_letters.list() == []
            for delivery in heir.deliveries:
                delivery.ack()
        assert (await client.xpending("sqla-events", "group"))["pending"] == 0


def events_of(found: list[Event]) -> list[Event]:
    return sorted(found, key=lambda event: event.payload)


async def test_entries_whose_answer_was_lost(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server counts them as delivered; they come all the same, before what is new, and once."""
    run, reads = Link.run, 0

    async def run_and_lose(link: Link, script: Script, keys: Any, arguments: Any) -> Any:
        nonlocal reads
        answer = await run(link, script, keys, arguments)
        if script is redis_consuming.TAKE and answer[0]:
            reads += 1
            if reads % 3:
                raise ProviderUnavailable("the answer was lost")
        return answer

    async with opened(transport(redis)) as provider, consuming(provider, prefetch=7) as stream:
        monkeypatch.setattr(Link, "run", run_and_lose)
        for start in range(0, 30, 10):
            await publish(provider, *events(10, start))
            await stream.take(start + 5)
        await stream.take(30)
        assert [event.payload for event in stream.events] == list(range(30))
    assert reads > 9


async def test_a_lease_that_a_server_gives_out_again(redis: RedisServer, client: Redis) -> None:
    """It went back to before our lease, and another consumer has the same epoch: the owner tells them apart."""
    async with opened(transport(redis, lease=30)) as provider, consuming(provider, hold) as stream:
        await publish(provider, *events(2))
        await stream.take(2)
        leases = "{sqla-events}:leases:group"
        owner = await client.hget(leases, "0:owner")
        await client.hset(leases, "0:owner", "another")
        stream.deliveries[0].ack()
        await until(lambda: "sqla-events-redis-group-0" not in {task.get_name() for task in asyncio.all_tasks()})
        assert (await client.xpending("sqla-events", "group"))["pending"] == 2
        assert owner != await client.hget(leases, "0:owner")


async def test_partitions_are_spread_evenly(redis: RedisServer, client: Redis) -> None:
    """Who joins gets a share, who leaves gives it to the others; nothing is lost or swapped meanwhile."""
    setup = transport(redis, partitions=4)
    sent: list[Event] = []

    async def shares() -> list[int]:
        fields = await client.hgetall("{sqla-events}:leases:group")
        owners = Counter(owner for name, owner in fields.items() if name.endswith(b":owner") and owner)
        return sorted(owners.values())

    async def spread_like(expected: list[int]) -> None:
        async with asyncio.timeout(60):
            while await shares() != expected:
                batch = events(10, len(sent))
                sent.extend(batch)
                await publish(provider, *batch)
                await asyncio.sleep(0.05)

    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(opened(setup))
        streams = [await stack.enter_async_context(consuming(provider, consumer="a"))]
        await spread_like([4])
        async with consuming(provider, consumer="b") as second:
            streams.append(second)
            await spread_like([2, 2])
            streams.append(await stack.enter_async_context(consuming(provider, consumer="c")))
            await spread_like([1, 1, 2])
        await spread_like([2, 2])
        await until(lambda: sum(len(stream.deliveries) for stream in streams) == len(sent))
        got = [event for stream in streams for event in stream.events]
        assert sorted(event.payload for event in got) == list(range(len(sent)))
        for stream in streams:
            assert all(numbers == sorted(numbers) for numbers in lanes(stream.events).values())


async def test_a_standby_takes_nothing(redis: RedisServer, client: Redis) -> None:
    """With fewer partitions than consumers, nobody gives up what it has, whoever joins."""
    async with opened(transport(redis, lease=2.0)) as provider, consuming(provider, consumer="m") as first:
        await publish(provider, *events(1))
        await first.take(1)
        async with consuming(provider, consumer="a"), consuming(provider, consumer="z"):
            async with asyncio.timeout(60):
                while await client.zcard("{sqla-events}:consumers:group") < 3:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(3)
            await publish(provider, *events(1, 1))
            await first.take(2)
            assert await client.hget("{sqla-events}:leases:group", "0:epoch") == b"1"


async def test_a_partition_is_kept_while_something_of_it_is_in_hand(redis: RedisServer) -> None:
    """A consumer that should give it up waits for its handlers, and reads on if they take long."""
    async with opened(transport(redis, partitions=2, lease=2.0)) as provider, consuming(provider, hold) as first:
        await publish(provider, *events(20, rows=20))
        await first.take(20)
        async with consuming(provider, hold, consumer="two") as second:
            await asyncio.sleep(2.8)
            await publish(provider, *events(20, 20, rows=20))
            await first.take(40)
            assert second.deliveries == []


async def test_a_group_that_was_destroyed(redis: RedisServer, client: Redis) -> None:
    """Is made again, and begins with the oldest entry."""
    async with opened(transport(redis)) as provider, consuming(provider) as stream:
        await publish(provider, *events(3))
        await stream.take(3)
        await client.xgroup_destroy("sqla-events", "group")
        await publish(provider, *events(3, 3))
        await stream.until(lambda: {event.payload for event in stream.events} == set(range(6)))


async def test_how_a_stream_is_split_stays(redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever is configured otherwise goes with it, and says so."""
    async with opened(transport(redis, partitions=3)) as one, opened(transport(redis, partitions=2)) as two:
        assert "is split into 3 partitions and keeps them" in caplog.text
        async with consuming(one) as stream:
            await publish(two, *(sent := events(30, rows=10)))
            await stream.take(30)
            assert lanes(stream.events) == lanes(sent)


async def test_entries_of_other_programs(redis: RedisServer, client: Redis) -> None:
    """With the fields of an event in any order, or without; what is no event can be buried and looked at."""
    event = Event(type="a.b.create", key="1", payload=1)
    async with opened(transport(redis)) as provider, consuming(provider, hold) as stream:
        message = message_of(event)
        await client.xadd("sqla-events", {"body": message.body, "more": "x", "type": message.type})
        await client.xadd("sqla-events", {"temperature": "21"})
        await client.xadd("sqla-events", {"type": "a.b.create", "lane": b"\xff", "body": "{", "headers": '"sqla-only" no JSON'})
        good, bare, broken = await stream.take(3)
        assert (good.event().id, good.lane) == (event.id, "")
        assert (bare.type, broken.type) == ("", "a.b.create")
        for delivery in (bare, broken):
            with pytest.raises(EventError):
                delivery.event()
            delivery.bury(Failure("app.mail", "EventError: no event", "", 1))
            delivery.ack()
        async with asyncio.timeout(60):
            while len(letters := await provider.dead_letters.list()) < 2:
                await asyncio.sleep(0.01)
        assert [letter.event.type for letter in letters] == ["unreadable", "a.b.create"]
        assert len([one async for page in provider.history() for one in page]) == 1


async def test_what_was_removed_while_it_was_in_hand(
    redis: RedisServer, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """By somebody else, or by trim_unread: the next consumer goes on with what is there, and the loss is told."""
    async with opened(transport(redis)) as provider:
        await publish(provider, *events(4))
        async with consuming(provider, hold) as stream:
            await stream.take(4)
            first, second, *_ = [entry for entry, _ in await client.xrange("sqla-events")]
            await client.xdel("sqla-events", first, second)
        with caplog.at_level(logging.ERROR):
            async with consuming(provider) as stream:
                await stream.take(2)
                assert [event.payload for event in stream.events] == [2, 3]
        assert "lost 2 entries" in caplog.text
        await until_pending(client, 0)


async def until_pending(client: Redis, count: int) -> None:
    async with asyncio.timeout(60):
        while (await client.xpending("sqla-events", "group"))["pending"] != count:
            await asyncio.sleep(0.01)


async def test_ids_that_are_none(redis: RedisServer) -> None:
    """Of dead letters; the message shows what they look like."""
    async with opened(transport(redis)) as provider:
        for call in (provider.dead_letters.redrive, provider.dead_letters.discard):
            with pytest.raises(EventError, match="they look like"):
                await call(["seventeen"])
        with pytest.raises(EventError, match="they look like"):
            await provider.dead_letters.list(after="seventeen")


async def test_what_is_kept_about_attempts(redis: RedisServer, client: Redis) -> None:
    """Subscriptions that gave up are not asked again by the next consumer; when all is settled, nothing is kept."""
    async with opened(transport(redis)) as provider:
        await publish(provider, *events(1))
        before = time.time()
        async with consuming(provider, hold) as stream:
            (delivery,) = await stream.take(1)
            delivery.retry(Failure("app.mail", "E: 1", "", 1), 30)
            delivery.bury(Failure("app.log", "E: 2", "", 4))
        (text,) = (await client.hgetall("{sqla-events}:retries:group:0")).values()
        kept = json.loads(text)
        assert kept["app.mail"]["error"] == "E: 1"
        assert before + 30 <= kept["app.mail"]["next_attempt_at"] <= time.time() + 30
        async with consuming(provider, hold) as stream:
            (delivery,) = await stream.take(1)
            assert (delivery.attempts, delivery.buried) == ({"app.mail": 1}, {"app.log"})
            delivery.ack()
        assert await client.exists("{sqla-events}:retries:group:0") == 0
        (letter,) = await provider.dead_letters.list()
        assert (letter.subscription, letter.attempts, letter.event.retry_count) == ("app.log", 4, 3)


async def test_outcomes_are_written_once(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the answer of the server is lost, they are sent again: a dead letter does not become two."""
    run, calls = Link.run, 0

    async def run_and_lose(link: Link, script: Script, keys: Any, arguments: Any) -> Any:
        nonlocal calls
        answer = await run(link, script, keys, arguments)
        if script is redis_consuming.SETTLE and arguments[6]:
            calls += 1
            if calls < 3:
                raise ProviderUnavailable("the answer was lost")
        return answer

    monkeypatch.setattr(Link, "run", run_and_lose)

    def bury(delivery: Delivery) -> None:
        delivery.bury(Failure("app.mail", "E", "", 1))
        delivery.ack()

    async with opened(transport(redis)) as provider, consuming(provider, bury) as stream:
        await publish(provider, *events(1))
        await stream.take(1)
        await until(lambda: calls >= 3)
        assert len(await provider.dead_letters.list()) == 1

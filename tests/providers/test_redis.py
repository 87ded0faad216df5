"""What is Redis' own: leases, zombies, trimming, other people's entries, errors, repeated calls."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from sqla_events.config import Config
from sqla_events.errors import ConfigError, EventError, LeaseLost, ProviderUnavailable
from sqla_events.event import Event
from sqla_events.provider import Batch, Delivery, Failure, Message
from sqla_events.providers.redis import trimming
from sqla_events.providers.redis.consuming import Share
from sqla_events.providers.redis.keys import Keys
from sqla_events.providers.redis.link import Link, Script
from sqla_events.runtime import message_of
from sqla_events.testing import Transport, configured
from sqla_events.testing.transport import consuming, hold, lanes, opened, publish
from tests.servers.redis import RedisServer


@pytest.fixture
async def client(redis: RedisServer) -> AsyncIterator[Redis]:
    """redis-py, as somebody else would use it."""
    client = Redis(port=redis.port, protocol=2)
    yield client
    await client.aclose()


def transport(redis: RedisServer, /, **settings: Any) -> Transport:
    return Transport(configured({"provider": redis.url, "lease": 1.0, **settings}))


def events(count: int, first: int = 0, rows: int = 5) -> list[Event]:
    return [Event(type="a.b.create", key=str(n % rows), payload=n) for n in range(first, first + count)]


def relayed(sent: list[Event], high: int, epoch: int = 1, **more: Any) -> Batch:
    """A relay's batch whose last event has that number."""
    first = high - len(sent) + 1
    messages = [message_of(event) for event in sent]
    numbered = [
        Message(one.id, one.type, one.lane, one.body, first + at, one.headers) for at, one in enumerate(messages)
    ]
    return Batch(numbered, "relay:x", 0, epoch, f'{{"high":{high},"gaps":[]}}', **more)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def payloads(client: Redis, stream: str = "sqla-events") -> list[Any]:
    return [json.loads(fields[b"body"])["payload"] for _, fields in await client.xrange(stream)]


# Publishing ---------------------------------------------------------------------------------------------------------


async def test_an_answer_that_was_lost(redis: RedisServer, client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has stored the batch, the relay does not know and publishes it again: it is there once."""
    run, lost = Link.run, [True, False, True]

    async def run_and_lose(link: Link, script: Script, keys: Any, arguments: Any) -> Any:
        answer = await run(link, script, keys, arguments)
        if lost and lost.pop():
            raise ProviderUnavailable("the answer was lost")
        return answer

    async with opened(transport(redis)) as provider:
        await provider.publish(relayed(events(3), 3))
        monkeypatch.setattr(Link, "run", run_and_lose)
        for batch in (relayed(events(3, 3), 6), relayed(events(3, 6), 9)):
            for _ in range(3):
                try:
                    await provider.publish(batch)
                except ProviderUnavailable:
                    continue
                break
        assert not lost
    assert await payloads(client) == list(range(9))


async def test_a_new_epoch_publishes_what_is_missing(redis: RedisServer, client: Redis) -> None:
    """Whatever its batches look like; also in a third epoch that begins as far back as the second; the old one is over."""
    sent = events(20)
    async with opened(transport(redis)) as old, opened(transport(redis)) as new, opened(transport(redis)) as newer:
        await old.publish(relayed(sent[:10], 10, epoch=1))
        await new.publish(relayed(sent[:4], 4, epoch=2))
        await new.publish(relayed(sent[4:12], 12, epoch=2))
        with pytest.raises(LeaseLost):
            await old.publish(relayed(sent[10:20], 20, epoch=1))
        await newer.publish(relayed(sent[:2], 2, epoch=3))
        await newer.publish(relayed(sent[2:20], 20, epoch=3))
    assert await payloads(client) == list(range(20))


async def test_a_relay_of_another_split_is_over(redis: RedisServer) -> None:
    """When the number of a group's relays has changed, those of the old number are refused, whatever they ask."""
    async with opened(transport(redis)) as old, opened(transport(redis)) as new:
        await old.publish(relayed(events(3), 3, epoch=4))
        await new.publish(relayed(events(3, 3), 6, epoch=5, partitions=2))
        with pytest.raises(LeaseLost):
            await old.publish(relayed(events(3, 6), 9, epoch=4))
        with pytest.raises(LeaseLost):
            await old.publish(relayed(events(3, 6), 9, epoch=4))


async def test_what_the_server_forgot_is_noticed(redis: RedisServer, client: Redis) -> None:
    """Between two batches, and while asking; nothing is stored behind a hole."""
    async with opened(transport(redis)) as provider:
        await provider.publish(relayed(events(3), 3))
        await client.flushall()
        with pytest.raises(LeaseLost):
            await provider.publish(relayed(events(3, 3), 6))
        await provider.publish(relayed(events(3), 3, epoch=2))
        await client.flushall()
        with pytest.raises(LeaseLost):
            await provider.resume(relayed([], 3, epoch=2))
        assert await client.xlen("sqla-events") == 0
        assert (await provider.resume(relayed([], 3, epoch=3))).position == ""


async def test_a_full_server_is_unavailable(redis: RedisServer, client: Redis) -> None:
    """Until it has room; half a batch is never there."""
    async with opened(transport(redis)) as provider:
        await provider.publish(relayed(events(3), 3))
        await client.config_set("maxmemory", "1")
        try:
            with pytest.raises(ProviderUnavailable, match="maxmemory"):
                await provider.publish(relayed(events(50, 3), 53))
        finally:
            await client.config_set("maxmemory", "0")
        await provider.publish(relayed(events(50, 3), 53))
    assert await payloads(client) == list(range(53))


async def test_scripts_that_were_forgotten(redis: RedisServer, client: Redis) -> None:
    """A server loses them when it restarts or is told to; they are sent again."""
    async with opened(transport(redis)) as provider, consuming(provider) as stream:
        for number in range(3):
            await publish(provider, *events(1, number))
            await stream.take(number + 1)
            await client.script_flush()


async def test_a_key_that_is_something_else(redis: RedisServer, client: Redis) -> None:
    """Says so, and names the setting."""
    await client.set("sqla-events", "mine")
    async with opened(transport(redis)) as provider:
        with pytest.raises(ConfigError, match=r"redis\.stream_name"):
            await publish(provider, *events(1))
        with pytest.raises(ConfigError, match=r"redis\.stream_name"):
            await anext(provider.consume(interest()))


def interest() -> Any:
    from sqla_events.provider import Interest

    return Interest("group", ("*",), "one", 10)


@pytest.mark.parametrize("name", ["", "a{b", "a}b", "{}", "{a}{b}", "a{}b"])
def test_names_that_no_stream_can_have(name: str) -> None:
    """A hash tag that is none would spread our keys over a cluster."""
    with pytest.raises(ConfigError, match=r"redis\.stream_name"):
        Keys(name)


def test_keys_share_a_hash_tag() -> None:
    """Whether the name has one or not."""
    assert Keys("shop").stream(2) == "{shop}:2"
    assert Keys("shop:{events}").stream(2) == "shop:{events}:2"


# Leases -------------------------------------------------------------------------------------------------------------


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
        async with consuming(one, hold, consumer="sleeper") as sleeper, consuming(two, hold, consumer="heir") as heir:
            await sleeper.take(4)
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


async def test_partitions_are_spread_evenly(redis: RedisServer, client: Redis) -> None:
    """Who joins gets a share, who leaves gives it to the others; nothing is lost or swapped meanwhile."""
    from contextlib import AsyncExitStack

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
    async with opened(transport(redis, lease=0.5)) as provider, consuming(provider, consumer="m") as first:
        await publish(provider, *events(1))
        await first.take(1)
        async with consuming(provider, consumer="a"), consuming(provider, consumer="z"):
            async with asyncio.timeout(60):
                while await client.zcard("{sqla-events}:consumers:group") < 3:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(1)
            await publish(provider, *events(1, 1))
            await first.take(2)
            assert await client.hget("{sqla-events}:leases:group", "0:epoch") == b"1"


async def test_a_partition_is_kept_while_something_of_it_is_in_hand(redis: RedisServer) -> None:
    """A consumer that should give it up waits for its handlers, and reads on if they take long."""
    async with opened(transport(redis, partitions=2, lease=0.5)) as provider, consuming(provider, hold) as first:
        await publish(provider, *events(20, rows=20))
        await first.take(20)
        async with consuming(provider, hold, consumer="two") as second:
            await asyncio.sleep(0.7)
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


# Entries ------------------------------------------------------------------------------------------------------------


async def test_entries_of_other_programs(redis: RedisServer, client: Redis) -> None:
    """With the fields of an event in any order, or without; what is no event can be buried and looked at."""
    event = Event(type="a.b.create", key="1", payload=1)
    async with opened(transport(redis)) as provider, consuming(provider, hold) as stream:
        message = message_of(event)
        await client.xadd("sqla-events", {"body": message.body, "more": "x", "type": message.type})
        await client.xadd("sqla-events", {"temperature": "21"})
        await client.xadd("sqla-events", {"type": "a.b.create", "lane": "", "body": "{", "headers": "none"})
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


# Trimming -----------------------------------------------------------------------------------------------------------


async def trim(redis: RedisServer, /, **settings: Any) -> int:
    config = Config.load(redis.url, redis=settings).redis
    link = Link(config)
    try:
        return await trimming.trim(link, Keys(config.stream_name), config)
    finally:
        await link.close()


async def test_length_never_removes_what_a_group_needs(redis: RedisServer, client: Redis) -> None:
    """Neither what is not read nor what is in hand; unless that is asked for."""
    async with opened(transport(redis)) as provider:
        await publish(provider, *events(3000))
        async with consuming(provider, hold, group="slow", prefetch=100) as slow, consuming(provider, group="quick") as quick:
            await slow.take(100)
            await quick.take(3000)
            assert await trim(redis, max_len=10) == 0
            for delivery in slow.deliveries[:60]:
                delivery.ack()
            await slow.until(lambda: len(slow.deliveries) >= 160)
            async with asyncio.timeout(60):
                while not await trim(redis, max_len=10):
                    await asyncio.sleep(0.01)
            assert (await payloads(client))[0] == 60
            assert await trim(redis, max_len=10, trim_unread=True) == 2930
            assert await payloads(client) == list(range(2990, 3000))
    assert await trim(redis, max_len=10) == 0


async def test_age(redis: RedisServer, client: Redis) -> None:
    """What is old and acknowledged goes; what is old and is not stays."""
    async with opened(transport(redis)) as provider, consuming(provider, hold, prefetch=10) as stream:
        await publish(provider, *events(20))
        taken = await stream.take(10)
        await asyncio.sleep(0.05)
        await publish(provider, *events(5, 20))
        assert await trim(redis, max_age=3600) == 0
        for delivery in taken[:5]:
            delivery.ack()
        async with asyncio.timeout(60):
            while await trim(redis, max_age=0.03) == 0:
                await asyncio.sleep(0.01)
        assert (await payloads(client))[0] == 5


async def test_trimming_happens_by_itself(
    redis: RedisServer, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the settings ask for it, over every partition, as long as the provider is open."""
    monkeypatch.setattr(trimming, "TRIM_SECONDS", 0.05)
    async with opened(transport(redis, partitions=2, redis={"max_len": 20})) as provider, consuming(provider) as stream:
        await publish(provider, *events(200, rows=50))
        await stream.take(200)
        async with asyncio.timeout(60):
            while await client.xlen("sqla-events") > 10 or await client.xlen("{sqla-events}:1") > 10:
                await asyncio.sleep(0.01)
    assert await client.xlen("sqla-events") == 10


# Retries ------------------------------------------------------------------------------------------------------------


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
    from sqla_events.providers.redis import consuming as module

    run, calls = Link.run, 0

    async def run_and_lose(link: Link, script: Script, keys: Any, arguments: Any) -> Any:
        nonlocal calls
        answer = await run(link, script, keys, arguments)
        if script is module.SETTLE and arguments[6]:
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

"""Publishing to Redis: lost answers, epochs, a server that is full, that forgets, that holds something else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from sqla_events.errors import ConfigError, LeaseLost, ProviderUnavailable
from sqla_events.provider import Batch, Interest, Message
from sqla_events.providers.redis import publishing
from sqla_events.providers.redis.keys import Keys
from sqla_events.providers.redis.link import Link, Script
from sqla_events.providers.redis.publishing import PART
from sqla_events.testing.transport import consuming, opened, publish
from tests.providers.redis_support import events, payloads, relayed, transport
from tests.servers.redis import RedisServer


@pytest.fixture
async def client(redis: RedisServer) -> AsyncIterator[Redis]:
    """redis-py, as somebody else would use it."""
    client = Redis(port=redis.port, protocol=2)
    yield client
    await client.aclose()


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


@pytest.mark.parametrize("relay", [True, False])
@pytest.mark.parametrize("partitions", [1, 3])
async def test_many_bodies_of_any_bytes(redis: RedisServer, client: Redis, partitions: int, relay: bool) -> None:
    """More than a script gets in one argument; no text, empty, large; some with headers: stored as they are, each lane in order."""
    sent = [
        Message(f"id-{n}", "a.b.ü", f"läne\0{n % 7}", bytes([n % 256, 0xFF, 0]) * (0, 1, 100, 25_000)[n % 4], n + 1)
        for n in range(PART * 2 + 31)
    ]
    sent[5::11] = [msgspec.structs.replace(one, headers={"content-encoding": "ü"}) for one in sent[5::11]]
    batch = Batch(sent, "relay:x", 0, 1, '{"high":231,"gaps":[]}') if relay else Batch(sent)
    async with opened(transport(redis, partitions=partitions)) as provider:
        await provider.publish(batch)
    keys, found = Keys("sqla-events", partitions), 0
    for number, stream in enumerate(keys.streams):
        stored = [fields for _, fields in await client.xrange(stream)]
        assert stored == [_fields(one) for one in sent if keys.partition_of(one.lane) == number]
        found += bool(stored)
    assert found == partitions


def _fields(message: Message) -> dict[bytes, bytes]:
    fields = {b"type": message.type.encode(), b"lane": message.lane.encode(), b"body": message.body}
    return fields | ({b"headers": msgspec.json.encode(message.headers)} if message.headers else {})


async def test_large_bodies_travel_in_smaller_parts(
    redis: RedisServer, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server refuses an argument of more than 512 MB; one of the size that is left to a body is one alone."""
    monkeypatch.setattr(publishing, "PART_BYTES", 1000)
    sizes, run = [], Link.run

    async def measured(link: Link, script: Script, keys: Any, arguments: Any) -> Any:
        sizes.append([len(part) for part in arguments])
        return await run(link, script, keys, arguments)

    monkeypatch.setattr(Link, "run", measured)
    sent = [Message(f"id-{n}", "a.b.c", "", b"x" * (400 if n else 1000)) for n in range(5)]
    async with opened(transport(redis)) as provider:
        await provider.publish(Batch(sent[1:]))
        await provider.publish(Batch(sent[:2]))
    assert [len(parts) for parts in sizes] == [2, 2]
    assert max(sizes[0]) < 1000
    assert await client.xlen("sqla-events") == 6


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


@pytest.mark.parametrize("stored", [False, True])
async def test_a_new_epoch_whose_first_batch_fails(
    redis: RedisServer, client: Redis, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    """Before the server has it, or after: what the old epoch had published is still known when it is tried again."""
    run, failing = Link.run, [True]

    async def run_and_fail(link: Link, script: Script, keys: Any, arguments: Any) -> Any:
        fails = script is publishing.RELAYED and failing and failing.pop()
        answer = await run(link, script, keys, arguments) if stored or not fails else None
        if fails:
            raise ProviderUnavailable("down")
        return answer

    sent = events(20)
    async with opened(transport(redis)) as old, opened(transport(redis)) as new:
        await old.publish(relayed(sent[:10], 10, epoch=1))
        monkeypatch.setattr(Link, "run", run_and_fail)
        with pytest.raises(ProviderUnavailable):
            await new.publish(relayed(sent[:20], 20, epoch=2))
        await new.publish(relayed(sent[:20], 20, epoch=2))
    assert await payloads(client) == list(range(20))


async def test_the_newest_event_is_remembered(redis: RedisServer) -> None:
    """Not the last one: a straggler has a lower number, and would not show that the log was set back since."""
    async with opened(transport(redis)) as provider:
        first, *rest = events(10)
        await provider.publish(relayed(rest, 10))
        await provider.publish(relayed([first], 1))
        kept = await provider.resume(relayed([], 10))
        assert (kept.seq, kept.id) == (10, str(rest[-1].id))


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
            await anext(provider.consume(Interest("group", ("*",), "one", 10)))


@pytest.mark.parametrize("name", ["", "a{b", "a}b", "{}", "{a}{b}", "a{}b"])
def test_names_that_no_stream_can_have(name: str) -> None:
    """A hash tag that is none would spread our keys over a cluster."""
    with pytest.raises(ConfigError, match=r"redis\.stream_name"):
        Keys(name)


def test_keys_share_a_hash_tag() -> None:
    """Whether the name has one or not."""
    assert Keys("shop").stream(2) == "{shop}:2"
    assert Keys("shop:{events}").stream(2) == "shop:{events}:2"

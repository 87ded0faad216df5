"""What goes from a stream, and what never does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from sqla_events.config import Config
from sqla_events.providers.redis import trimming
from sqla_events.providers.redis.keys import Keys
from sqla_events.providers.redis.link import Link
from sqla_events.testing.transport import consuming, hold, opened, publish
from tests.providers.redis_support import events, payloads, transport
from tests.servers.redis import RedisServer


@pytest.fixture
async def client(redis: RedisServer) -> AsyncIterator[Redis]:
    """redis-py, as somebody else would use it."""
    client = Redis(port=redis.port, protocol=2)
    yield client
    await client.aclose()


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

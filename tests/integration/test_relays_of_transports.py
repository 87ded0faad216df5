"""Relays of several partitions to a transport that keeps positions: spread, cut anew under load, crashed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence

import pytest
import redis.asyncio
from sqlalchemy import create_engine

from sqla_events.bridge import Database, Doorbell
from sqla_events.config import Config
from sqla_events.log import groups
from sqla_events.provider import ProviderContext
from sqla_events.providers import load
from sqla_events.signals import Signals
from tests.log.readers import until
from tests.log.test_spread import BATCH, TABLES, Load, Process, cut_into, spread_as
from tests.servers.redis import RedisServer


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    """The log."""
    engine = create_engine(postgres_url)
    database = Database(engine)
    yield database
    await database.close()
    engine.dispose()


async def stored(server: RedisServer) -> list[tuple[str, int]]:
    """Key and number of every event in the stream, in its order."""
    client = redis.asyncio.Redis.from_url(server.url)
    entries = await client.xrange("sqla-events")
    await client.aclose()
    bodies = [json.loads(fields[b"body"]) for _, fields in entries]
    return [(body["key"], body["payload"]) for body in bodies]


def in_order(events: Sequence[tuple[str, int]]) -> bool:
    """Whether each key's numbers rise, so that none is there twice either."""
    newest: dict[str, int] = {}
    for key, number in events:
        if number <= newest.get(key, -1):
            return False
        newest[key] = number
    return True


async def test_a_relay_to_redis_is_cut_anew(database: Database, redis: RedisServer) -> None:
    """1, 3, 2 and 3 partitions, old and new overlapping, one process killed: each event is in the stream, in order.

    Twice is only what the killed process was publishing: the next cut begins at the positions that the log has.
    """
    config = Config.load({"provider": "redis", "redis": {"url": redis.url}})
    providers = [load(config, ProviderContext(database, TABLES, str(n), Signals(), Doorbell())) for n in range(9)]
    for provider in providers:
        await provider.open()
    free = iter(providers)
    async with Load(database) as load_:
        old = [Process(database, next(free), "first", partitions=1)]
        await until(spread_as(database, 1))
        for step, partitions in enumerate((3, 2, 3)):
            new = [Process(database, next(free), f"{step}-{n}", partitions=partitions, lease=3.0) for n in range(2)]
            await more(redis)
            for number, process in enumerate(old):
                await (process.crash() if step == 1 and number == 0 else process.stop())
            await until(lambda partitions=partitions: cut_into(database, partitions))
            await until(spread_as(database, *((2, 1) if partitions == 3 else (1, 1))))
            await more(redis)
            old = new
    await until(lambda: through(redis, load_.count))
    for process in old:
        await process.stop()
    for provider in providers:
        await provider.close()
    events = await stored(redis)
    once = list(dict.fromkeys(events))
    assert sorted(number for _, number in once) == list(range(load_.count))
    assert in_order(once)
    assert len(events) - len(once) <= 2 * BATCH  # it had two of the three partitions at most
    assert {part.position.gaps for part in await database.run(groups, TABLES)} == {()}


async def more(server: RedisServer) -> None:
    count = len(set(await stored(server)))
    await until(lambda: through(server, count + 20))


async def through(server: RedisServer, count: int) -> bool:
    await asyncio.sleep(0.05)
    return len(set(await stored(server))) >= count

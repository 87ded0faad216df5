"""A Redis that forgets: crashes that cost it its last writes, a disk that was emptied. The log publishes them again."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from redis import Redis

from sqla_events import Broker, Config, Event, log, relay
from sqla_events.schema import Tables
from tests.servers.redis import RedisServer

TABLES = Tables()


@pytest.fixture
def engine(sqlite_url: str) -> Any:
    engine = sa.create_engine(sqlite_url)
    yield engine
    engine.dispose()


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "LOOK_SECONDS", 0.1)


def add(engine: sa.Engine, *numbers: int) -> None:
    with engine.begin() as connection:
        log.append(connection, TABLES, [Event(type="a.b.create", key="1", payload=number) for number in numbers])


def numbers(redis: RedisServer) -> list[int]:
    """What is in the stream, in its order."""
    with Redis(port=redis.port, protocol=2) as client:
        return [json.loads(fields[b"body"])["payload"] for _, fields in client.xrange("sqla-events")]


@asynccontextmanager
async def relaying(engine: sa.Engine, redis: RedisServer, **settings: Any) -> AsyncIterator[Broker]:
    config = Config.load({"provider": redis.url, "lease": 1.0, "poll_interval": 0.02, "batch_size": 7, **settings})
    async with Broker(config, engine) as broker:
        yield broker


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


async def is_committed(broker: Broker) -> None:
    """Until the log has counted everything as published."""
    async with asyncio.timeout(60):
        while not (parts := await broker.stats()) or any(part.lag for part in parts):
            await asyncio.sleep(0.02)


async def test_a_crash_that_costs_redis_its_last_writes(
    engine: sa.Engine, redis: RedisServer, tmp_path: Any
) -> None:
    """What is gone from the append-only file is published again, though the log had counted it as done; nothing twice."""
    async with relaying(engine, redis) as broker:
        add(engine, *range(20))
        await until(lambda: len(numbers(redis)) == 20)
        shutil.copytree(redis.folder, tmp_path / "before")  # a prefix of an append-only file is what a crash leaves of it
        add(engine, *range(20, 50))
        await until(lambda: len(numbers(redis)) == 50)
        await is_committed(broker)
        redis.kill()
        shutil.rmtree(redis.folder)
        shutil.copytree(tmp_path / "before", redis.folder)
        redis.start()
        assert len(numbers(redis)) <= 20 or numbers(redis) == list(range(50))
        await until(lambda: len(numbers(redis)) == 50)
        add(engine, 50)
        await until(lambda: len(numbers(redis)) == 51)
    assert numbers(redis) == list(range(51))


async def test_a_redis_that_was_emptied(engine: sa.Engine, redis: RedisServer) -> None:
    """While nothing happens: the log publishes everything again that it has, and consumers get it."""
    seen: list[Any] = []

    async def handle(event: Event) -> None:
        seen.append(event.payload)

    add(engine, *range(30))
    broker = Broker(Config.load({"provider": redis.url, "lease": 1.0, "poll_interval": 0.02}), engine)
    broker.subscribe("*", handler=handle)
    async with broker:
        await until(lambda: seen == list(range(30)))
        await is_committed(broker)
        redis.flush()
        await until(lambda: len(seen) == 60)
    assert seen == [*range(30), *range(30)]
    assert numbers(redis) == list(range(30))


async def test_an_empty_redis_may_be_told_where_to_begin(engine: sa.Engine, redis: RedisServer) -> None:
    """As docs/redis.md says: a new server that is not meant to have the past gets the position it is to begin with."""
    async with relaying(engine, redis) as broker:
        add(engine, *range(10))
        await is_committed(broker)
    redis.flush()
    hash_of = "{sqla-events}:relay:relay:redis:0/1"
    redis.call("HSET", hash_of, "epoch", "0", "number", "0", "position", '{"high":10,"gaps":[]}')
    async with relaying(engine, redis):
        add(engine, 10)
        await until(lambda: numbers(redis) == [10])


async def test_events_of_other_partitions_are_not_missed(
    engine: sa.Engine, redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A relay that has published nothing lately has lost nothing; one whose events are gone has."""
    for start in (0, 10):
        async with relaying(engine, redis, partitions=2) as broker:
            add(engine, *range(start, start + 10))
            await until(lambda start=start: len(numbers(redis)) == start + 10)
            await is_committed(broker)
    assert "lost events" not in caplog.text
    redis.flush()
    async with relaying(engine, redis, partitions=2):
        await until(lambda: numbers(redis) == list(range(20)))
    assert caplog.text.count("lost events") == 1


async def test_another_number_of_relays_publishes_nothing_twice(engine: sa.Engine, redis: RedisServer) -> None:
    """The position that Redis keeps for the old relays is not missed by the new ones; the number may change back."""
    sent = 0
    for partitions in (1, 3, 1):
        async with relaying(engine, redis, partitions=partitions) as broker:
            add(engine, *range(sent, sent + 10))
            sent += 10
            await until(lambda: len(numbers(redis)) >= sent)  # noqa: B023 - it is awaited here
            await is_committed(broker)
    assert numbers(redis) == list(range(30))

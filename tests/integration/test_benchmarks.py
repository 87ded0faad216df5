"""The benchmarks do the work that they time: each drain gets every event of the backlog to its end."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import Any

import pytest
import redis as redis_client
from nats import connect
from sqlalchemy import create_engine, text

from benchmarks import drains
from benchmarks.measured import Cost, Meter, cpu_of
from benchmarks.report import Figure, table
from tests.servers.nats import NatsServer
from tests.servers.redis import RedisServer

COUNT = 3000


@pytest.fixture
def backlog(postgres_url: str) -> str:
    """A database whose log has events that nobody has read."""
    engine = create_engine(postgres_url)
    drains.fill(engine, COUNT)
    engine.dispose()
    return postgres_url


def done(url: str) -> list[int]:
    """How far each group's position is, where it has no gaps."""
    engine = create_engine(url)
    with engine.connect() as connection:
        found = list(connection.scalars(text("SELECT high FROM event_positions WHERE gaps = '[]'")))
    engine.dispose()
    return found


def sound(cost: Cost) -> bool:
    return cost.count == COUNT and 0 < cost.cpu < cost.seconds * (os.cpu_count() or 1) * 1.5 and cost.rss > 10


def test_reading_commits_a_position_behind_the_last_event(backlog: str) -> None:
    assert sound(drains.read_commit(backlog, os.getpid(), COUNT))
    assert done(backlog) == [COUNT]


@pytest.mark.parametrize("coroutine", [False, True])
def test_every_event_is_with_the_handler(backlog: str, coroutine: bool) -> None:
    assert sound(drains.to_handler(backlog, os.getpid(), COUNT, coroutine))
    assert done(backlog) == [COUNT]


def test_every_event_is_in_redis(backlog: str, redis: RedisServer) -> None:
    assert sound(drains.to_provider(backlog, os.getpid(), COUNT, {"provider": "redis", "redis": {"url": redis.url}}))
    client = redis_client.Redis.from_url(redis.url)
    streams = [key for key in client.scan_iter() if client.type(key) == b"stream"]
    assert sum(client.xlen(key) for key in streams) == COUNT
    client.close()


def test_every_event_is_in_nats(backlog: str, nats: NatsServer) -> None:
    assert sound(drains.to_provider(backlog, os.getpid(), COUNT, {"provider": "nats", "nats": {"url": nats.url}}))

    async def stored() -> int:
        client = await connect(nats.url)
        info: Any = await client.jetstream().stream_info("SQLA_EVENTS")
        await client.close()
        return int(info.state.messages)

    assert asyncio.run(stored()) == COUNT


def test_the_ceilings_do_the_same_amount_of_work(backlog: str, redis: RedisServer, nats: NatsServer) -> None:
    assert sound(drains.bare_read(backlog, os.getpid(), COUNT))
    assert drains.bare_redis(redis.url, os.getpid(), 2 * drains.BATCH).count == 2 * drains.BATCH
    assert drains.bare_nats(("127.0.0.1", nats.port), os.getpid(), 2 * drains.BATCH).count == 2 * drains.BATCH


def test_cpu_of_children_counts_while_they_live_and_after() -> None:
    """As PostgreSQL has a process for each connection."""
    meter = Meter(os.getpid())
    before = cpu_of(os.getpid())
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    assert cpu_of(os.getpid()) - before >= 0.25
    cost = meter.stop(1)
    assert cost.server_cpu >= 0.25
    assert cost.cpu < 0.25


def test_a_figure_stands_beside_its_baseline() -> None:
    shown = table([Figure("a", 1234.5, "events/s"), Figure("b", 10, "events/s", "a", 0.5)])
    assert "1,234.50" in shown
    assert shown.splitlines()[-1].split() == ["b", "10.00", "events/s", "a", "0.50"]

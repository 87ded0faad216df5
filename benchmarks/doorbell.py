"""What waking others costs the business: commits a second of 32 connections, with and without our wake-up and with NOTIFY.

The load is as bare as it gets, so that it is not the bottleneck: two processes, asyncpg, one round trip for a whole
transaction (a row, its event, COMMIT). The ways take turns in short slices, so that noise hits them alike.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator
from multiprocessing import get_context
from typing import Any

import sqlalchemy as sa

from benchmarks.report import Figure
from sqla_events.broker import Broker
from sqla_events.config import Config

CONNECTIONS, PROCESSES = 32, 2
ROUNDS = 3
WAYS = ("none", "bell", "doorbell", "notify")

TRANSACTION = """BEGIN;
INSERT INTO doorbell_items (name) VALUES ('%s');
INSERT INTO events (id, source, type, key, payload, schema_version, created_at)
VALUES (gen_random_uuid(), 'database', 'public.items.create', '1', '{"key":{"id":1},"after":{"name":"%s"}}', 1, now());
%sCOMMIT"""


def figures(url: str, seconds: float) -> Iterator[Figure]:
    """Commits a second by way, over those without any wake-up."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE doorbell_items (id bigserial PRIMARY KEY, name text)")
    rates = asyncio.run(_rounds(url, seconds / ROUNDS))
    engine.dispose()
    none = statistics.median(rates["none"])
    for way in WAYS:
        value = statistics.median(rates[way])
        yield Figure(f"commits_{way}", value, "commits/s", "commits_none", value / none)


async def _rounds(url: str, seconds: float) -> dict[str, list[float]]:
    """Every way in turn; somebody listens all the while."""
    import asyncpg

    listener = await asyncpg.connect(_dsn(url))
    await listener.add_listener("sqla_events", lambda *_: None)
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way in WAYS:
            rates[way].append(await asyncio.to_thread(_round, url, way, seconds))
    await listener.close()
    return rates


def _round(url: str, way: str, seconds: float) -> float:
    context = get_context("spawn")
    results: Any = context.Queue()
    start = context.Barrier(PROCESSES)
    children = [context.Process(target=_commit, args=(url, way, seconds, start, results)) for _ in range(PROCESSES)]
    for child in children:
        child.start()
    total = sum(results.get() for _ in children)
    for child in children:
        child.join()
    return total / seconds


def _commit(url: str, way: str, seconds: float, start: Any, results: Any) -> None:
    results.put(asyncio.run(_commits(url, way, seconds, start)))


async def _commits(url: str, way: str, seconds: float, start: Any) -> int:
    """One process's share of the connections commits for so long; returns how often."""
    import asyncpg

    notify = "SELECT pg_notify('sqla_events', '');\n" if way == "notify" else ""
    statement = TRANSACTION % ("x" * 60, "y" * 300, notify)
    links = [await asyncpg.connect(_dsn(url)) for _ in range(CONNECTIONS // PROCESSES)]
    broker = _broker(url, way)
    await asyncio.to_thread(start.wait)
    end, done = time.perf_counter() + seconds, 0

    async def work(link: Any) -> None:
        nonlocal done
        while time.perf_counter() < end:
            await link.execute(statement)
            done += 1
            if broker is not None:
                broker._doorbell.ring()

    await asyncio.gather(*map(work, links))
    if broker is not None:
        await asyncio.to_thread(broker.stop)
    for link in links:
        await link.close()
    return done


def _broker(url: str, way: str) -> Broker | None:
    """What an application with hooks has running: ``bell`` wakes its own process, ``doorbell`` others as well."""
    if way not in ("bell", "doorbell"):
        return None
    provider = "memory" if way == "bell" else "database"
    broker = Broker(Config(provider=provider), sa.create_engine(url))
    broker.start()
    return broker


def _dsn(url: str) -> str:
    return url.replace("+psycopg", "")

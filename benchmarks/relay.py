"""How fast committed events leave the log, and how soon: one process, PostgreSQL on the same machine.

    python benchmarks/relay.py [--json FILE] [--events N] [--seconds N]

``read_commit`` reads and commits positions alone; ``postgres_to_handler`` ends in a no-op handler, a function or a
coroutine function. The ceiling beside them is a bare driver that reads the same rows by keyset in batches of the same
size, in the same run. Latency is from before COMMIT to the handler, at 100 commits a second.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sqlalchemy as sa
from sqlalchemy.orm import Session

from benchmarks.model import Base, Item, item
from benchmarks.report import Figure, publish
from benchmarks.servers import postgres
from sqla_events import Config, Event, install_crud_hooks, log
from sqla_events.alembic import upgrade
from sqla_events.bridge import Database, Doorbell
from sqla_events.broker import Broker
from sqla_events.log.reader import leased
from sqla_events.log.settings import ReaderSettings
from sqla_events.schema import Tables
from sqla_events.signals import Signals

BATCH = 2000
TABLES = Tables()


def fill(engine: sa.Engine, count: int) -> None:
    """A backlog of events of about 400 bytes, each of another row."""
    body = {"key": {"id": 0}, "after": {"name": "x" * 120, "email": "y" * 80, "note": "z" * 60}}
    with engine.begin() as connection:
        for start in range(0, count, 5000):
            rows = range(start, min(start + 5000, count))
            log.append(
                connection, TABLES, [Event(type="public.items.create", payload=body, key=str(row)) for row in rows]
            )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE events")


def ceiling(engine: sa.Engine, count: int) -> float:
    """Rows a second that a bare cursor reads by keyset."""
    raw = engine.raw_connection()
    cursor = raw.cursor()
    started, last, seen = time.perf_counter(), 0, 0
    while seen < count:
        cursor.execute(f"SELECT seq, payload::text FROM events WHERE seq > {last} ORDER BY seq LIMIT {BATCH}")
        rows = cursor.fetchall()
        last, seen = rows[-1][0], seen + len(rows)
    seconds = time.perf_counter() - started
    raw.rollback()
    raw.close()
    return count / seconds


async def read_commit(engine: sa.Engine, count: int) -> float:
    """Events a second that a reader hands out, settles and commits."""
    database = Database(engine)
    settings = ReaderSettings("read", "bench", batch_size=BATCH, prefetch=2 * BATCH)
    started, seen = time.perf_counter(), 0
    async with leased(database, TABLES, settings, Signals(), Doorbell()) as reader:
        async for batch in reader.batches():
            reader.settle([delivery.row.seq for delivery in batch])
            seen += len(batch)
            if seen >= count:
                break
    seconds = time.perf_counter() - started
    await database.close()
    return count / seconds


def to_handler(engine: sa.Engine, count: int, *, coroutine: bool) -> tuple[float, float]:
    """Events a second to a no-op handler, and events a CPU second of this process."""
    seen, done = 0, threading.Event()

    def plain(event: Event) -> None:
        nonlocal seen
        seen += 1
        if seen >= count:
            done.set()

    async def awaited(event: Event) -> None:
        plain(event)

    broker = Broker(Config(batch_size=BATCH, buffer_size=2 * BATCH, consumer_group=f"handler-{coroutine}"), engine)
    broker.subscribe("*", handler=awaited if coroutine else plain)
    started, cpu = time.perf_counter(), time.process_time()
    broker.start()
    done.wait()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    broker.stop()
    return count / seconds, count / cpu


def latency(engine: sa.Engine, seconds: float) -> list[float]:
    """Milliseconds from before each COMMIT to the handler, in one process, oldest first."""
    started: dict[str, float] = {}
    taken: list[float] = []
    broker = install_crud_hooks(engine, consumer_group="latency")

    async def handler(event: Event) -> None:
        if event.key in started:
            taken.append((time.perf_counter() - started[event.key]) * 1000)

    broker.subscribe("public.items.create", handler=handler)
    broker.start()
    wait(lambda: not sum(part.lag for part in broker.stats() if part.group == "latency"))
    for number in range(int(seconds * 100)):
        with Session(engine) as session:
            session.add(item(10_000_000 + number))
            session.flush()
            started[str(10_000_000 + number)] = time.perf_counter()
            session.commit()
        threading.Event().wait(0.01)
    wait(lambda: len(taken) == int(seconds * 100))
    broker.uninstall()
    return taken


def wait(condition: Callable[[], Any]) -> None:
    """Until it holds."""
    while not condition():
        threading.Event().wait(0.05)


def main() -> None:
    """Run everything once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default=os.environ.get("JSON"))
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    found: list[Figure] = []
    with postgres() as server:
        url = server.url("psycopg", server.create_database(name="bench"))
        upgrade(url)
        engine = sa.create_engine(url)
        Base.metadata.create_all(engine, tables=[Item.__table__])  # type: ignore[list-item]
        fill(engine, options.events)
        top = ceiling(engine, options.events)
        found.append(Figure("ceiling", top, "events/s"))
        rate = asyncio.run(read_commit(engine, options.events))
        found.append(Figure("read_commit", rate, "events/s", "ceiling", rate / top))
        for coroutine in (False, True):
            rate, by_cpu = to_handler(engine, options.events, coroutine=coroutine)
            name = f"postgres_to_handler_{'async' if coroutine else 'sync'}"
            found.append(Figure(name, rate, "events/s", "ceiling", rate / top))
            found.append(Figure(f"{name}_per_cpu_second", by_cpu, "events/s"))
        taken = sorted(latency(engine, options.seconds))
        found.append(Figure("latency_in_process_p50", statistics.median(taken), "ms"))
        found.append(Figure("latency_in_process_p99", taken[int(len(taken) * 0.99)], "ms"))
        found.append(Figure("rss", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MB"))
        engine.dispose()
    publish(found, options.json)


if __name__ == "__main__":
    main()

"""Whether size matters: a backlog of ten million events against one of ten thousand, questions to it, bloat, rollbacks.

    python benchmarks/scale.py [--json FILE] [--events N] [--live N]      (or make scale)

Draining: a reader hands out, settles and commits, in a process of its own, before anything was analyzed. Questions: the
median of 20, with a group in the middle of the log, gaps, and ten thousand dead letters. Live: a writer and a reader while
a transaction holds back vacuum all the time, then what is dead or large.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sqlalchemy as sa

from benchmarks.drains import BATCH, read_commit
from benchmarks.measured import Cost, apart
from benchmarks.report import Figure, publish
from benchmarks.servers import postgres
from sqla_events import Broker, Config, EventFilter
from sqla_events.alembic import upgrade
from sqla_events.bridge import Database, Doorbell
from sqla_events.log.reader import leased
from sqla_events.log.settings import ReaderSettings
from sqla_events.schema import Tables
from sqla_events.signals import Signals
from tests.servers.postgres import PostgresServer

TABLES = Tables()
SMALL, TIMES = 10_000, 20
DAYS = 30
FILL = """
INSERT INTO events (id, source, type, schema, entity, operation, key, payload, created_at)
SELECT (lpad(to_hex((extract(epoch FROM made) * 1000)::bigint), 12, '0') || '7' || substr(r, 1, 3) || '8' || substr(r, 4, 15))::uuid,
    'database', 'public.items.create', 'public', 'items', 'create', n::text,
    json_build_object('key', json_build_object('id', n), 'after', json_build_object('name', repeat('x', 240))), made
FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS n,
    LATERAL (SELECT now() - make_interval(secs => (CAST(:count AS bigint) - n) * CAST(:seconds AS float8) / CAST(:count AS float8)) AS made, md5(n::text) AS r OFFSET 0) AS one
"""


def database(server: PostgresServer, name: str, count: int) -> str:
    """The URL of a new log with so many events, made over thirty days; nothing is analyzed."""
    url = server.url("psycopg", server.create_database(name=name))
    upgrade(url)
    engine = sa.create_engine(url)
    for first in range(1, count + 1, 100_000):
        with engine.begin() as link:
            last = min(first + 99_999, count)
            link.execute(sa.text(FILL), {"first": first, "last": last, "count": count, "seconds": DAYS * 86_400.0})
    engine.dispose()
    return url


# Draining -----------------------------------------------------------------------------------------------------------


def drains(server: PostgresServer, url: str, count: int) -> Iterator[Figure]:
    """The same rate and the same memory, whatever the backlog."""
    little = apart(again_and_again, database(server, "little", SMALL), server.pid)
    much = apart(read_commit, url, server.pid, count)
    yield Figure(f"drain_{SMALL}", little.rate, "events/s")
    yield Figure(f"drain_{count}", much.rate, "events/s", f"drain_{SMALL}", much.rate / little.rate)
    yield Figure(f"drain_{SMALL}_rss", little.rss, "MB")
    yield Figure(f"drain_{count}_rss", much.rss, "MB", f"drain_{SMALL}_rss", much.rss / little.rss)


def again_and_again(url: str, server: int) -> Cost:
    """Ten thousand are gone too soon to measure: the same by twenty groups. The first one warms up."""
    costs = [read_commit_as(url, server, f"group-{n}") for n in range(TIMES + 1)][1:]
    return Cost(
        SMALL * TIMES,
        sum(one.seconds for one in costs),
        sum(one.cpu for one in costs),
        sum(one.server_cpu for one in costs),
        costs[-1].rss,
    )


def read_commit_as(url: str, server: int, group: str) -> Cost:
    engine = sa.create_engine(url)
    with engine.begin() as link:
        link.exec_driver_sql("DELETE FROM event_positions WHERE \"group\" = 'read'")
    cost = read_commit(url, server, SMALL)
    engine.dispose()
    return cost


# Questions ----------------------------------------------------------------------------------------------------------


def questions(url: str, count: int) -> Iterator[Figure]:
    """Milliseconds, at the median."""
    engine = sa.create_engine(url)
    with engine.connect() as link:
        yield asked("view_count_by_status", lambda: counted(link), 1)
    trouble(engine, count)
    broker = Broker(Config(consumer_group="read"), engine).start()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as link:
        link.exec_driver_sql("SET statement_timeout = '60s'")
        for label, seq in (("done", count // 4), ("failed", count // 3), ("in_gap", count // 2 + 7), ("pending", count - 5)):
            one = link.execute(sa.text("SELECT id FROM events WHERE seq = :seq"), {"seq": seq}).scalar()
            yield asked(f"status_by_seq_{label}", lambda seq=seq: status(link, "seq", seq))
            yield asked(f"get_{label}", lambda one=one: broker.get(one))
        yield asked("status_by_id_not_analyzed", lambda one=one: status(link, "id", one))
        link.exec_driver_sql("VACUUM ANALYZE events")
        yield asked("status_by_id", lambda one=one: status(link, "id", one))
        for label, wanted in filters(count).items():
            yield asked(f"list_{label}", lambda wanted=wanted: broker.list(wanted))
        yield asked("stats", broker.stats)
    broker.stop()
    engine.dispose()


def status(link: sa.Connection, column: str, value: Any) -> None:
    (found,) = link.execute(sa.text(f"SELECT * FROM event_status WHERE {column} = :value AND \"group\" = 'read'"), {"value": value})
    assert found.status


def counted(link: sa.Connection) -> None:
    link.execute(sa.text("SELECT status, count(*) FROM event_status GROUP BY 1")).all()


def filters(count: int) -> dict[str, EventFilter]:
    middle = dt.datetime.now(dt.UTC) - dt.timedelta(days=DAYS / 2)
    return {
        "oldest": EventFilter(),
        "newest": EventFilter(newest_first=True),
        "pattern": EventFilter(pattern="public.items.*"),
        "since": EventFilter(since=middle),
        "between": EventFilter(since=middle, until=middle + dt.timedelta(minutes=10)),
        "failed": EventFilter(status="failed"),
        "failed_newest": EventFilter(status="failed", newest_first=True),
        "processing": EventFilter(status="processing"),
        "pending": EventFilter(status="pending"),
        "completed_newest": EventFilter(status="completed", newest_first=True),
        "after": EventFilter(after=count // 2),
    }


def trouble(engine: sa.Engine, count: int) -> None:
    """A group in the middle, with a hundred gaps, and ten thousand dead letters."""
    gaps = [[seq, seq + 10] for seq in range(count // 2, count // 2 + 10_000, 100)]
    with engine.begin() as link:
        link.execute(
            sa.text("UPDATE event_positions SET high = :high, gaps = :gaps WHERE \"group\" = 'read'"),
            {"high": count // 4 * 3, "gaps": str(gaps)},
        )
        link.execute(
            sa.text(
                """INSERT INTO event_deliveries ("group", seq, subscription, status, attempts, error, first_failed_at, last_failed_at)
                SELECT 'read', seq, 'mail', 'failed', 4, 'no', now(), now() FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint), 10) AS seq"""
            ),
            {"first": count // 3, "last": count // 3 + 99_999},
        )


def asked(name: str, question: Callable[[], object], times: int = TIMES) -> Figure:
    durations = []
    for _ in range(times + (times > 1)):
        started = time.perf_counter()
        question()
        durations.append(time.perf_counter() - started)
    return Figure(name, statistics.median(durations[times > 1 :]) * 1000, "ms")


# A live log ---------------------------------------------------------------------------------------------------------


def live(server: PostgresServer, count: int) -> Iterator[Figure]:
    """Dead rows and sizes after so many events, while a transaction holds back vacuum."""
    url = database(server, "live", 0)
    engine = sa.create_engine(url)
    with engine.connect() as holding, engine.connect().execution_options(isolation_level="AUTOCOMMIT") as link:
        holding.execute(sa.text("SELECT pg_current_xact_id()"))
        writer = threading.Thread(target=write, args=(engine, count))
        writer.start()
        asyncio.run(read(url, count))
        writer.join()
        link.execute(sa.text("SELECT pg_stat_force_next_flush()"))
        wait = "SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 'events'"
        while (link.execute(sa.text(wait)).scalar() or 0) < count:
            time.sleep(0.1)
        for table in ("events", "event_positions", "event_batches", "event_deliveries"):
            found = "SELECT n_dead_tup, n_tup_upd, n_tup_hot_upd, pg_total_relation_size(relid) FROM pg_stat_user_tables WHERE relname = :t"
            dead, updated, hot, size = link.execute(sa.text(found), {"t": table}).one()
            yield Figure(f"live_{table}_dead", dead, "rows")
            yield Figure(f"live_{table}_size", size / 1e6, "MB")
            if updated:
                yield Figure(f"live_{table}_updates", updated, "rows", "hot", hot / updated)
    engine.dispose()


def write(engine: sa.Engine, count: int) -> None:
    for first in range(1, count + 1, 1000):
        with engine.begin() as link:
            link.execute(sa.text(FILL), {"first": first, "last": min(first + 999, count), "count": count, "seconds": 1.0})


async def read(url: str, count: int) -> None:
    database = Database(engine := sa.create_engine(url))
    settings = ReaderSettings("read", "live", batch_size=BATCH, prefetch=2 * BATCH)
    seen = 0
    async with leased(database, TABLES, settings, Signals(), Doorbell()) as reader:
        async for batch in reader.batches():
            reader.settle([delivery.row.seq for delivery in batch])
            seen += len(batch)
            if seen >= count:
                break
    await database.close()
    engine.dispose()


# Rollbacks ----------------------------------------------------------------------------------------------------------

CHURN = """
CREATE PROCEDURE churn(n int) LANGUAGE plpgsql AS $$ BEGIN FOR i IN 1..n LOOP
    PERFORM nextval('events_seq_seq'), pg_current_xact_id(); ROLLBACK;
    IF mod(i, 10) = 0 THEN
        INSERT INTO events (id, source, type, payload) VALUES (gen_random_uuid(), 'system', 'a.b.c', '1'); COMMIT;
    END IF;
END LOOP; END $$
"""


def rollbacks(server: PostgresServer) -> Iterator[Figure]:
    """What a poll costs before and after ten thousand transactions rolled back while one is open."""
    url = database(server, "rollbacks", 0)
    before, after = asyncio.run(_polls(url))
    yield Figure("poll", before, "ms")
    yield Figure("poll_after_10000_rollbacks", after, "ms", "poll", after / before)


async def _polls(url: str) -> tuple[float, float]:
    database = Database(engine := sa.create_engine(url))
    settings = ReaderSettings("read", "polls", poll_interval=3600.0)
    with engine.connect() as open_, engine.connect().execution_options(isolation_level="AUTOCOMMIT") as link:
        link.exec_driver_sql(CHURN)
        open_.execute(sa.text("INSERT INTO events (id, source, type, payload) VALUES (gen_random_uuid(), 'system', 'a.b.c', '1')"))
        async with leased(database, TABLES, settings, Signals(), Doorbell()) as reader:
            before = await _poll(reader)
            link.exec_driver_sql("CALL churn(10000)")
            for _ in range(20):
                reader.settle([delivery.row.seq for delivery in await reader._next()])
                await reader.commit()
            after = await _poll(reader)
        open_.rollback()
    await database.close()
    engine.dispose()
    return before, after


async def _poll(reader: Any) -> float:
    durations = []
    for _ in range(200):
        started = time.perf_counter()
        assert not await reader._next()
        durations.append(time.perf_counter() - started)
    return statistics.median(durations) * 1000


def main() -> None:
    """Run everything once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default=os.environ.get("JSON"))
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--live", type=int, default=1_000_000)
    options = parser.parse_args()
    with postgres() as server:
        found = [*rollbacks(server), *live(server, options.live)]
        url = database(server, "much", options.events)
        found += drains(server, url, options.events)
        found += questions(url, options.events)
    publish(found, options.json)


if __name__ == "__main__":
    main()

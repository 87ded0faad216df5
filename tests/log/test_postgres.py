"""What only PostgreSQL can do to a log: crash, hold transactions open, roll back many, plan badly, keep every isolation level."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from sqla_events.bridge import Database, Doorbell
from sqla_events.config import Config
from sqla_events.errors import LeaseLost
from sqla_events.log import groups
from sqla_events.log.delivery import LogDelivery
from sqla_events.log.ledger import Plan
from sqla_events.log.reader import Reader, leased
from sqla_events.log.reading import Reading
from sqla_events.log.settings import ReaderSettings
from sqla_events.provider import Interest, ProviderContext
from sqla_events.providers.database import DatabaseProvider
from sqla_events.schema import Tables
from sqla_events.signals import Signals
from tests.log.load import INSERT
from tests.servers.postgres import PostgresDatabase

TABLES = Tables()
BULK = """INSERT INTO events (id, source, type, schema, entity, operation, key, payload)
    SELECT gen_random_uuid(), 'database', 'public.things.update', 'public', 'things', 'update', (n %% 100)::text, '{"n": 1}'
    FROM generate_series(1, %s) AS n"""


@pytest.fixture
async def database(postgres: PostgresDatabase) -> AsyncIterator[Database]:
    """The log."""
    engine = create_engine(postgres.url())
    database = Database(engine)
    yield database
    await database.close()
    engine.dispose()


def reading(database: Database, **settings: Any) -> Any:
    settings = {"owner": "one", "lease": 5.0, "poll_interval": 0.02, "prefetch": 100_000} | settings
    return leased(database, TABLES, ReaderSettings("g", **settings), Signals())


def write(link: psycopg.Connection[Any], count: int = 1, key: str = "1") -> None:
    for _ in range(count):
        link.execute(INSERT, (str(uuid.uuid4()), key, json.dumps({"version": 1})))


class Stream:
    """A reader's deliveries, settled as they come."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.seqs: list[int] = []
        self._stream = reader.batches()
        self._coming = asyncio.ensure_future(anext(self._stream))

    async def until(self, condition: Any, seconds: float = 30.0) -> None:
        """Go on until it holds."""
        async with asyncio.timeout(seconds):
            while not condition():
                done, _ = await asyncio.wait({self._coming}, timeout=0.02)
                if done:
                    self._settle(self._coming.result())
                    self._coming = asyncio.ensure_future(anext(self._stream))

    def _settle(self, batch: list[LogDelivery]) -> None:
        self.seqs += [delivery.row.seq for delivery in batch]
        self.reader.settle([delivery.row.seq for delivery in batch])

    async def close(self) -> None:
        self._coming.cancel()
        await asyncio.gather(self._coming, return_exceptions=True)
        await self._stream.aclose()


async def test_a_transaction_that_stays_open_delays_only_its_own_events(
    postgres: PostgresDatabase, database: Database
) -> None:
    """Everybody else's events come at once, and its own as soon as it commits."""
    with postgres.connect() as open_, postgres.connect() as other:
        open_.autocommit = False
        write(open_, 3)
        write(other, 5)
        async with reading(database) as reader:
            stream = Stream(reader)
            await stream.until(lambda: stream.seqs == [4, 5, 6, 7, 8])
            write(other)
            await stream.until(lambda: stream.seqs[-1] == 9)
            assert reader.position.gaps == ((1, 3),)
            open_.commit()
            await stream.until(lambda: sorted(stream.seqs) == list(range(1, 10)) and not reader.position.gaps)
            await stream.close()


async def test_ten_thousand_rollbacks_during_an_open_transaction_do_not_slow_the_poll(
    postgres: PostgresDatabase, database: Database
) -> None:
    """They are watched together, and no read asks for them until the open transaction ends."""
    with postgres.connect() as open_, postgres.connect() as other:
        open_.autocommit = False
        write(open_)
        other.execute(
            """CREATE PROCEDURE churn(n int) LANGUAGE plpgsql AS $$ BEGIN FOR i IN 1..n LOOP
                PERFORM nextval('events_seq_seq'), pg_current_xact_id(); ROLLBACK;
                IF i % 10 = 0 THEN
                    INSERT INTO events (id, source, type, payload) VALUES (gen_random_uuid(), 'system', 'a.b.c', '1'); COMMIT;
                END IF;
            END LOOP; END $$"""
        )
        other.execute("CALL churn(10000)")
        async with reading(database) as reader:
            stream = Stream(reader)
            await stream.until(lambda: len(stream.seqs) == 1000)
            await stream.until(lambda: not reader._ledger.plan(10).pieces)
            assert reader._ledger.missing > 900
            write(other)
            await stream.until(lambda: len(stream.seqs) == 1001)
            open_.commit()
            await stream.until(lambda: len(stream.seqs) == 1002 and not reader.position.gaps)
            await stream.close()
    (group,) = await database.run(groups, TABLES)
    assert group.position.gaps == ()


async def test_a_bulk_that_commits_late_comes_whole_and_before_what_it_precedes(
    postgres: PostgresDatabase, database: Database
) -> None:
    """A hole of many rows is read in pieces; a bulk that rolled back is one range and dies as one."""
    with postgres.connect() as open_, postgres.connect() as dead, postgres.connect() as other:
        open_.autocommit = dead.autocommit = False
        dead.execute(BULK, (20_000,))
        open_.execute(BULK, (20_000,))
        write(other)
        async with reading(database, batch_size=1000) as reader:
            stream = Stream(reader)
            await stream.until(lambda: stream.seqs == [40_001])
            dead.rollback()
            open_.commit()
            write(other)
            await stream.until(lambda: len(stream.seqs) == 20_002)
            assert stream.seqs == [40_001, *range(20_001, 40_001), 40_002]
            await stream.until(lambda: not reader.position.gaps)
            await stream.close()


async def test_a_crashed_server_costs_nothing_that_was_not_in_hand(
    postgres: PostgresDatabase, database: Database
) -> None:
    """The reader reconnects and goes on; what it handed out before is not handed out again."""
    with postgres.connect() as link:
        write(link, 10)
    async with reading(database) as reader:
        stream = Stream(reader)
        await stream.until(lambda: len(stream.seqs) == 10)
        postgres.kill()  # on this thread: the server ends with the thread that starts it
        postgres.start()
        with postgres.connect() as link:
            write(link, 5)
        await stream.until(lambda: len(stream.seqs) == 15)
        assert len(set(stream.seqs)) == 15
        await reader.commit()
        await stream.close()
    (group,) = await database.run(groups, TABLES)
    await _drain(database)
    assert group.position.done(stream.seqs[-1])


async def _drain(database: Database) -> None:
    """Numbers that the crashed server had set aside are proven dead."""
    async with reading(database, owner="two") as reader:
        stream = Stream(reader)
        await stream.until(lambda: not reader.position.gaps)
        assert stream.seqs == []
        await stream.close()


async def test_a_log_that_went_back_in_time_is_noticed(postgres: PostgresDatabase, database: Database) -> None:
    """A fail-over may lose the last events and give their numbers to others: reading begins anew from what is stored."""
    with postgres.connect() as link:
        write(link, 3)
        async with reading(database) as reader:
            stream = Stream(reader)
            await stream.until(lambda: len(stream.seqs) == 3)
            await reader.commit()
            link.execute("DELETE FROM events WHERE seq = 3")
            link.execute("UPDATE event_positions SET high = 2, gaps = '[]'")
            link.execute("SELECT setval('events_seq_seq', 2)")
            write(link)
            link.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
            with pytest.raises(LeaseLost, match="begins anew"):
                await stream.until(lambda: False)
            await stream.close()
        async with reading(database, owner="one") as reader:
            stream = Stream(reader)
            await stream.until(lambda: stream.seqs == [3])
            await stream.close()


@pytest.mark.parametrize("level", ["SERIALIZABLE", "REPEATABLE READ", "READ UNCOMMITTED"])
async def test_the_engine_of_the_application_may_have_any_isolation(postgres: PostgresDatabase, level: str) -> None:
    """Positions are committed READ COMMITTED."""
    database = Database(engine := create_engine(postgres.url(), isolation_level=level))
    assert (
        await database.run(lambda link: link.execute(text("SHOW transaction_isolation")).scalar()) == "read committed"
    )
    with postgres.connect() as link:
        write(link, 3)
        link.execute(f"ALTER DATABASE {postgres.name} SET default_transaction_isolation = 'serializable'")  # type: ignore[call-overload]
    async with reading(database) as reader:
        stream = Stream(reader)
        await stream.until(lambda: len(stream.seqs) == 3)
        await reader.commit()
        await stream.close()
    await database.close()
    engine.dispose()


@pytest.mark.parametrize("share", [1, 4])
async def test_no_statistics_make_the_read_sort_or_scan_the_backlog(postgres: PostgresDatabase, share: int) -> None:
    """Before and after ANALYZE of an empty table, and after a bulk load."""
    from sqla_events.log.reading import Share

    statement = Reading(TABLES, "postgresql", "psycopg", Share(0, share))._statement
    with postgres.connect() as link:
        link.execute("ANALYZE events")
        link.execute(BULK, (50_000,))
        plan = Plan(20_000, 21_000, 1000, ((5, 5, 5), (100, 200, 15_000)))
        for _ in range(2):
            sql, values = statement(plan)
            for number, value in enumerate(values, 1):
                shown = f"'{{{','.join(map(str, value))}}}'" if isinstance(value, list) else str(value)
                sql = sql.replace(f"${number}", shown)
            explained = "\n".join(row[0] for row in link.execute("EXPLAIN " + sql))  # type: ignore[call-overload]
            assert "Seq Scan on events" not in explained
            assert "Sort" not in explained
            link.execute("ANALYZE events")


@pytest.mark.parametrize("driver", ["psycopg", "psycopg_async", "asyncpg"])
async def test_a_commit_in_another_process_wakes_by_listen(postgres: PostgresDatabase, driver: str) -> None:
    """Polling alone would take an hour here; a broken doorbell is hung up again."""
    url = postgres.url(driver.removesuffix("_async"))
    engine = create_engine(url) if driver == "psycopg" else create_async_engine(url)
    database, other = Database(engine), Database(engine)
    config = Config(provider="database", poll_interval=3600.0)
    here, there = (
        DatabaseProvider(config, ProviderContext(one, TABLES, "i", Signals(), Doorbell())) for one in (database, other)
    )
    await here.open()
    await there.open()
    stream = here.consume(Interest("g", ("*",), "me", 10))
    coming = asyncio.ensure_future(anext(stream))
    with postgres.connect() as link:
        for _ in range(2):
            await _until_listening(link)
            write(link)
            there._bell.ring()
            async with asyncio.timeout(20):
                for delivery in await coming:
                    delivery.ack()
            coming = asyncio.ensure_future(anext(stream))
            link.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"
            )
    coming.cancel()
    await asyncio.gather(coming, return_exceptions=True)
    await stream.aclose()
    for one in (here, there, database, other):
        await one.close()


async def _until_listening(link: psycopg.Connection[Any]) -> None:
    async with asyncio.timeout(20):
        while True:
            row = link.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND state = 'idle' AND datname = current_database()"
            ).fetchone()
            if row and row[0] == 1:
                return
            await asyncio.sleep(0.02)

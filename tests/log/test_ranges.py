"""Range partitions on PostgreSQL: made from a live log, ahead of need, dropped whole, without anybody noticing."""

from __future__ import annotations

import asyncio
import datetime as dt
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from click.testing import CliRunner
from sqlalchemy.orm import Session

import sqla_events.alembic
from sqla_events import EventFilter, install_crud_hooks
from sqla_events.autogenerate import include_name
from sqla_events.bridge import Database
from sqla_events.cli import main
from sqla_events.deliveries import LogDeadLetters
from sqla_events.errors import ConfigError, ProviderUnavailable
from sqla_events.log import ranges
from sqla_events.log.ledger import Plan
from sqla_events.log.reading import Reading, Share
from sqla_events.schema import Names, Tables
from sqla_events.upkeep import keep_up
from tests.integration.shop import Base, Inbox, User, eventually
from tests.log.readers import failure, publish, reading, take, until
from tests.log.test_postgres import BULK
from tests.log.test_spread import Load, Process, Transport
from tests.servers.postgres import PostgresDatabase

TABLES = Tables()
SIZE = 1000


@pytest.fixture
async def database(postgres: PostgresDatabase) -> AsyncIterator[Database]:
    """A log that is cut into ranges."""
    sqla_events.alembic.partition(postgres.url(), size=SIZE)
    engine = sa.create_engine(postgres.url())
    database = Database(engine)
    yield database
    await database.close()
    engine.dispose()


async def parts(database: Database) -> list[tuple[int, int]]:
    return [(part.first, part.end) for part in await database.run(ranges.parts, TABLES.names)]


async def in_default(database: Database) -> int:
    found: int = await database.run(lambda link: link.execute(sa.text("SELECT count(*) FROM events_rest")).scalar())
    return found


# Making it ----------------------------------------------------------------------------------------------------------


async def test_a_log_with_events_becomes_partitioned(postgres: PostgresDatabase) -> None:
    """It keeps its events, status view, positions, grants; doing it again changes nothing; it can be taken away."""
    database = Database(engine := sa.create_engine(postgres.url()))
    await publish(database, 30)
    async with reading(database) as reader:
        for delivery in (await take(reader, 30))[:20]:
            delivery.ack()
    with postgres.connect() as link:
        link.execute('DROP ROLE IF EXISTS "the app"')
        link.execute('CREATE ROLE "the app"')
        link.execute('GRANT INSERT ON events TO "the app"')
        link.execute('GRANT SELECT ON event_status TO "the app", PUBLIC')
        for _ in range(2):
            sqla_events.alembic.partition(engine, size=SIZE)
        assert await parts(database) == [(0, 1000), (1000, 2000), (2000, 3000), (3000, 4000), (4000, 5000)]
        states = link.execute("SELECT status, count(*) FROM event_status GROUP BY 1 ORDER BY 1").fetchall()
        assert states == [("completed", 20), ("processing", 10)]
        link.execute('SET ROLE "the app"')
        link.execute("SELECT count(*) FROM event_status")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            link.execute("SELECT count(*) FROM events")
        link.execute("RESET ROLE")
        link.execute('DROP OWNED BY "the app"')
        link.execute('DROP ROLE "the app"')
    await publish(database, 1000)
    async with reading(database, prefetch=5000) as reader:
        assert len(await take(reader, 1010)) == 1010
    sqla_events.alembic.check(engine)
    sqla_events.alembic.downgrade(engine)
    assert sa.inspect(engine).get_table_names() == ["sqla_events_version"]
    await database.close()
    engine.dispose()


def test_by_the_command_line_and_in_an_application_s_history(empty_postgres: PostgresDatabase, tmp_path: Path) -> None:
    """Under other names and in a schema, as a script too; SQLite has no such thing."""
    url = empty_postgres.url()
    options = ["--partitioned", "--partition-size", "2000", "--table-name", "Log", "--schema", "out"]
    done = CliRunner().invoke(main, ["migrate", url, *options])
    assert done.exit_code == 0, done.output
    engine = sa.create_engine(url)
    with engine.begin() as link:
        assert ranges.is_partitioned(link, Names("Log", "out"))
        assert [part.end for part in ranges.parts(link, Names("Log", "out"))][:2] == [2000, 4000]
        operations: Any = Operations(MigrationContext.configure(link))
        operations.create_event_tables()
        operations.partition_event_tables(size=5000)
        assert [part.end for part in ranges.parts(link, Names())][:2] == [5000, 10000]
        output = io.StringIO()
        script: Any = Operations(MigrationContext.configure(dialect_name="postgresql", opts={"as_sql": True, "output_buffer": output}))
        script.create_event_tables(events="audit")
        script.partition_event_tables(events="audit", size=3000)
    with empty_postgres.connect() as raw:
        raw.execute(output.getvalue().encode())
        with engine.begin() as link:
            assert [part.end for part in ranges.parts(link, Names("audit"))][:2] == [3000, 6000]
    engine.dispose()
    with pytest.raises(ConfigError, match="need postgresql"):
        sqla_events.alembic.partition(f"sqlite:///{tmp_path / 'x.db'}")
    with pytest.raises(ConfigError, match="at least 1000"):
        sqla_events.alembic.partition(url, size=10)


def test_older_alembics_are_told_by_name() -> None:
    """The plug-in of newer ones knows a partition by its columns (test_application)."""
    assert not any(include_name(name, "table", {}) for name in ("events", "events_p0", "events_p1000000", "events_rest"))
    assert include_name("events_plan", "table", {})


# Upkeep -------------------------------------------------------------------------------------------------------------


async def test_partitions_are_made_ahead(database: Database) -> None:
    """As numbers are used, from the highest one on; where writers were faster, above what they wrote."""
    assert await database.run(ranges.extend, TABLES, SIZE) == []
    await publish(database, 1500)
    assert await database.run(ranges.extend, TABLES, SIZE) == ["events_p5000"]
    await database.run(lambda link: link.execute(sa.text("SELECT setval('events_seq_seq', 7499)")))
    await publish(database, 3)
    assert await in_default(database) == 3
    assert await database.run(ranges.extend, TABLES, 2000) == ["events_p10000", "events_p12000", "events_p14000"]
    await publish(database, 1)
    assert await in_default(database) == 4
    async with reading(database, prefetch=5000) as reader:
        assert len(await take(reader, 1504)) == 1504


async def test_what_is_done_and_old_is_dropped_whole(database: Database) -> None:
    """Lowest first, never what a group lacks; what a dead letter needs is kept in the default partition."""
    letters = LogDeadLetters(database, TABLES, lambda: None)
    await publish(database, 2500)
    assert await database.run(ranges.drop_oldest, TABLES, 0.0) is None
    async with reading(database, prefetch=5000, batch_size=5000) as reader:
        deliveries = await take(reader, 2500)
        deliveries[7].bury(failure())
        for delivery in deliveries[:1999]:
            delivery.ack()
    assert await database.run(ranges.drop_oldest, TABLES, 3600.0) is None
    assert await database.run(ranges.drop_oldest, TABLES, 0.0) == "events_p0"
    assert await database.run(ranges.drop_oldest, TABLES, 0.0) == "events_p1000"
    assert await database.run(ranges.drop_oldest, TABLES, 0.0) is None
    assert [letter.event.payload["n"] for letter in await letters.list()] == [7]
    async with reading(database) as reader:
        assert [delivery.row.seq for delivery in await take(reader, 501)] == list(range(2000, 2501))
    assert await letters.discard() == 1
    upkeep = asyncio.create_task(keep_up(database, TABLES, 0.05, SIZE))
    async with asyncio.timeout(20):
        while await in_default(database):
            await asyncio.sleep(0.02)
    upkeep.cancel()
    await asyncio.gather(upkeep, return_exceptions=True)


async def test_a_writer_s_open_transaction_is_not_waited_for(postgres: PostgresDatabase, database: Database) -> None:
    """The lock that dropping needs is asked for briefly, and everybody else goes on."""
    await publish(database, 1500)
    async with reading(database, prefetch=5000, batch_size=5000) as reader:
        for delivery in await take(reader, 1500):
            delivery.ack()
    with postgres.connect() as link:
        link.autocommit = False
        link.execute("INSERT INTO events (id, source, type, payload) VALUES (gen_random_uuid(), 'system', 'a.b.c', '1')")
        with pytest.raises(ProviderUnavailable, match="lock timeout"):
            await database.run(ranges.drop_oldest, TABLES, 0.0)
        assert await database.run(ranges.extend, TABLES, SIZE) == ["events_p5000"]
        await publish(database, 1)
        link.commit()
    assert await database.run(ranges.drop_oldest, TABLES, 0.0) == "events_p0"


async def test_readers_and_writers_notice_nothing(postgres: PostgresDatabase, database: Database) -> None:
    """Partitions are made and dropped under load: nothing lost, swapped or twice, and no row was ever deleted."""
    transport = Transport()
    upkeep = asyncio.create_task(keep_up(database, TABLES, 0.05, SIZE))
    with postgres.connect() as link:
        link.execute(BULK, (2500,))
        await database.run(lambda link: link.execute(sa.text("INSERT INTO event_positions (\"group\", partition, partitions, high) VALUES ('g', 0, 2, 2500), ('g', 1, 2, 2500)")))
    async with Load(database) as load:
        one = Process(database, transport, "one", partitions=2)
        await until(lambda: len(transport.seen) > 100)
        two = Process(database, transport, "two", partitions=2)
        await until(lambda: load.count > 1700)
        await one.stop()
    await until(lambda: len(transport.seen) >= load.count)
    await until(lambda: dropped_to(database, 4000))
    await two.stop()
    upkeep.cancel()
    await asyncio.gather(upkeep, return_exceptions=True)
    assert sorted(transport.seen) == list(range(load.count))
    assert transport.inverted == 0


async def dropped_to(database: Database, first: int) -> bool:
    return (await parts(database))[0][0] >= first


@pytest.mark.parametrize("share", [1, 4])
async def test_no_read_scans_a_partition(postgres: PostgresDatabase, database: Database, share: int) -> None:
    """Neither those it does not need nor all of one that it does."""
    statement = Reading(TABLES, "postgresql", "psycopg", Share(0, share))._statement
    with postgres.connect() as link:
        link.execute(BULK, (4500,))
        sql, values = statement(Plan(2000, 2100, 100, ((5, 5, 5), (100, 200, 1500))))
        for number, value in enumerate(values, 1):
            shown = f"'{{{','.join(map(str, value))}}}'" if isinstance(value, list) else str(value)
            sql = sql.replace(f"${number}", shown)
        explained = "\n".join(row[0] for row in link.execute("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) " + sql))  # type: ignore[call-overload]
        assert "Seq Scan on events_p" not in explained
        assert "never executed" in explained


def test_capture_with_copy_and_questions(postgres: PostgresDatabase) -> None:
    """An application as it always is, on a partitioned log."""
    sqla_events.alembic.partition(postgres.url(), size=SIZE)
    engine = sa.create_engine(postgres.url())
    Base.metadata.create_all(engine)
    broker = install_crud_hooks(engine, retention="1h", poll_interval=0.05)
    inbox = Inbox()
    broker.subscribe("public.users.*", handler=inbox)
    broker.start()
    with Session(engine) as session:
        session.add_all(User(id=number, name="x") for number in range(1200))
        session.commit()
    inbox.wait(1200)
    eventually(lambda: [one.lag for one in broker.stats()] == [0])
    event = broker.get(inbox.events[1100].id)
    assert (event.key, event.status) == (inbox.events[1100].key, "completed")
    since = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=5)
    assert len(broker.list(EventFilter(entity="users", since=since, limit=2000))) == 1200
    broker.uninstall()
    engine.dispose()

"""The migration creates what sqla_events.schema describes, everywhere, under any name, and takes it away again."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import create_async_engine

from sqla_events import alembic
from sqla_events.errors import ConfigError, SchemaError
from sqla_events.schema import REVISION, Names, Tables

NAMES = [Names(), Names("audit_log"), Names("Outbox"), Names("e" * 48)]


@pytest.fixture
def engine(empty_database_url: str) -> Iterator[Engine]:
    engine = sa.create_engine(empty_database_url)
    yield engine
    engine.dispose()


def relations(engine: Engine, schema: str | None = None) -> set[str]:
    """The names of all tables and views."""
    inspector = sa.inspect(engine)
    return {*inspector.get_table_names(schema), *inspector.get_view_names(schema)} - {"sqlite_sequence"}


@pytest.mark.parametrize("names", NAMES, ids=lambda names: names.events[:12])
def test_up_and_down(engine: Engine, names: Names) -> None:
    """Up twice creates everything once; down leaves nothing but Alembic's empty version table; up again works."""
    for _ in range(2):
        alembic.upgrade(engine, names)
    assert relations(engine) == set(names.all)
    alembic.downgrade(engine, names)
    assert relations(engine) == {names.version}
    alembic.upgrade(engine, names)
    alembic.check(engine, names)


@pytest.mark.parametrize("names", NAMES, ids=lambda names: names.events[:12])
def test_the_models_agree_with_the_migration(engine: Engine, names: Names) -> None:
    """Same tables, columns, types, nullability and primary keys, whether reflected or described."""
    alembic.upgrade(engine, names)
    tables = Tables(names)
    for table in (tables.events, tables.positions, tables.batches, tables.deliveries):
        reflected = sa.Table(table.name, sa.MetaData(), autoload_with=engine)
        assert described(reflected, engine) == described(table, engine)


def described(table: sa.Table, engine: Engine) -> dict[str, tuple[str, bool, bool]]:
    """Column name -> type as DDL, nullable, part of the primary key."""
    return {
        column.name: (column.type.compile(engine.dialect), bool(column.nullable), column.primary_key) for column in table.columns
    }


def test_a_schema_is_created_and_used(empty_postgres_url: str) -> None:
    """Everything lies in it, the version table too; the default schema stays empty."""
    names = Names("events", "Outbox")
    engine = sa.create_engine(empty_postgres_url)
    for _ in range(2):
        alembic.upgrade(engine, names)
    assert relations(engine, "Outbox") == set(names.all)
    assert relations(engine) == set()
    with engine.begin() as connection:
        insert(connection, names)
        assert connection.scalar(sa.text('SELECT count(*) FROM "Outbox".event_status')) == 1
    alembic.downgrade(engine, names)
    engine.dispose()


def test_two_logs_in_one_database(engine: Engine) -> None:
    """Each has tables and a version of its own."""
    first, second = Names(), Names("audit_log")
    alembic.upgrade(engine, first)
    alembic.upgrade(engine, second)
    alembic.downgrade(engine, first)
    alembic.check(engine, second)
    with pytest.raises(SchemaError):
        alembic.check(engine, first)


def test_defaults(engine: Engine) -> None:
    """seq counts, created_at is the present with its zone."""
    alembic.upgrade(engine)
    before = sa.func.current_timestamp()
    with engine.begin() as connection:
        seqs = [insert(connection) for _ in range(3)]
        created = connection.scalar(sa.select(Tables().events.c.created_at).limit(1))
        now = connection.scalar(sa.select(before))
    assert seqs == [1, 2, 3]
    assert created.tzinfo is not None
    assert abs((created.replace(tzinfo=None) - now.replace(tzinfo=None)).total_seconds()) < 60


def test_seq_is_taken_after_the_transaction_has_an_id(empty_postgres_url: str) -> None:
    """The reader's proof that a gap is dead rests on it; the sequence hands out one number at a time."""
    alembic.upgrade(empty_postgres_url)
    engine = sa.create_engine(empty_postgres_url)
    with engine.connect() as connection:
        default = connection.scalar(
            sa.text("SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = 'events'::regclass AND adnum = 1")
        )
        cache = connection.scalar(sa.text("SELECT seqcache FROM pg_sequence WHERE seqrelid = 'events_seq_seq'::regclass"))
    assert default.index("pg_current_xact_id") < default.index("nextval")
    assert cache == 1
    engine.dispose()


def insert(connection: sa.Connection, names: Names | None = None) -> int:
    events = Tables(names).events
    row = {"id": "0198a6b0-0000-7000-8000-000000000000", "source": "system", "type": "a", "payload": "1"}
    columns = ", ".join(row)
    statement = sa.text(f"INSERT INTO {Tables(names).names.qualified(events.name)} ({columns}) VALUES (:id, :source, :type, :payload) RETURNING seq")
    return connection.execute(statement, row).scalar_one()


def test_missing_and_outdated_tables_are_told_with_the_command(engine: Engine) -> None:
    """SchemaError names what to run, with the options that the names need, and without a password."""
    with pytest.raises(SchemaError, match=r"missing; .*: sqla-events migrate '.*' --table-name audit_log$"):
        alembic.check(engine, Names("audit_log"))
    alembic.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE sqla_events_version SET version_num = '0000'"))
    with pytest.raises(SchemaError, match=rf"revision 0000 .* needs {REVISION}; .*: sqla-events migrate"):
        alembic.check(engine)


def test_newer_tables_are_accepted(engine: Engine) -> None:
    """An old process keeps running while a new release migrates."""
    alembic.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE sqla_events_version SET version_num = '9999'"))
    alembic.check(engine)


def test_every_kind_of_target(empty_database_url: str, async_url: Callable[[str], str]) -> None:
    """A URL object, an async URL, a connection; each sees what the others did."""
    alembic.upgrade(sa.make_url(empty_database_url))
    alembic.check(async_url(empty_database_url))
    alembic.downgrade(async_url(empty_database_url))
    engine = sa.create_engine(empty_database_url)
    with engine.connect() as connection:
        alembic.upgrade(connection)
        alembic.check(connection)
        connection.rollback()
    with pytest.raises(SchemaError):
        alembic.check(engine)
    engine.dispose()


async def test_async_engines_and_connections(empty_database_url: str, async_url: Callable[[str], str]) -> None:
    """From a coroutine: an AsyncEngine (blocks), or run_sync of an AsyncConnection."""
    engine = create_async_engine(async_url(empty_database_url))
    alembic.upgrade(engine)
    async with engine.begin() as connection:
        await connection.run_sync(alembic.check)
        await connection.run_sync(alembic.downgrade)
        await connection.run_sync(alembic.upgrade)
    await engine.dispose()


def test_deployments_that_migrate_at_the_same_time_take_turns(empty_database_url: str) -> None:
    """All of them succeed: processes by the database's lock, threads of one process by ours."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as processes, ThreadPoolExecutor(3) as threads:
        done = [pool.submit(alembic.upgrade, empty_database_url) for pool in (processes, processes, threads, threads, threads)]
        for one in done:
            one.result(timeout=60)
    alembic.check(empty_database_url)


def test_a_failed_migration_leaves_nothing(engine: Engine) -> None:
    """It is one transaction: a name that is taken by the last statement undoes the first."""
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE event_status (x integer)"))
    with pytest.raises(sa.exc.DBAPIError):
        alembic.upgrade(engine)
    assert relations(engine) == {"event_status"}


def test_the_script_does_the_same(engine: Engine) -> None:
    """What ``sql`` prints, executed by hand, is accepted by ``check``."""
    script = alembic.sql(engine.url.render_as_string())
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        driver.executescript(script) if engine.dialect.name == "sqlite" else driver.execute(script)
    alembic.check(engine)


def test_what_is_refused(tmp_path: Path) -> None:
    """A database that is not supported, one that ends with the call, a schema on SQLite, a name that is no identifier."""
    with pytest.raises(ConfigError, match="works on postgresql and sqlite"):
        alembic.sql("mysql")
    with pytest.raises(ConfigError, match="SQLite has no schemas"):
        alembic.upgrade(f"sqlite:///{tmp_path}/x.db", Names(schema="main"))
    for url in ("sqlite://", "sqlite+aiosqlite:///:memory:"):
        with pytest.raises(ConfigError, match="in memory"):
            alembic.upgrade(url)
    with pytest.raises(ConfigError, match="plain identifier"):
        Names('events"; DROP TABLE users; --')

"""Behind PgBouncer in transaction mode: capture, leases, reading, dead letters, with nothing that a session keeps."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from sqla_events import Event, EventFilter, install_crud_hooks
from sqla_events.bridge import Database
from tests.integration.shop import Base, Inbox, User, eventually
from tests.servers.pgbouncer import PgBouncer, local_binary
from tests.servers.postgres import PostgresDatabase

ROWS = 30


@pytest.fixture(scope="module")
def pooler(postgres_server: Any) -> Iterator[PgBouncer]:
    """A private PgBouncer; the tests are skipped where the program is not installed (apt-get install pgbouncer)."""
    binary = local_binary()
    if binary is None:
        pytest.skip("pgbouncer is not installed")
    postgres_server.start()
    pooler = PgBouncer(binary, postgres_server)
    pooler.start()
    yield pooler
    pooler.remove()


@pytest.fixture
def tables(postgres: PostgresDatabase) -> str:
    """The shop's tables; returns the database's name."""
    engine = sa.create_engine(postgres.url())
    Base.metadata.create_all(engine)
    engine.dispose()
    return postgres.name


def fail_on_three(event: Event) -> BaseException | None:
    return ValueError("not this one") if event.key == "3" and event.operation == "update" else None


SETTINGS: dict[str, Any] = {
    "provider": "database",
    "partitions": 2,
    "poll_interval": 0.05,
    "retry_policy": {"max_retries": 1, "initial_delay": 0.01},
}


def check(inbox: Inbox) -> None:
    """Every event came, in the order of its row, once."""
    for number in range(ROWS):
        mine = [event.operation for event in inbox.events if event.key == str(number)]
        assert mine == (["create"] if number == 3 else ["create", "update"])


@pytest.mark.parametrize("listen", [True, False])
def test_a_synchronous_application(pooler: PgBouncer, tables: str, listen: bool) -> None:
    """psycopg without prepared statements, as it must be there. LISTEN gets lost behind the pooler; polling finds all."""
    url = pooler.url("psycopg", tables)
    engine = sa.create_engine(url, connect_args={"prepare_threshold": None})
    broker = install_crud_hooks(engine, SETTINGS | {"database": {"listen": listen}})
    inbox = Inbox(fail_on_three)
    broker.subscribe("public.users.*", handler=inbox)
    broker.start()
    for number in range(ROWS):
        with Session(engine) as session:
            session.add(User(id=number, name="x"))
            session.commit()
        with Session(engine) as session:
            session.get_one(User, number).name = "y"
            session.commit()
    inbox.wait(2 * ROWS - 1)
    (letter,) = eventually(broker.dead_letters.list)
    assert (letter.event.key, letter.attempts) == ("3", 2)
    check(inbox)
    inbox._fail = lambda event: None
    broker.dead_letters.redrive()
    inbox.wait(2 * ROWS)
    eventually(lambda: not broker.dead_letters.list())
    eventually(lambda: [one.lag for one in broker.stats()] == [0, 0])
    broker.uninstall()
    engine.dispose()


def asyncpg_engine(pooler: PgBouncer, name: str) -> AsyncEngine:
    """With the settings that SQLAlchemy's documentation asks for there: no caches, names that are unique, no pool."""
    arguments = {"statement_cache_size": 0, "prepared_statement_name_func": lambda: f"s_{uuid.uuid4()}"}
    url = pooler.url("asyncpg", name) + "?prepared_statement_cache_size=0"
    return create_async_engine(url, poolclass=NullPool, connect_args=arguments)


async def test_a_kept_connection_in_autocommit(pooler: PgBouncer, postgres: PostgresDatabase) -> None:
    """SQLAlchemy prepares a statement and executes it in two steps; the pooler must not change the server in between."""
    engine = asyncpg_engine(pooler, postgres.name)
    database = Database(engine)

    async def ask() -> list[int]:
        async with database.hold(autocommit=True) as held:
            return [await held.run(lambda link, n=n: link.execute(sa.select(sa.literal(n))).scalar_one()) for n in range(50)]

    assert await asyncio.gather(*(ask() for _ in range(8))) == [list(range(50))] * 8
    await database.close()
    await engine.dispose()


async def test_an_asynchronous_application(pooler: PgBouncer, tables: str) -> None:
    """Everything at once, as above."""
    engine = asyncpg_engine(pooler, tables)
    broker = install_crud_hooks(engine, SETTINGS | {"database": {"listen": False}})
    inbox = Inbox(fail_on_three)
    broker.subscribe("public.users.*", handler=inbox)
    async with broker:
        await asyncio.gather(*(write(engine, number) for number in range(ROWS)))
        await asyncio.to_thread(inbox.wait, 2 * ROWS - 1)
        async with asyncio.timeout(20):
            while not (letters := await broker.dead_letters.list()):
                await asyncio.sleep(0.02)
        assert [letter.event.key for letter in letters] == ["3"]
        check(inbox)
    broker.uninstall()
    await engine.dispose()


async def write(engine: AsyncEngine, number: int) -> None:
    async with AsyncSession(engine) as session:
        session.add(User(id=number, name="x"))
        await session.commit()
    async with AsyncSession(engine) as session:
        (await session.get_one(User, number)).name = "y"
        await session.commit()


async def test_set_based_statements_that_write_their_events(pooler: PgBouncer, tables: str) -> None:
    """They look up the types of a table once, and their parameters and RETURNING are like any other's."""
    engine = asyncpg_engine(pooler, tables)
    broker = install_crud_hooks(engine, SETTINGS)
    seen: list[str] = []
    sa.event.listen(engine.sync_engine, "before_cursor_execute", lambda *given: seen.append(given[2]))
    async with AsyncSession(engine) as session:
        await session.execute(sa.insert(User), [{"id": number, "name": "x"} for number in range(ROWS)])
        await session.commit()

    async def change(name: str) -> None:
        async with AsyncSession(engine) as session:
            await session.execute(sa.update(User).values(name=name), execution_options={"synchronize_session": False})
            await session.commit()

    for _ in range(3):
        await asyncio.gather(*(change(f"name {number}") for number in range(4)))
    events = await broker.list(EventFilter(limit=1000, pattern="public.users.update"))
    broker.uninstall()
    await engine.dispose()
    assert len(events) == 12 * ROWS
    assert sum("sqla_events_rows" in sql for sql in seen) == 12


def test_a_set_based_statement_without_prepared_statements(pooler: PgBouncer, tables: str) -> None:
    """On psycopg, as above."""
    engine = sa.create_engine(pooler.url("psycopg", tables), connect_args={"prepare_threshold": None})
    broker = install_crud_hooks(engine, SETTINGS)
    with Session(engine) as session:
        session.execute(sa.insert(User), [{"id": number, "name": "x"} for number in range(ROWS)])
        assert session.execute(sa.delete(User)).rowcount == ROWS
        session.commit()
    assert len(broker.list(EventFilter(limit=1000, pattern="public.users.delete"))) == ROWS
    broker.uninstall()
    engine.dispose()

"""The same write paths through AsyncSession, on every asynchronous driver."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from sqla_events import EventFilter, install_crud_hooks
from sqla_events.testing import apply, differences
from tests.capture.conftest import Stage
from tests.capture.model import Base, Tag
from tests.capture.test_write_paths import PATHS, Path

DRIVERS = {"sqlite": ["sqlite+aiosqlite"], "postgresql": ["postgresql+asyncpg", "postgresql+psycopg"]}


@pytest.mark.parametrize("write", PATHS, ids=lambda function: function.__name__)
async def test_replaying_the_events_of_an_async_session(stage: Stage, write: Path) -> None:
    """Sets of parameters run through the drivers' own asynchronous cursors; what comes of it is the same."""
    for driver in DRIVERS[stage.engine.dialect.name]:
        engine = create_async_engine(stage.engine.url.set(drivername=driver))
        if stage.engine.dialect.name == "sqlite":
            sa.event.listen(
                engine.sync_engine, "connect", lambda raw, _: raw.cursor().execute("PRAGMA foreign_keys = ON")
            )
        with stage.engine.begin() as connection, stage.copy.begin() as copy:
            for table in reversed(Base.metadata.sorted_tables):
                connection.execute(table.delete())
                copy.execute(table.delete())
            connection.exec_driver_sql("DELETE FROM events")
        broker = install_crud_hooks(engine, {})
        async with AsyncSession(engine) as session:
            await session.run_sync(write)
            await session.commit()
        events = await broker.list(EventFilter(limit=100_000))
        broker.uninstall()
        await engine.dispose()
        with stage.engine.connect() as source, stage.copy.begin() as copy:
            apply(copy, Base.metadata, events)
            assert differences(source, copy, Base.metadata) == []


async def test_which_of_many_sets_has_matched(stage: Stage) -> None:
    """Where the rows that come back do not tell by their keys: two sets of one key, sets that change the key."""
    metadata, given = sa.MetaData(), sa.bindparam
    table = sa.Table("told_apart", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", sa.String(9)))
    stage.create(metadata)
    by_old = table.update().where(table.c.id == given("i"), table.c.n == given("old")).values(n=given("new"))
    moving = table.update().where(table.c.id == given("i")).values(id=given("new"))
    for driver in DRIVERS[stage.engine.dialect.name]:
        engine = create_async_engine(stage.engine.url.set(drivername=driver))
        broker = install_crud_hooks(engine, {})
        async with engine.begin() as connection:
            await connection.execute(table.delete())
            await connection.execute(sa.text("DELETE FROM events"))
            await connection.execute(table.insert(), [{"id": 1, "n": "a"}, {"id": 4, "n": "d"}])
            await connection.execute(by_old, [{"i": 1, "old": "nope", "new": "A"}, {"i": 1, "old": "a", "new": "B"}])
            result = await connection.execute(moving, [{"i": 4, "new": 14}, {"i": 99, "new": 100}, {"i": 1, "new": 11}])
            assert result.rowcount == (-1 if driver.endswith("asyncpg") else 2)
        events = await broker.list(EventFilter(limit=100_000))
        broker.uninstall()
        await engine.dispose()
        with stage.engine.connect() as source, stage.copy.begin() as copy:
            copy.execute(table.delete())
            apply(copy, metadata, [event for event in events if event.operation != "delete"], check_before=True)
            assert differences(source, copy, metadata) == []
        assert [event.key for event in events if event.operation == "update"] == ["1", "4", "1"]


@pytest.mark.parametrize("kind", ["time", "span", "number"])
async def test_which_of_many_sets_has_matched_where_keys_come_back_otherwise(stage: Stage, kind: str) -> None:
    """Bound without a time zone, with more places, as text: one of the sets matches nothing."""
    if stage.engine.dialect.name == "sqlite":
        pytest.skip("keys are bound as they are stored there")
    now = dt.datetime(2024, 5, 6, 7, 8, 9)
    types: dict[str, tuple[Any, list[Any]]] = {
        "time": (sa.DateTime(timezone=True), [now, now.replace(hour=1), now.replace(hour=2)]),
        "span": (sa.Interval(second_precision=2), [dt.timedelta(seconds=1.239), dt.timedelta(1), dt.timedelta(2)]),
        "number": (sa.Numeric(10, 2), ["1.5", "2", "3"]),
    }
    key, (one, two, none) = types[kind]
    metadata, given = sa.MetaData(), sa.bindparam
    table = sa.Table("spelled", metadata, sa.Column("id", key, primary_key=True, autoincrement=False), sa.Column("n", sa.Integer))
    stage.create(metadata)
    for driver in DRIVERS["postgresql"]:
        engine = create_async_engine(stage.engine.url.set(drivername=driver))
        broker = install_crud_hooks(engine, {})
        async with engine.begin() as connection:
            await connection.execute(sa.text("DELETE FROM events"))
            await connection.execute(table.insert(), [{"id": one, "n": 1}, {"id": two, "n": 1}])
            changing = table.update().where(table.c.id == given("i")).values(n=given("new"))
            await connection.execute(changing, [{"i": one, "new": 2}, {"i": none, "new": 2}, {"i": two, "new": 3}])
            left = (await connection.execute(sa.select(table.c.n).order_by(table.c.n))).scalars().all()
            await connection.execute(table.delete().where(table.c.id == given("i")), [{"i": none}, {"i": two}])
        found = [(event.operation, (event.after or {}).get("n")) for event in await broker.list(EventFilter(limit=1000))]
        broker.uninstall()
        async with engine.begin() as connection:
            gone = 1 + (await connection.execute(table.delete())).rowcount
        await engine.dispose()
        wrote = [("update", n) for n in left if n != 1]
        assert found == [*[("create", 1)] * 2, *wrote, ("delete", None)]
        assert gone == 2


BLOCKS = {
    "the statement": "LOCK TABLE events IN ACCESS EXCLUSIVE MODE",
    "its rows": "SELECT pg_advisory_xact_lock(77)",
}
"""What another transaction has to do so that the writing of events waits, as it begins and amid its data."""

WAITS_FOR_ITS_ROWS = """
CREATE FUNCTION wait_for_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock(77); RETURN NULL; END $$;
CREATE TRIGGER wait_for_it BEFORE INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION wait_for_it()"""


@pytest.mark.parametrize("at", ["COMMIT", "SAVEPOINT"])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("rows", [1, 5, 900])
async def test_a_task_that_is_cancelled_while_events_are_written(stage: Stage, rows: int, block: str, at: str) -> None:
    """By an INSERT, by JSON, by COPY: whoever gets the connection next finds it in order, and nothing of it is committed."""
    if stage.engine.dialect.name == "sqlite":
        pytest.skip("nothing waits there in the event loop")
    with stage.engine.begin() as connection:
        connection.exec_driver_sql(WAITS_FOR_ITS_ROWS)
    for driver in DRIVERS["postgresql"]:
        engine = create_async_engine(stage.engine.url.set(drivername=driver), pool_size=1, max_overflow=0, pool_timeout=5)
        broker = install_crud_hooks(engine, {"capture": {"carry": False}})
        with stage.engine.begin() as other:
            other.exec_driver_sql(BLOCKS[block])
            await cancelled(asyncio.create_task(writing(engine, rows, at)), stage)
        async with asyncio.timeout(20), engine.begin() as connection:
            assert await connection.scalar(sa.select(sa.func.count()).select_from(Tag)) == 0
            await connection.execute(sa.insert(Tag), {"id": 1, "name": "next"})
        assert [event.key for event in await broker.list(EventFilter(limit=1000))] == ["1"]
        broker.uninstall()
        await engine.dispose()
        with stage.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM tags")
            connection.exec_driver_sql("DELETE FROM events")


async def writing(engine: Any, rows: int, at: str) -> None:
    async with engine.begin() as connection:
        await connection.execute(sa.insert(Tag), [{"id": n, "name": "x" * 40} for n in range(rows)])
        if at == "SAVEPOINT":
            await connection.begin_nested()


async def cancelled(task: asyncio.Task[None], stage: Stage) -> None:
    async with asyncio.timeout(20):
        with stage.engine.connect() as looking:
            while not looking.scalar(sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")):
                assert not task.done()
                await asyncio.sleep(0.01)
                looking.rollback()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_task_that_is_cancelled_amid_a_copy(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the server waits for data: psycopg's connection cannot even roll back then."""
    if stage.engine.dialect.name == "sqlite":
        pytest.skip("nothing waits there in the event loop")
    import psycopg

    there, plain = asyncio.Event(), psycopg.AsyncCopy.write

    async def write(self: Any, buffer: Any) -> None:
        there.set()
        await asyncio.sleep(60)

    async def finish(self: Any, error: Any = None) -> None:
        """The second cancellation, or whatever keeps it from ending the COPY."""

    monkeypatch.setattr(psycopg.AsyncCopy, "write", write)
    monkeypatch.setattr(psycopg.AsyncCopy, "finish", finish)
    engine = create_async_engine(stage.engine.url.set(drivername="postgresql+psycopg"), pool_size=1, max_overflow=0, pool_timeout=5)
    broker = install_crud_hooks(engine, {})
    task = asyncio.create_task(writing(engine, 900, "COMMIT"))
    await there.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    monkeypatch.undo()
    assert psycopg.AsyncCopy.write is plain
    await writing(engine, 30, "COMMIT")
    assert len(await broker.list(EventFilter(limit=1000))) == 30
    broker.uninstall()
    await engine.dispose()

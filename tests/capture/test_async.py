"""The same write paths through AsyncSession, on every asynchronous driver."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from sqla_events import EventFilter, install_crud_hooks
from sqla_events.testing import apply, differences
from tests.capture.conftest import Stage
from tests.capture.model import Base
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

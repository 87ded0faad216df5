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

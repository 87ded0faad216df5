"""The log, on each kind of database."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import create_engine

from sqla_events.bridge import Database


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """The log."""
    engine = create_engine(database_url)
    database = Database(engine)
    yield database
    await database.close()
    engine.dispose()

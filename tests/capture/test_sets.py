"""Many sets of parameters in one execution on SQLite: an event for each set that has matched a row, and no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from sqla_events import EventFilter, install_crud_hooks
from sqla_events.alembic import upgrade

metadata = sa.MetaData()
notes = sa.Table(
    "notes",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("text", sa.Text, unique=True),
    sa.Column("gone", sa.Integer),
)

Write = Callable[[sa.Connection], Any]


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'notes.db'}"
    upgrade(url)
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        metadata.create_all(connection)
        connection.execute(notes.insert(), [{"id": number, "text": str(number), "gone": 0} for number in (1, 2, 3)])
        connection.exec_driver_sql(
            "CREATE TRIGGER kept BEFORE DELETE ON notes WHEN old.id = 2 BEGIN "
            "UPDATE notes SET gone = 1 WHERE id = old.id; SELECT RAISE(IGNORE); END"
        )
    engine.dispose()
    return url


@pytest.fixture(params=["sqlite", "sqlite+aiosqlite"])
def run(request: pytest.FixtureRequest, url: str) -> Callable[[Write], Any]:
    """What runs a write on a connection of the driver, commits, and returns its result and the keys of the events."""

    async def written(write: Write) -> Any:
        engine = create_async_engine(url.replace("sqlite", "sqlite+aiosqlite", 1))
        broker = install_crud_hooks(engine, {})
        async with engine.connect() as connection:
            result = await connection.run_sync(write)
            await connection.commit()
        events = await broker.list(EventFilter(limit=100))
        broker.uninstall()
        await engine.dispose()
        return result, [event.key for event in events]

    def written_now(write: Write) -> Any:
        engine = sa.create_engine(url)
        broker = install_crud_hooks(engine, {})
        with engine.connect() as connection:
            result = write(connection)
            connection.commit()
        events = broker.list(EventFilter(limit=100))
        broker.uninstall()
        engine.dispose()
        return result, [event.key for event in events]

    if request.param == "sqlite":
        return written_now
    return lambda write: asyncio.run(written(write))


def test_a_delete_that_a_trigger_has_turned_into_something_else(run: Callable[[Write], Any]) -> None:
    """The trigger changes rows, so what SQLite counts of all changes moves; the DELETE has matched nothing nevertheless."""
    delete = notes.delete().where(notes.c.id == sa.bindparam("this"))

    assert run(lambda connection: connection.execute(delete, [{"this": n} for n in (1, 2, 3, 4)]).rowcount) == (2, ["1", "3"])


def test_an_update_of_rows_that_are_not_there(run: Callable[[Write], Any]) -> None:
    """No event about nothing, and the row count that the driver would tell."""
    update = notes.update().where(notes.c.id == sa.bindparam("this"))

    def write(connection: sa.Connection) -> int:
        return connection.execute(update, [{"this": n, "text": f"new {n}"} for n in (7, 1, 8, 3)]).rowcount

    assert run(write) == (2, ["1", "3"])


def test_what_was_written_before_the_set_that_failed(run: Callable[[Write], Any]) -> None:
    """SQLite keeps it, if the caller does, and its events with it."""

    def write(connection: sa.Connection) -> None:
        with pytest.raises(sa.exc.IntegrityError):
            connection.execute(notes.insert(), [{"id": n, "text": text} for n, text in ((5, "a"), (6, "b"), (7, "a"), (8, "c"))])

    assert run(write) == (None, ["5", "6"])

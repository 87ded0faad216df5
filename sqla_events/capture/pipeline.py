"""psycopg's pipeline, where an application has opened one: what a statement did is not known when it has been executed.

SQLAlchemy runs statements there of which nobody wants rows. Of a captured one its rows are wanted, or at least how many
there are: so it is waited for. An INSERT of its parameters, and the events themselves, are not.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Dialect
from sqlalchemy.util import await_only

WAITS = "sqla_events_waits"
"""Execution option of a statement of our own whose rows are wanted."""


def is_open(dbapi_cursor: Any, dialect: Dialect) -> bool:
    """Whether the cursor's connection is in a pipeline."""
    return dialect.driver == "psycopg" and bool(_raw(dbapi_cursor).connection.pgconn.pipeline_status)


def settle(dbapi_cursor: Any, dialect: Dialect) -> None:
    """Wait for what is in the pipeline, if there is one, so that the cursor has its rows and their number.

    :raises: the driver's error, of the first statement in it that failed.
    """
    if not is_open(dbapi_cursor, dialect):
        return
    if dialect.is_async:
        await_only(_settled(dbapi_cursor))
        return
    with dbapi_cursor.connection.pipeline() as own:
        own.sync()


async def _settled(adapted: Any) -> None:
    raw = adapted._cursor
    async with raw.connection.pipeline() as own:
        await own.sync()
    if raw.description:
        adapted._rows = type(adapted._rows)(await raw.fetchall())


def _raw(dbapi_cursor: Any) -> Any:
    return dbapi_cursor._cursor if hasattr(dbapi_cursor, "_adapt_connection") else dbapi_cursor

"""What a failed database call means: try again at once, later, or never; and which engines cannot be used at all."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from sqlalchemy import exc, pool
from sqlalchemy.engine import URL, Engine

from ..errors import ConfigError, ProviderUnavailable, SchemaError, SQLAlchemyEventsError

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds for which a locked SQLite database is tried again."""


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    loop = asyncio.get_running_loop()
    deadline, failures = loop.time() + PATIENCE, 0
    while True:
        try:
            return await call()
        except Exception as error:
            failures += 1
            if not is_locked(error) or loop.time() > deadline:
                raise translated(error) from error
        await asyncio.sleep(random.uniform(0.5, 1.0) * min(0.005 * 2**failures, 0.25))  # noqa: S311 - spreads load


def is_locked(error: BaseException) -> bool:
    """Whether somebody else is writing to the SQLite database."""
    text = str(error)
    return "database is locked" in text or "database table is locked" in text or "database schema is locked" in text


_TRANSIENT = {"OperationalError", "InterfaceError", "InternalError", "PostgresConnectionError", "InternalClientError"}
_MISSING = {"42P01", "42703", "3F000"}
"""SQLSTATE of an undefined table, column, schema."""


def translated(error: Exception) -> Exception:
    """What a failed database call means to us; errors that are not the database's come back as they are."""
    if isinstance(error, SQLAlchemyEventsError):
        return error
    cause = error.orig if isinstance(error, exc.DBAPIError) and error.orig is not None else error
    first_line = str(cause).strip().partition("\n")[0]
    if getattr(cause, "sqlstate", None) in _MISSING or "no such table" in first_line or "no such column" in first_line:
        return SchemaError(f"the event tables are missing or outdated ({first_line}); run: sqla-events migrate URL")
    if _is_transient(error, cause):
        return ProviderUnavailable(f"the database does not answer: {type(cause).__name__}: {first_line}")
    return error


def _is_transient(error: Exception, cause: BaseException) -> bool:
    if isinstance(error, (OSError, TimeoutError, exc.TimeoutError, exc.ResourceClosedError)):
        return True
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return True
    return any(kind.__name__ in _TRANSIENT for kind in (*type(error).__mro__, *type(cause).__mro__)) or _by_state(cause)


def _by_state(cause: BaseException) -> bool:
    """asyncpg has a class per SQLSTATE: connection, rolled back, resources, intervention, system, internal."""
    state = getattr(cause, "sqlstate", None)
    return isinstance(state, str) and state[:2] in {"08", "25", "40", "53", "55", "57", "58", "XX"}


def refuse(engine: Engine) -> None:
    name = engine.dialect.name
    if name not in ("postgresql", "sqlite"):
        raise ConfigError(f"the engine is on {name}; the event log needs postgresql or sqlite")
    if in_memory(engine.url):
        raise ConfigError(
            f"{engine.url!r} is SQLite in memory, which only one connection can see; use a file to relay or consume its events"
        )
    if isinstance(engine.pool, (pool.StaticPool, pool.AssertionPool, pool.SingletonThreadPool)):
        raise ConfigError(
            f"the engine has a {type(engine.pool).__name__}; relay and consumers need connections of their own: use QueuePool or NullPool"
        )
    refuse_autocommit(engine)


def refuse_autocommit(engine: Engine) -> None:
    """Raise ConfigError for an engine whose connections commit every statement."""
    levels = (
        engine.get_execution_options().get("isolation_level"),
        getattr(engine.dialect, "_on_connect_isolation_level", None),
    )
    if any(isinstance(level, str) and level.upper() == "AUTOCOMMIT" for level in levels):
        raise ConfigError(
            "the engine is in AUTOCOMMIT: an event could be committed without its write; use it without isolation_level='AUTOCOMMIT'"
        )


def in_memory(url: URL) -> bool:
    """Whether it names an SQLite database without a file."""
    name = url.database or ""
    return url.get_backend_name() == "sqlite" and (
        name in ("", ":memory:")
        or name.startswith("file::memory:")
        or url.query.get("mode") == "memory"
        or "mode=memory" in name
    )

"""The application's database as the relay sees it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

from sqlalchemy import create_engine, exc
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from ..errors import ConfigError, ProviderUnavailable
from .faces import AsyncFace, Face, ThreadedFace
from .failures import patiently, refuse, translated

T = TypeVar("T")

INSTALL = {
    "postgresql+psycopg": "; install libpq, or: pip install 'psycopg[binary]'",
    "sqlite+aiosqlite": "; install it: pip install 'sqla-events[sqlite]'",
}
"""What a driver needs that does not come with sqla-events."""


def database_url(url: str | URL) -> URL:
    """The URL, with psycopg where it is PostgreSQL's and names no driver: SQLAlchemy would take one that we do not install.

    :raises ConfigError: for a text that is no URL (it is not shown where it may hold a password), or another database's.
    """
    try:
        target = make_url(url)
    except (exc.ArgumentError, ValueError):
        shown = "" if "@" in str(url) else f" {str(url)!r}"
        raise ConfigError(
            f"the database URL{shown} cannot be read; write postgresql+psycopg://user@host:port/database or sqlite:///file.db"
        ) from None
    name = target.get_backend_name()
    if name not in ("postgresql", "postgres", "sqlite"):
        raise ConfigError(f"the database is {name!r}; the event log needs postgresql or sqlite")
    return target.set(drivername="postgresql+psycopg") if target.drivername in ("postgresql", "postgres") else target


def engine_of(url: str | URL) -> Engine | AsyncEngine:
    """An engine for a URL, see :func:`database_url`: an AsyncEngine where its driver is an asyncio one.

    :raises ConfigError: for a URL that is none, or whose driver is not installed.
    """
    target = database_url(url)
    try:
        is_async = target.get_dialect().is_async and target.get_driver_name() != "psycopg"
        return create_async_engine(target) if is_async else create_engine(target)
    except (exc.ArgumentError, exc.NoSuchModuleError, ImportError) as error:
        hint = INSTALL.get(target.drivername, "") if isinstance(error, ImportError) else ""
        raise ConfigError(f"the database URL cannot be used: {str(error).splitlines()[0]}{hint}") from error


class Database:
    """The application's database as the relay sees it: own connections, READ COMMITTED, awaitable.

    :param engine: the application's Engine or AsyncEngine, on PostgreSQL or SQLite.
    :raises ConfigError: for another database, SQLite in memory, an engine in AUTOCOMMIT, or a pool that has only one
        connection.
    """

    def __init__(self, engine: Engine | AsyncEngine) -> None:
        base = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
        refuse(base)
        own = Engine(base.pool.recreate(), base.dialect, base.url, hide_parameters=base.hide_parameters)
        if base.dialect.name == "postgresql":
            own = own.execution_options(isolation_level="READ COMMITTED")
        self.dialect = base.dialect.name
        self.driver = base.dialect.driver
        self.url = base.url
        self._face: Face = AsyncFace(own) if isinstance(engine, AsyncEngine) else ThreadedFace(own)

    async def run(self, fn: Callable[..., T], *args: Any) -> T:
        """Call ``fn(connection, *args)`` in one transaction on a connection of the pool; commit, or roll back if it raises.

        On SQLite ``fn`` is called again, for up to 30 s, while others hold the database locked: it must not have
        effects outside the transaction.

        :raises ProviderUnavailable: if the database does not answer, or answers that it cannot now.
        :raises SchemaError: if a table or column is not there.
        """
        return await patiently(lambda: self._face.run(fn, args))

    @contextlib.asynccontextmanager
    async def hold(self, *, autocommit: bool = False) -> AsyncIterator[Held]:
        """One connection kept until the end of the block; ``autocommit`` saves reads of one statement two round trips."""
        held = Held(self._face, autocommit and self.dialect == "postgresql")
        try:
            yield held
        finally:
            await held.close()

    async def listen(self, channel: str, heard: Callable[[], object]) -> None:
        """LISTEN on a channel of PostgreSQL until cancelled; ``heard`` is called on any thread.

        :raises ConfigError: if the driver cannot.
        :raises ProviderUnavailable: when the connection is lost.
        """
        try:
            await self._face.listen(channel, heard)
        except Exception as error:
            raise translated(error) from error
        raise ProviderUnavailable("the connection that listens was closed")

    async def close(self) -> None:
        """Close every connection. May be called twice."""
        await self._face.dispose()


@contextlib.contextmanager
def pinned(connection: Connection) -> Iterator[None]:
    """Keep a transaction pooler from changing the server between preparing and executing a statement.

    SQLAlchemy's asyncpg dialect does these as two steps; in autocommit a pooler (PgBouncer in transaction mode) takes the
    server away after the first, and the prepared statement "does not exist". So a transaction is opened behind the
    dialect's back. Nothing happens with other drivers, or inside a transaction.
    """
    autocommit = connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT"
    if connection.dialect.driver != "asyncpg" or not autocommit:
        yield
        return
    _raw(connection, "BEGIN")
    try:
        yield
    except BaseException:
        _raw(connection, "ROLLBACK")
        raise
    _raw(connection, "COMMIT")


def _raw(connection: Connection, statement: str) -> None:
    adapted: Any = connection.connection.dbapi_connection
    adapted.run_async(lambda link: link.execute(statement))


def _call_pinned(connection: Connection, fn: Callable[..., T], *args: Any) -> T:
    with pinned(connection):
        return fn(connection, *args)


class Held:
    """A kept connection. After a failure the next call makes a new one."""

    def __init__(self, face: Face, autocommit: bool) -> None:
        self._face = face
        self._autocommit = autocommit
        self._link: Any = None
        self.failures = 0
        """How often the connection was lost: what was known about the server's transactions is void after it grows."""

    async def run(self, fn: Callable[..., T], *args: Any) -> T:
        """Call ``fn(connection, *args)`` in a transaction of its own (or, with ``autocommit``, each statement in one).

        :raises ProviderUnavailable: see :meth:`Database.run`.
        :raises SchemaError: see :meth:`Database.run`.
        """
        return await patiently(lambda: self._once(_call_pinned, (fn, *args)))

    async def read(self, fn: Callable[..., T], *args: Any) -> T:
        """As :meth:`run`, for a function that sends its statement to the driver itself, in one go, and so needs no pinning."""
        return await patiently(lambda: self._once(fn, args))

    async def _once(self, fn: Callable[..., T], args: tuple[Any, ...]) -> T:
        if self._link is None:
            self._link = await self._face.open(self._autocommit)
        try:
            result: T = await self._face.call(self._link, fn, args)
        except BaseException:
            self.failures += 1
            await self.close(broken=True)
            raise
        return result

    async def close(self, broken: bool = False) -> None:
        """Give the connection back, or throw it away if it is ``broken``."""
        link, self._link = self._link, None
        if link is not None:
            await self._face.shut(link, broken)

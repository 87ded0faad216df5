"""Where sync meets async, and the only file that knows: database calls, loop threads, doorbells, signals.

Everything about SQL is a plain function of a SQLAlchemy Connection; :class:`Database` calls it through
``AsyncConnection.run_sync`` for an AsyncEngine and on a thread for an Engine. So there is one asyncio implementation of
relay and consumer, and no function exists twice.

Why a pool of our own: it is made from the application's (``Pool.recreate``: same creator, same connect listeners), so the
relay cannot starve the application of connections, an asyncpg engine can be served from another event loop than the
application's, and what we write is never taken for the application's writes.

Why READ COMMITTED whatever the engine says: each statement must see what was committed before it. Under REPEATABLE READ
a position's commit would fail whenever anybody touched its row, under AUTOCOMMIT no outbox keeps its promise.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from sqlalchemy import exc, pool
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.util import await_only

from .errors import ConfigError, ProviderUnavailable, SchemaError, SQLAlchemyEventsError

T = TypeVar("T")
Work = Callable[..., Any]
"""A function of a Connection and further arguments."""

LISTEN_SECONDS = 0.2
"""After which a thread that listens looks whether it should end."""

PATIENCE = 30.0
"""Seconds for which a locked SQLite database is tried again."""


class Database:
    """The application's database as the relay sees it: own connections, READ COMMITTED, awaitable.

    :param engine: the application's Engine or AsyncEngine, on PostgreSQL or SQLite.
    :raises ConfigError: for another database, SQLite in memory, an engine in AUTOCOMMIT, or a pool that has only one
        connection.
    """

    def __init__(self, engine: Engine | AsyncEngine) -> None:
        base = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
        _refuse(base)
        own = Engine(base.pool.recreate(), base.dialect, base.url, hide_parameters=base.hide_parameters)
        if base.dialect.name == "postgresql":
            own = own.execution_options(isolation_level="READ COMMITTED")
        self.dialect = base.dialect.name
        self.driver = base.dialect.driver
        self.url = base.url
        self._face: _Face = _Async(own) if isinstance(engine, AsyncEngine) else _Threaded(own)

    async def run(self, fn: Callable[..., T], *args: Any) -> T:
        """Call ``fn(connection, *args)`` in one transaction on a connection of the pool; commit, or roll back if it raises.

        On SQLite ``fn`` is called again, for up to 30 s, while others hold the database locked: it must not have
        effects outside the transaction.

        :raises ProviderUnavailable: if the database does not answer, or answers that it cannot now.
        :raises SchemaError: if a table or column is not there.
        """
        return await _patiently(lambda: self._face.run(fn, args))

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


class Held:
    """A kept connection. After a failure the next call makes a new one."""

    def __init__(self, face: _Face, autocommit: bool) -> None:
        self._face = face
        self._autocommit = autocommit
        self._link: Any = None
        self.failures = 0
        """How often the connection was lost: what was known about the server's transactions is void after it grows."""

    async def run(self, fn: Callable[..., T], *args: Any) -> T:
        """Call ``fn(connection, *args)`` in a transaction of its own (or in none, with ``autocommit``).

        :raises ProviderUnavailable: see :meth:`Database.run`.
        :raises SchemaError: see :meth:`Database.run`.
        """
        return await _patiently(lambda: self._once(fn, args))

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


# The two faces ------------------------------------------------------------------------------------------------------


class _Face(Protocol):
    async def run(self, fn: Work, args: tuple[Any, ...]) -> Any: ...

    async def open(self, autocommit: bool) -> Any: ...

    async def call(self, link: Any, fn: Work, args: tuple[Any, ...]) -> Any: ...

    async def shut(self, link: Any, broken: bool) -> None: ...

    async def listen(self, channel: str, heard: Callable[[], object]) -> None: ...

    async def dispose(self) -> None: ...


class _Async:
    """An AsyncEngine's face: the greenlet bridge of SQLAlchemy."""

    def __init__(self, engine: Engine) -> None:
        self._engine = AsyncEngine(engine)

    async def run(self, fn: Work, args: tuple[Any, ...]) -> Any:
        return await _uninterrupted(self._run(fn, args))

    async def _run(self, fn: Work, args: tuple[Any, ...]) -> Any:
        async with self._engine.connect() as link:
            return await link.run_sync(_transact, fn, args)

    async def open(self, autocommit: bool) -> AsyncConnection:
        async def connect() -> AsyncConnection:
            link = await self._engine.connect()
            return await link.execution_options(isolation_level="AUTOCOMMIT") if autocommit else link

        return await _uninterrupted(connect(), lambda link: self.shut(link, broken=True))

    async def call(self, link: AsyncConnection, fn: Work, args: tuple[Any, ...]) -> Any:
        return await _uninterrupted(link.run_sync(_transact, fn, args))

    async def shut(self, link: AsyncConnection, broken: bool) -> None:
        await _uninterrupted(link.run_sync(_shut, broken))

    async def listen(self, channel: str, heard: Callable[[], object]) -> None:
        link = await self.open(autocommit=True)
        try:
            driver: Any = (await link.get_raw_connection()).driver_connection
            if hasattr(driver, "add_listener"):
                await _listen_asyncpg(driver, channel, heard)
            else:
                await link.exec_driver_sql(f'LISTEN "{channel}"')
                async for _ in driver.notifies():
                    heard()
        finally:
            await self.shut(link, broken=True)

    async def dispose(self) -> None:
        await self._engine.dispose()


class _Threaded:
    """An Engine's face: threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._threads = ThreadPoolExecutor(64, "sqla-events-db")

    async def _in_thread(self, fn: Work, *args: Any, undo: Callable[[Any], Awaitable[None]] | None = None) -> Any:
        return await _uninterrupted(asyncio.get_running_loop().run_in_executor(self._threads, fn, *args), undo)

    async def run(self, fn: Work, args: tuple[Any, ...]) -> Any:
        return await self._in_thread(self._run, fn, args)

    def _run(self, fn: Work, args: tuple[Any, ...]) -> Any:
        with self._engine.connect() as link:
            return _transact(link, fn, args)

    async def open(self, autocommit: bool) -> Connection:
        def connect() -> Connection:
            link = self._engine.connect()
            return link.execution_options(isolation_level="AUTOCOMMIT") if autocommit else link

        link: Connection = await self._in_thread(connect, undo=lambda link: self.shut(link, broken=True))
        return link

    async def call(self, link: Connection, fn: Work, args: tuple[Any, ...]) -> Any:
        return await self._in_thread(_transact, link, fn, args)

    async def shut(self, link: Connection, broken: bool) -> None:
        await self._in_thread(_shut, link, broken)

    async def listen(self, channel: str, heard: Callable[[], object]) -> None:
        stop = threading.Event()
        listening = asyncio.get_running_loop().run_in_executor(self._threads, self._listen, channel, heard, stop)
        try:
            await asyncio.shield(listening)
        finally:
            stop.set()
            await asyncio.wait({listening}, timeout=5 * LISTEN_SECONDS)

    def _listen(self, channel: str, heard: Callable[[], object], stop: threading.Event) -> None:
        link = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            driver: Any = link.connection.driver_connection
            if not hasattr(driver, "notifies") or not callable(driver.notifies):
                raise ConfigError(f"the driver {self._engine.dialect.driver} cannot listen; use psycopg or asyncpg")
            link.exec_driver_sql(f'LISTEN "{channel}"')
            while not stop.is_set():
                for _ in driver.notifies(timeout=LISTEN_SECONDS):
                    heard()
        finally:
            _shut(link, broken=True)

    async def dispose(self) -> None:
        await self._in_thread(self._engine.dispose)


async def _listen_asyncpg(driver: Any, channel: str, heard: Callable[[], object]) -> None:
    ended = asyncio.Event()
    driver.add_termination_listener(lambda *_: ended.set())
    await driver.add_listener(channel, lambda *_: heard())
    await ended.wait()


def _transact(link: Connection, fn: Work, args: tuple[Any, ...]) -> Any:
    with link.begin():
        return fn(link, *args)


def _shut(link: Connection, broken: bool) -> None:
    with contextlib.suppress(Exception):  # a connection that cannot even be closed is what we are getting rid of
        if broken:
            link.invalidate()
        link.close()


async def _uninterrupted(work: Awaitable[T], undo: Callable[[T], Awaitable[None]] | None = None) -> T:
    """Await to the end even if cancelled: a connection must not be closed or used again while a call runs on it.

    ``undo`` gets the result that a cancelled caller will not have.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=5.0)
        if not task.done():
            task.cancel()
        elif not task.cancelled() and task.exception() is None and undo is not None:
            await undo(task.result())
        raise


# Failures -----------------------------------------------------------------------------------------------------------


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
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


def _refuse(engine: Engine) -> None:
    name = engine.dialect.name
    if name not in ("postgresql", "sqlite"):
        raise ConfigError(f"the engine is on {name}; the event log needs postgresql or sqlite")
    if name == "sqlite" and in_memory(engine):
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


def in_memory(engine: Engine) -> bool:
    """Whether an SQLite engine has no file."""
    name = engine.url.database or ""
    return (
        name in ("", ":memory:")
        or name.startswith("file::memory:")
        or engine.url.query.get("mode") == "memory"
        or "mode=memory" in name
    )


# Loops, threads, bells ----------------------------------------------------------------------------------------------


class LoopThread:
    """An event loop on a thread of its own, for synchronous applications."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._finish()

    def _finish(self) -> None:
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def call(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the loop; the future is for other threads to wait on."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call_soon(self, fn: Callable[..., object], *args: Any) -> None:
        """Call ``fn`` on the loop, soon."""
        self._loop.call_soon_threadsafe(fn, *args)

    def stop(self) -> None:
        """Cancel what still runs and wait until the thread has ended. May be called twice."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._loop.stop)
            if self._thread is not threading.current_thread():
                self._thread.join()


async def in_thread(fn: Callable[..., T], *args: Any) -> T:
    """Call a function that blocks, on a thread."""
    return await asyncio.to_thread(fn, *args)


class Doorbell:
    """Says that there may be something new; whoever listens looks. Rung from any thread, at a cost of microseconds.

    It is rung a little before a commit can be seen, and rings that come together are one: an ear that was woken and
    found nothing looks again soon.
    """

    def __init__(self) -> None:
        self._ears: tuple[Ear, ...] = ()

    def ring(self) -> None:
        """Wake every listener."""
        for ear in self._ears:
            ear.hear()

    def _add(self, ear: Ear) -> None:
        self._ears = (*self._ears, ear)

    def _remove(self, ear: Ear) -> None:
        self._ears = tuple(other for other in self._ears if other is not ear)


class Ear:
    """One listener, on the running loop, of any number of bells."""

    def __init__(self, *bells: Doorbell) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._pending = False
        self._bells = bells
        for bell in bells:
            bell._add(self)

    def hear(self) -> None:
        """Wake whoever waits; from any thread."""
        if not self._pending:
            self._pending = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, seconds: float | None) -> bool:
        """Wait for a ring, at most so long; whether there was one since the last call."""
        if not self._event.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._event.wait()
        return self.clear()

    def clear(self) -> bool:
        """Forget the rings so far; whether there were any."""
        self._pending = False  # before the event: what rings from here on sets it again
        rung = self._event.is_set()
        self._event.clear()
        return rung

    def close(self) -> None:
        """Stop listening."""
        for bell in self._bells:
            bell._remove(self)


class Runnable(Protocol):
    """What :func:`run_until_signal` runs."""

    async def __aenter__(self) -> Any: ...

    async def __aexit__(self, *error: object) -> Any: ...


def run_until_signal(service: Runnable) -> None:
    """Enter ``service``, wait for SIGINT or SIGTERM, leave it. Blocks; call it on the main thread."""
    asyncio.run(_run_until_signal(service))


async def _run_until_signal(service: Runnable) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, stop.set)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
    async with service:
        await stop.wait()


# Waiting from wherever the caller stands ----------------------------------------------------------------------------


def in_coroutine() -> bool:
    """Whether a loop runs in this thread, so that blocking here would block everybody on it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def answer(question: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop | None) -> Any:
    """The answer of a coroutine that runs on ``loop`` (None: on one of its own): the answer itself, or an awaitable in a coroutine."""
    if loop is None:
        return question if in_coroutine() else asyncio.run(question)
    future = asyncio.run_coroutine_threadsafe(question, loop)
    return asyncio.wrap_future(future) if in_coroutine() else future.result()


def wait_for(future: Future[T], timeout: float | None) -> T:
    """Wait for a future where the caller stands: in a thread by blocking, under an AsyncSession by awaiting.

    :raises TimeoutError: after ``timeout`` seconds.
    :raises ConfigError: in a coroutine that calls synchronous SQLAlchemy: waiting there would stop the loop.
    """
    if not in_coroutine():
        return future.result(timeout)
    try:
        return await_only(asyncio.wait_for(asyncio.wrap_future(future), timeout))
    except exc.MissingGreenlet as error:
        raise ConfigError(
            "mode 'sync' waits for handlers at commit, and a synchronous Session cannot wait inside a coroutine; "
            "use AsyncSession, or mode 'async'"
        ) from error

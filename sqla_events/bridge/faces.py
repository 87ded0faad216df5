"""One connection or one call, on an AsyncEngine or on an Engine: the two faces of the same functions."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ..errors import ConfigError

T = TypeVar("T")
Work = Callable[..., Any]
"""A function of a Connection and further arguments."""

LAST_WORDS = 1.0
"""Seconds for a thread that listens to end."""


class Face(Protocol):
    async def run(self, fn: Work, args: tuple[Any, ...]) -> Any: ...

    async def open(self, autocommit: bool) -> Any: ...

    async def call(self, link: Any, fn: Work, args: tuple[Any, ...]) -> Any: ...

    async def shut(self, link: Any, broken: bool) -> None: ...

    async def listen(self, channel: str, heard: Callable[[], object]) -> None: ...

    async def dispose(self) -> None: ...


class AsyncFace:
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


class ThreadedFace:
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
        stop, stopped = socket.socketpair()
        listening = asyncio.get_running_loop().run_in_executor(self._threads, self._listen, channel, heard, stopped)
        try:
            await asyncio.shield(listening)
        finally:
            stop.close()
            await asyncio.wait({listening}, timeout=LAST_WORDS)

    def _listen(self, channel: str, heard: Callable[[], object], stopped: socket.socket) -> None:
        """Until the other end of ``stopped`` is closed. Sleeps in between: the driver's own wait wakes ten times a second."""
        with stopped, selectors.DefaultSelector() as waiting:
            link = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            try:
                driver: Any = link.connection.driver_connection
                if not hasattr(driver, "notifies") or not callable(driver.notifies):
                    raise ConfigError(f"the driver {self._engine.dialect.driver} cannot listen; use psycopg or asyncpg")
                link.exec_driver_sql(f'LISTEN "{channel}"')
                waiting.register(stopped, selectors.EVENT_READ)
                waiting.register(driver.fileno(), selectors.EVENT_READ)
                while True:
                    for _ in driver.notifies(timeout=0):
                        heard()
                    if any(key.fileobj is stopped for key, _ in waiting.select()):
                        return
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

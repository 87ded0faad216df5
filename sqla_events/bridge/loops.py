"""Event loops on threads, loops in the foreground, and waiting from wherever the caller stands."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from sqlalchemy import exc
from sqlalchemy.util import await_only

from ..errors import ConfigError

T = TypeVar("T")


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

    @property
    def here(self) -> bool:
        """Whether the caller runs on this loop, where waiting for it would never end."""
        return self._thread is threading.current_thread()

    def stop(self) -> None:
        """Cancel what still runs and wait until the thread has ended. May be called twice."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._loop.stop)
            if not self.here:
                self._thread.join()


async def in_thread(fn: Callable[..., T], *args: Any) -> T:
    """Call a function that blocks, on a thread."""
    return await asyncio.to_thread(fn, *args)


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

"""Starting and stopping a broker, and asking it: what runs is one :class:`Runtime`, on a thread of ours or on the caller's loop.

A question is answered on the loop of what runs; where nothing runs, by a runtime that is made for it and closed behind it.

Threads do not survive a fork (gunicorn with preload, multiprocessing): in the child nothing runs until it starts it. What the
parent runs is kept there all the same, untouched: taken down, it would say goodbye on the parent's connections.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakSet

from .bridge import LoopThread, answer
from .config import Config
from .errors import ConfigError
from .runtime import Runtime

P = ParamSpec("P")
T = TypeVar("T")


class Lifecycle:
    """What runs of one broker.

    :param make: a new runtime, on the loop that it is to run on.
    :param lock: held while it starts or stops in a thread.
    """

    def __init__(self, config: Config, make: Callable[[], Runtime], lock: AbstractContextManager[Any]) -> None:
        self._config = config
        self._make = make
        self._lock = lock
        self.runtime: Runtime | None = None
        """None while nothing runs."""
        self._thread: LoopThread | None = None
        _all.add(self)

    def forget(self) -> object:
        """Take what runs for the business of another process; returns it."""
        inherited = self.runtime, self._thread
        self.runtime = self._thread = None
        return inherited

    # On a thread of ours -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Run on a thread with a loop of its own. Does nothing if it runs already, or is not enabled."""
        with self._lock:
            if self.runtime is not None or not self._config.enabled:
                return
            thread = LoopThread("sqla-events")
            try:
                self.runtime = thread.call(self._open()).result()
            except BaseException:
                thread.stop()
                raise
            self._thread = thread

    def stop(self, timeout: float | None) -> None:
        """End what :meth:`start` started; handlers may finish within ``timeout`` seconds (None: ``shutdown_timeout``).

        :raises ConfigError: in a coroutine handler, which would wait for itself.
        """
        with self._lock:
            runtime, thread = self.runtime, self._thread
            if runtime is None or thread is None:
                return
            if thread.here:
                raise ConfigError("stop() in a coroutine handler waits for itself: call it on another thread, or leave it to who started")
            self.runtime = self._thread = None
        try:
            thread.call(runtime.close(self._config.shutdown_timeout if timeout is None else timeout)).result()
        finally:
            thread.stop()

    # On the caller's loop ----------------------------------------------------------------------------------------

    async def enter(self) -> None:
        """Run on this loop.

        :raises ConfigError: if it runs already.
        """
        if self.runtime is not None:
            raise ConfigError("this broker runs already; stop() it first")
        if self._config.enabled:
            self.runtime = await self._open()

    async def leave(self) -> None:
        """End what :meth:`enter` started; handlers may finish within ``shutdown_timeout``."""
        runtime, self.runtime = self.runtime, None
        if runtime is not None:
            await runtime.close(self._config.shutdown_timeout)

    async def _open(self) -> Runtime:
        runtime = self._make()
        try:
            await runtime.open()
        except BaseException:
            await runtime.close(0)
            raise
        return runtime

    # Asking it ---------------------------------------------------------------------------------------------------

    def tell(self, what: Callable[Concatenate[Runtime, P], object], *arguments: P.args, **options: P.kwargs) -> None:
        """Call a method of what runs, on its loop and whatever the caller's thread; nothing happens if nothing runs."""
        runtime = self.runtime
        if runtime is not None:
            with suppress(RuntimeError):  # its loop has ended since
                runtime.loop.call_soon_threadsafe(partial(what, runtime, *arguments, **options))

    def ask(self, question: Callable[[Runtime], Coroutine[Any, Any, T]]) -> Any:
        """The answer; in a coroutine, an awaitable of it."""
        runtime = self.runtime
        if runtime is not None:
            return answer(question(runtime), runtime.loop)
        return answer(self._ask_once(question), None)

    async def _ask_once(self, question: Callable[[Runtime], Coroutine[Any, Any, T]]) -> T:
        runtime = self._make()
        try:
            await runtime.connect()
            return await question(runtime)
        finally:
            await runtime.close(0)


_all: WeakSet[Lifecycle] = WeakSet()
_of_the_parent: list[Any] = []


def _forked() -> None:
    _of_the_parent.extend([one.forget() for one in _all])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)

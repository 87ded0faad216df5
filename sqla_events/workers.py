"""Where handlers run: coroutine handlers on the event loop, plain functions on threads, jobs in, outcomes back on the loop.

Why not ``asyncio.to_thread``: a future and a wake-up of the loop per call cost 40-60 microseconds. Here a thread takes
jobs from one queue and returns outcomes through another, and wakes the loop once for as many as have come together.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

_handling: contextvars.ContextVar[bool] = contextvars.ContextVar("sqla_events_handling", default=False)


def in_handler() -> bool:
    """Whether the caller runs inside a handler: it must not wait there for handlers."""
    return _handling.get()


TURNS = 16
"""Jobs in a row after which a worker lets the loop read and commit, where its handlers never wait."""


class Job(Protocol):
    """One attempt of one handler with one event."""

    def call(self) -> None:
        """Run a plain handler; note the outcome in the job. Raises nothing."""
        ...

    async def call_async(self) -> None:
        """Run a coroutine handler; note the outcome in the job. Raises nothing but cancellation."""
        ...


class Tasks:
    """``count`` coroutines that run jobs one after the other on the running loop.

    Why not asyncio.Queue: its put and get cost two microseconds a job, as much as reading the event.
    """

    def __init__(self, count: int, done: Callable[[Any], None]) -> None:
        self._count = count
        self._done = done
        self._jobs: deque[Job] = deque()
        self._free: list[asyncio.Future[None]] = []
        """What workers wait on that have nothing to do."""
        self._tasks: list[asyncio.Task[None]] = []

    def put(self, job: Job) -> None:
        """Run a job as soon as a worker is free; ``done`` is called with it on the loop."""
        self._jobs.append(job)
        if self._free:
            self._free.pop().set_result(None)
        elif len(self._tasks) < self._count:
            name = f"sqla-events-worker-{len(self._tasks)}"
            self._tasks.append(asyncio.create_task(self._work(), name=name))

    async def _work(self) -> None:
        turns = 0
        _handling.set(True)
        while True:
            while self._jobs:
                job = self._jobs.popleft()
                await job.call_async()
                self._done(job)
                turns += 1
                if turns % TURNS == 0:
                    await asyncio.sleep(0)
            await self._some()

    async def _some(self) -> None:
        """Wait until there may be jobs."""
        free = asyncio.get_running_loop().create_future()
        self._free.append(free)
        await free

    async def stop(self) -> None:
        """Cancel whatever still runs and wait until it is gone."""
        self._free = []
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []


class Threads:
    """``count`` threads that run jobs; outcomes come back to the loop that made this, many at a time."""

    def __init__(self, count: int, done: Callable[[Any], None]) -> None:
        self._count = count
        self._done = done
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._finished: deque[Job] = deque()
        self._loop = asyncio.get_running_loop()
        self._threads: list[threading.Thread] = []
        self._woken = False

    def put(self, job: Job) -> None:
        """Run a job as soon as a thread is free; ``done`` is called with it on the loop."""
        if not self._threads:
            self._threads = [self._start(number) for number in range(self._count)]
        self._jobs.put(job)

    def _start(self, number: int) -> threading.Thread:
        thread = threading.Thread(target=self._work, name=f"sqla-events-worker-{number}", daemon=True)
        thread.start()
        return thread

    def _work(self) -> None:
        _handling.set(True)
        while (job := self._jobs.get()) is not None:
            job.call()
            self._finished.append(job)
            if not self._woken:
                self._woken = True
                self._wake()

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._collect)
        except RuntimeError:  # the loop is closed: nobody is left to tell, the event comes back after the restart
            return

    def _collect(self) -> None:
        self._woken = False  # before the loop below: what is appended from here on wakes us again
        while self._finished:
            self._done(self._finished.popleft())

    async def stop(self) -> None:
        """Let threads end after the job they run. One that does not return is left behind; it dies with the process."""
        for _ in self._threads:
            self._jobs.put(None)
        self._threads = []

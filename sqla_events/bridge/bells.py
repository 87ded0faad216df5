"""Doorbells: thread-safe wake-ups for coroutines."""

from __future__ import annotations

import asyncio
import contextlib


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

    def add(self, ear: Ear) -> None:
        """Have an ear woken."""
        self._ears = (*self._ears, ear)

    def remove(self, ear: Ear) -> None:
        """Not any more."""
        self._ears = tuple(other for other in self._ears if other is not ear)


class Ear:
    """One listener, on the running loop, of any number of bells."""

    def __init__(self, *bells: Doorbell) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._pending = False
        self._bells = bells
        for bell in bells:
            bell.add(self)

    def hear(self) -> None:
        """Wake whoever waits; from any thread."""
        if not self._pending:
            self._pending = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._event.set)

    @property
    def rung(self) -> bool:
        """Whether there was a ring since the last call of :meth:`wait` or :meth:`clear`."""
        return self._event.is_set()

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
            bell.remove(self)

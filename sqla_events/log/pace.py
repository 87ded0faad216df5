"""When to look at the log again."""

from __future__ import annotations

import time
from collections.abc import Callable

SHORTEST = 0.004
"""Seconds between looks while something happens: events of other processes are found within a few times this."""
AFTER_BELL = 0.0005
"""Seconds before the second look after a bell, growing by half: it rings a moment before the commit can be seen."""
BELL_LASTS = 0.1
"""Seconds after which a ring that brought nothing is forgotten."""


class Pace:
    """Seconds to the next look, from how long nothing has come: as long again, between SHORTEST and ``longest``.

    So a busy log is looked at every few milliseconds, a quiet one every ``longest`` seconds, and the cost of looking stays
    in proportion to what comes.
    """

    def __init__(self, longest: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._longest = longest
        self._clock = clock
        self._active = clock()
        self._rung: float | None = None

    def found(self) -> None:
        """There was something."""
        self._active, self._rung = self._clock(), None

    def rung(self) -> None:
        """The bell rang."""
        self._rung = self._clock()

    def pause(self) -> float:
        """Seconds to wait before the next look."""
        now = self._clock()
        if self._rung is not None and now - self._rung < BELL_LASTS:
            return max(AFTER_BELL, (now - self._rung) / 2)
        return min(self._longest, max(SHORTEST, now - self._active))

"""When to look at the log again."""

from __future__ import annotations

import time
from collections.abc import Callable

SHORTEST, LIVELY = 0.004, 0.015
"""Seconds between looks while something happens: as long as nothing has come, but within these."""
LIVELY_LASTS = 2.0
"""Seconds after the last event for which something is said to happen; then looks become rare, a quarter of the silence."""
AFTER_BELL = 0.0005
"""Seconds before the second look after a bell, growing by half: it rings a moment before the commit can be seen."""
BELL_LASTS = 0.1
"""Seconds after which a ring that brought nothing is forgotten."""


class Pace:
    """Seconds to the next look, from how long nothing has come; never more than ``longest``.

    So events of other processes are found within a few milliseconds while there are some, and a quiet log costs next to
    nothing.
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
        silence = now - self._active
        return min(self._longest, max(SHORTEST, min(silence, LIVELY) if silence < LIVELY_LASTS else silence / 4))

"""What a reader hands out besides the log's course: dead letters that are redriven, and events that are replayed."""

from __future__ import annotations

import time

from ..bridge import Held
from ..schema import Tables
from .delivery import NEVER, NO_ATTEMPTS, NOBODY, LogDelivery, Settler
from .outcomes import Outcomes
from .reading import Reading
from .replays import Replayed, mark_of
from .rows import Row
from .troubles import redriven

REDRIVE_SECONDS = 1.0
"""Between looks."""


class Again:
    """Looks for them now and then; a full page is followed by the next one at once."""

    def __init__(self, settler: Settler, held: Held, tables: Tables, group: str, reading: Reading) -> None:
        self._settler = settler
        self._held = held
        self._tables = tables
        self._group = group
        self._reading = reading
        self._due_at = 0.0

    async def read(self, outcomes: Outcomes, limit: int) -> list[LogDelivery]:
        """At most so many, if it is time to look; those in hand already are not given again."""
        if time.monotonic() < self._due_at:
            return []
        self._due_at = time.monotonic() + REDRIVE_SECONDS
        waiting = await self._held.run(redriven, self._tables, self._group, outcomes.not_again(), limit)
        if not waiting:
            return []
        rows = await self._held.read(self._reading.by_seq, [one[0] for one in waiting])
        deliveries = [self._delivery(rows[one[0]], *one[1:]) for one in waiting if one[0] in rows]
        outcomes.redriven.update((one.row.seq, one.only or "") for one in deliveries)
        if deliveries and len(waiting) == limit:
            self._due_at = 0.0
        return deliveries

    def _delivery(
        self, row: Row, subscription: str, attempts: int, due: float | None, error: str | None
    ) -> LogDelivery:
        known = {subscription: attempts} if attempts or due else NO_ATTEMPTS
        waits = NEVER if due is None else {subscription: due}
        mark = mark_of(error)
        if mark is None:
            return LogDelivery(self._settler, row, known, NOBODY, subscription, waits)
        return Replayed(self._settler, row, known, NOBODY, subscription, waits, mark)

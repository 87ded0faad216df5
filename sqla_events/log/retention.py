"""Deleting what everybody is through with and what is old enough.

A pass goes from the low end upwards, one window of numbers a step, each a transaction of its own, and ends at the first
window with an event that is young enough. It remembers where nothing is left, so that the next pass does not search through
what this one has deleted: while a transaction holds back vacuum, that would be read again each time.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..event import now
from ..schema import Tables
from .leases import begin_writing
from .query import as_stored, groups

BATCH = 5_000

BATCHES_SECONDS = 7 * 86_400.0
"""How long it is known when an event was done, where no retention deletes it before."""

LOCK = 0x7371_6C61_7265  # "sqlare": one process at a time deletes


@dataclass(frozen=True)
class Sweep:
    """How far a pass is."""

    bottom: int = 0
    """Nothing is left up to here: the next pass begins there."""
    after: int = 0
    """This pass has looked at everything up to here."""
    deleted: int = 0
    """By the last step."""
    over: bool = False
    """Whether the pass has ended."""

    def ended(self) -> Sweep:
        """The beginning of the next pass, after the end of this one."""
        return Sweep(self.bottom, self.bottom, self.deleted, over=True)

    def on(self, last: int, deleted: int, left: bool) -> Sweep:
        """A window up to ``last`` was looked at; whether something of it is left."""
        bottom = last if self.bottom == self.after and not left else self.bottom
        return Sweep(bottom, last, deleted)


BEGINNING = Sweep()


def retain(
    connection: Connection,
    tables: Tables,
    seconds: float,
    sweep: Sweep = BEGINNING,
    part: sa.Table | None = None,
    batch: int = BATCH,
) -> Sweep:
    """One step of a pass: look at ``batch`` numbers, delete the events among them that are older than ``seconds``.

    Never past any group's position, never an event with a delivery that still needs it (retrying, redriven or a dead
    letter). A group that nobody reads any more holds everything from its position on: drop it first.

    :param part: the table to look at, if not all of the log.
    """
    begin_writing(connection)
    bound = bound_of(connection, tables)
    if bound is None or not alone(connection):
        return replace(sweep, deleted=0).ended()
    before, e = now() - dt.timedelta(seconds=seconds), tables.events if part is None else part
    swept = _step(connection, tables, e, before, sweep, bound, batch)
    if swept.over:
        forget_batches(connection, tables, swept.bottom)
    return swept


def _step(
    connection: Connection, tables: Tables, e: sa.Table, before: dt.datetime, sweep: Sweep, bound: int, batch: int
) -> Sweep:
    first = connection.scalar(sa.select(sa.func.min(e.c.seq)).where(e.c.seq > sweep.after))
    if first is None or first > bound:
        return replace(sweep, deleted=0).ended()
    window = e.c.seq.between(first, last := min(first + batch - 1, bound))
    old = e.c.created_at < as_stored(connection, before)
    needed = sa.exists().where(tables.deliveries.c.seq == e.c.seq)
    deleted = connection.execute(sa.delete(e).where(window, old, ~needed)).rowcount
    left = bool(connection.scalar(sa.select(sa.exists().where(window))))
    young = left and connection.scalar(sa.select(sa.exists().where(window, ~old)))
    swept = sweep.on(last, deleted, left)
    return swept.ended() if young or last >= bound else swept


def forget_batches(connection: Connection, tables: Tables, bottom: int) -> None:
    """Delete the batches of events that are gone."""
    b = tables.batches
    for part in groups(connection, tables):
        mine = (b.c.group == part.group, b.c.partition == part.partition)
        connection.execute(sa.delete(b).where(*mine, b.c.high <= bottom))


def prune(connection: Connection, tables: Tables) -> int:
    """Delete batches of a week ago: of older events the log knows that they are done, but not when. Returns how many."""
    begin_writing(connection)
    before = now() - dt.timedelta(seconds=BATCHES_SECONDS)
    return connection.execute(sa.delete(tables.batches).where(tables.batches.c.completed_at < before)).rowcount


def bound_of(connection: Connection, tables: Tables) -> int | None:
    """The highest seq up to which every group is through; None while nobody reads the log at all."""
    bounds = [
        part.position.gaps[0][0] - 1 if part.position.gaps else part.position.high
        for part in groups(connection, tables)
    ]
    return min(bounds) if bounds else None


def alone(connection: Connection) -> bool:
    """Whether nobody else deletes or cuts now; until the end of the transaction."""
    if connection.dialect.name != "postgresql":
        return True
    return bool(connection.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(LOCK))))

"""Deleting what everybody is through with and what is old enough."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..event import now
from ..schema import Tables
from .leases import begin_writing
from .query import as_stored, groups

BATCH = 5_000

BATCHES_SECONDS = 7 * 86_400.0
"""How long it is known when an event was done, where no retention deletes it before."""


def retain(connection: Connection, tables: Tables, seconds: float, batch: int = BATCH) -> int:
    """Delete at most ``batch`` events from the low end that are older than ``seconds``; returns how many. Call it until 0.

    Never past any group's position, never an event with a delivery that still needs it (retrying, redriven or a dead
    letter). A group that nobody reads any more holds everything from its position on: drop it first.
    """
    begin_writing(connection)
    bound = _bound(connection, tables)
    if bound is None:
        return 0
    e, before = tables.events, now() - dt.timedelta(seconds=seconds)
    needed = sa.exists().where(tables.deliveries.c.seq == e.c.seq)
    oldest = (
        sa.select(e.c.seq)
        .where(e.c.seq <= bound, e.c.created_at < as_stored(connection, before), ~needed)
        .order_by(e.c.seq)
        .limit(batch)
    )
    deleted = connection.execute(sa.delete(e).where(e.c.seq.in_(oldest.scalar_subquery()))).rowcount
    if deleted < batch:
        connection.execute(sa.delete(tables.batches).where(tables.batches.c.completed_at < before))
    return deleted


def prune(connection: Connection, tables: Tables, group: str, partition: int) -> int:
    """Delete batches of a week ago: of older events the log knows that they are done, but not when. Returns how many."""
    begin_writing(connection)
    b, before = tables.batches, now() - dt.timedelta(seconds=BATCHES_SECONDS)
    return connection.execute(
        sa.delete(b).where(b.c.group == group, b.c.partition == partition, b.c.completed_at < before)
    ).rowcount


def _bound(connection: Connection, tables: Tables) -> int | None:
    """The highest seq up to which every group is through; None while nobody reads the log at all."""
    bounds = [
        part.position.gaps[0][0] - 1 if part.position.gaps else part.position.high
        for part in groups(connection, tables)
    ]
    return min(bounds) if bounds else None

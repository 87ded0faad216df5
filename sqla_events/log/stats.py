"""How far every group is: lag, age, rate, trouble. Every question is answered by a few index probes, however long the log."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..event import now
from ..position import Position
from ..schema import Tables
from .pauses import PAUSED, paused
from .query import Group, groups, in_utc, newest
from .troubles import FAILED

RATE_SECONDS = 60.0
"""Over which rates are taken."""
BATCHES = 400
"""Batches of a minute, about: commits happen five times a second."""


@dataclass(frozen=True)
class GroupStats:
    """How far one partition of a group is."""

    group: str
    partition: int
    lag: int
    """Numbers in the log that it is not through with, dead letters not counted; more than its events where numbers were
    never used or belong to other partitions."""
    lag_seconds: float
    """Age of the oldest event it is not through with; 0 without any."""
    dead: int
    """Dead letters of the group."""
    owner: str | None
    """Who holds the lease, or held it last."""
    updated_at: dt.datetime | None
    """When it last moved."""
    paused: tuple[str, ...] = ()
    """Subscriptions of the group that are paused for every process."""
    partitions: int = 1
    """Of how many it is one."""
    oldest_pending: dt.datetime | None = None
    """When the oldest event was made that it is not through with."""
    rate: float = 0.0
    """Numbers a second that it got on with, over the last minute."""
    retrying: int = 0
    """Deliveries of the group that failed and will be tried again, redriven dead letters among them."""


def stats(connection: Connection, tables: Tables) -> list[GroupStats]:
    """Every partition of every group."""
    top, parts, counts = newest(connection, tables), groups(connection, tables), _troubles(connection, tables)
    held = paused(connection, tables, [part.group for part in parts])
    return [_stats(connection, tables, part, top, counts, held) for part in parts]


def _troubles(connection: Connection, tables: Tables) -> Counter[tuple[str, bool]]:
    """How many deliveries of a group are dead (True) or to be tried again (False)."""
    d = tables.deliveries
    query = sa.select(d.c.group, d.c.status, sa.func.count()).where(d.c.status != PAUSED).group_by(d.c.group, d.c.status)
    counts: Counter[tuple[str, bool]] = Counter()
    for group, status, count in connection.execute(query):
        counts[group, status == FAILED] += count
    return counts


def _stats(
    connection: Connection,
    tables: Tables,
    part: Group,
    top: int,
    counts: Counter[tuple[str, bool]],
    held: set[tuple[str, str]],
) -> GroupStats:
    lag = max(top - part.position.high, 0) + part.position.pending_below()
    oldest = _oldest(connection, tables, part.position) if lag else None
    return GroupStats(
        group=part.group,
        partition=part.partition,
        lag=lag,
        lag_seconds=max((now() - oldest).total_seconds(), 0.0) if oldest is not None else 0.0,
        dead=counts[part.group, True],
        owner=part.owner,
        updated_at=part.updated_at,
        paused=tuple(sorted(name for group, name in held if group == part.group)),
        partitions=part.partitions,
        oldest_pending=oldest,
        rate=_rate(connection, tables, part),
        retrying=counts[part.group, False],
    )


def _oldest(connection: Connection, tables: Tables, position: Position) -> dt.datetime | None:
    """When the oldest event was made that is in a gap or above; of many gaps the first hundred are looked at."""
    e = tables.events
    for first, last in (*position.gaps[:100], (position.high + 1, 2**62)):
        query = sa.select(e.c.created_at).where(e.c.seq >= first, e.c.seq <= last).order_by(e.c.seq).limit(1)
        since = connection.execute(query).scalar()
        if since is not None:
            return in_utc(since)
    return None


def _rate(connection: Connection, tables: Tables, part: Group) -> float:
    """From the newest batches: how much higher it is than a minute ago."""
    b = tables.batches
    query = sa.select(b.c.high, b.c.completed_at).where(b.c.group == part.group, b.c.partition == part.partition)
    rows = connection.execute(query.order_by(b.c.high.desc(), b.c.completed_at.desc()).limit(BATCHES)).all()
    since = now() - dt.timedelta(seconds=RATE_SECONDS)
    recent = [row.high for row in rows if (at := in_utc(row.completed_at)) is not None and at >= since]
    if not recent:
        return 0.0
    before = rows[len(recent)].high if len(rows) > len(recent) else recent[-1]
    return float(max(recent[0] - before, 0) / RATE_SECONDS)

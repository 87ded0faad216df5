"""Many events by conditions: the log is walked by ``seq`` from where events that fulfil them can be.

There is no index but that of ``seq``; each would be paid at every capture. So a status is found by position and
deliveries, a time by a search for its number, and the other conditions are looked at row by row.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..event import Event, Status
from ..filter import like, matches
from ..position import Ranges, joined, ranges_of
from ..schema import Tables
from .query import as_stored, groups, seen_by, seq_at
from .reading import events_of, select_rows
from .troubles import FAILED

PAGE, LEAST = 500, 20
"""Rows of one read: as many as are wanted at first, then as many as this."""
PIECES = 200
"""Ranges of numbers that one statement names."""
SKEW = dt.timedelta(minutes=10)
"""How far ``created_at`` may be from the order of ``seq``: clocks differ, and whoever publishes may set it."""
TOP = 2**62


def list_events(connection: Connection, tables: Tables, wanted: Any, group: str) -> list[Event]:
    """Events that fulfil an ``EventFilter``, with their status as a group sees it."""
    found: list[Event] = []
    low, high = _between(connection, tables, wanted)
    for pieces in _where(connection, tables, wanted, group):
        inside = joined((max(first, low), min(last, high)) for first, last in pieces if first <= high and last >= low)
        if inside:
            found += _within(connection, tables, wanted, group, inside, wanted.limit - len(found))
        if len(found) >= wanted.limit:
            break
    return found


def _within(
    connection: Connection, tables: Tables, wanted: Any, group: str, pieces: Ranges, limit: int
) -> list[Event]:
    """The first ``limit`` of these numbers."""
    e = events_of(tables)
    where = [*_conditions(connection, e, wanted), sa.or_(*(e.c.seq.between(*piece) for piece in pieces))]
    found: list[Event] = []
    beyond: list[Any] = []
    page = min(max(limit, LEAST), PAGE)
    while len(found) < limit:
        rows = select_rows(connection, tables, [*where, *beyond], page, wanted.newest_first)
        fitting = [row for row in rows if matches(wanted.pattern, row.type)]
        seen = seen_by(connection, tables, fitting, group)
        found += [one for one in seen if wanted.status is None or one.status == wanted.status]
        if len(rows) < page:
            break
        page = PAGE
        beyond = [e.c.seq < rows[-1].seq if wanted.newest_first else e.c.seq > rows[-1].seq]
    return found[:limit]


def _conditions(connection: Connection, e: sa.FromClause, wanted: Any) -> list[Any]:
    where = [e.c[name] == value for name in _EQUAL if (value := getattr(wanted, name)) is not None]
    if wanted.pattern != "*":
        where.append(e.c.type.like(like(wanted.pattern), escape="\\"))
    if wanted.user_id is not None:
        where.append(e.c.user_id == str(wanted.user_id))
    if wanted.since is not None:
        where.append(e.c.created_at >= as_stored(connection, wanted.since))
    if wanted.until is not None:
        where.append(e.c.created_at < as_stored(connection, wanted.until))
    return where


_EQUAL = ("source", "schema", "entity", "operation", "key", "session_id", "instance_id")


# Where they can be --------------------------------------------------------------------------------------------------


def _between(connection: Connection, tables: Tables, wanted: Any) -> tuple[int, int]:
    """The numbers between which the conditions on time and ``after`` leave anything."""
    low, high = 0, TOP
    if wanted.since is not None:
        low = seq_at(connection, tables, wanted.since - SKEW)
    if wanted.until is not None:
        high = seq_at(connection, tables, wanted.until + SKEW)
    if wanted.after is not None and wanted.newest_first:
        high = min(high, wanted.after - 1)
    elif wanted.after is not None:
        low = max(low, wanted.after + 1)
    return low, high


def _where(connection: Connection, tables: Tables, wanted: Any, group: str) -> Iterator[Ranges]:
    """Ranges of numbers that may have the wanted status, in the order in which they are wanted."""
    status, parts = wanted.status and Status(wanted.status), groups(connection, tables, group)
    low = min((part.position.high for part in parts), default=0)
    if status == Status.FAILED:
        yield from _troubled(connection, tables, wanted, group, tables.deliveries.c.status == FAILED)
    elif status == Status.PROCESSING:
        again = _troubled(connection, tables, wanted, group, tables.deliveries.c.status != FAILED)
        gaps = (gap for part in parts for gap in part.position.gaps)
        yield from _pieces(joined((*gaps, *(piece for pieces in again for piece in pieces))), wanted.newest_first)
    elif status == Status.PENDING:
        yield ((low + 1, TOP),)
    else:
        yield ((0, low if status == Status.COMPLETED else TOP),)


def _pieces(ranges: Iterable[tuple[int, int]], newest_first: bool) -> Iterator[Ranges]:
    ordered = sorted(ranges, reverse=newest_first)
    for start in range(0, len(ordered), PIECES):
        yield joined(ordered[start : start + PIECES])


def _troubled(
    connection: Connection, tables: Tables, wanted: Any, group: str, condition: sa.ColumnElement[bool]
) -> Iterator[Ranges]:
    """Events with deliveries like this, page by page."""
    d = tables.deliveries
    order = d.c.seq.desc() if wanted.newest_first else d.c.seq
    beyond: list[Any] = []
    while True:
        query = sa.select(d.c.seq).where(d.c.group == group, d.c.seq > 0, condition, *beyond).distinct()
        seqs: Sequence[int] = connection.scalars(query.order_by(order).limit(PIECES)).all()
        if seqs:
            yield ranges_of(seqs)
        if len(seqs) < PIECES:
            return
        beyond = [d.c.seq < seqs[-1] if wanted.newest_first else d.c.seq > seqs[-1]]

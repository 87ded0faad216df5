"""How a group is cut into partitions: the rows that it has, and cutting it anew for another setting of ``partitions``.

Why it is safe on a live system. A group is cut in one transaction, which locks its rows and finds every lease free:
nobody reads then. Whoever is configured otherwise finds no row with its number of partitions, takes no lease, and waits
until everybody else has stopped. Epochs grow with the cut, so a process that slept through it commits nothing.

What was done stays done: an event is through when the old partition that it belonged to was through with it. How far
each of them got above the slowest is looked up event by event, within :data:`WINDOW`; what lies beyond comes again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..position import Position, Ranges, contains, joined, ranges_of, subtract, union, upto
from ..schema import Tables
from ..signals import logger
from .leases import begin_writing, clock, this_partition
from .reading import partition_numbers
from .settings import ReaderSettings
from .troubles import insert_into

WINDOW = 10_000
"""Numbers above and below the slowest old partition for which a cut knows exactly what is done."""


def cut(connection: Connection, tables: Tables, settings: ReaderSettings) -> bool:
    """See that the group has its rows, one for each partition; False: it is cut otherwise and somebody reads it so."""
    begin_writing(connection)
    t, start = tables.positions, _start(tables, settings)
    _insert(connection, tables, settings, [0], start)
    first = this_partition(t, settings.group, 0)
    connection.execute(sa.select(t.c.epoch).where(*first).with_for_update())  # one at a time
    rows = connection.execute(
        sa.select(t, sa.and_(t.c.owner.is_not(None), t.c.lease_expires > clock(connection)).label("taken"))
        .where(t.c.group == settings.group)
        .order_by(t.c.partition)
        .with_for_update()
    ).all()
    if rows[0].partitions == settings.partitions:
        missing = set(range(settings.partitions)) - {row.partition for row in rows}
        _insert(connection, tables, settings, missing, start)
        return True
    if any(row.taken for row in rows):
        return False
    _cut_anew(connection, tables, settings, rows)
    return True


def _start(tables: Tables, settings: ReaderSettings) -> Any:
    """Where a new group begins."""
    if settings.start is not None and settings.start < 0:
        return sa.select(sa.func.coalesce(sa.func.max(tables.events.c.seq), 0)).scalar_subquery()
    return settings.start or 0


def _insert(connection: Connection, tables: Tables, settings: ReaderSettings, numbers: Any, high: Any, **given: Any) -> None:
    for number in sorted(numbers):
        row = {"group": settings.group, "partition": number, "partitions": settings.partitions, "high": high}
        statement = insert_into(connection, tables.positions).values(**row, updated_at=clock(connection), **given)
        connection.execute(statement.on_conflict_do_nothing())


def _cut_anew(connection: Connection, tables: Tables, settings: ReaderSettings, rows: Sequence[Any]) -> None:
    t, old = tables.positions, [Position.parse(row.high, row.gaps) for row in rows]
    position, epoch = remaining(connection, tables, old), max(row.epoch for row in rows) + 1
    ours = t.c.group == settings.group
    connection.execute(sa.delete(t).where(ours, t.c.partition >= settings.partitions))
    values = {"high": position.high, "gaps": position.gaps_text, "epoch": epoch}
    free = {"owner": None, "lease_expires": None, "claimant": None, "claim_expires": None}
    connection.execute(sa.update(t).where(ours).values(partitions=settings.partitions, **values, **free))
    new = range(len(rows), settings.partitions)
    _insert(connection, tables, settings, new, position.high, gaps=position.gaps_text, epoch=epoch)
    logger.info("group %r was cut anew: %d partitions instead of %d", settings.group, settings.partitions, len(rows))


def remaining(connection: Connection, tables: Tables, old: Sequence[Position]) -> Position:
    """What a group has done, from what its partitions have: an event counts as its own partition has it.

    That of another may still have it for a hole, which it was when that one read past it.
    """
    low = min(one.high for one in old)
    top = min(max(one.high for one in old), low + WINDOW)
    lacking = [upto(union(one.gaps, ((one.high + 1, top),) if one.high < top else ()), top) for one in old]
    below = joined(piece for one in lacking for piece in upto(one, low))
    floor = max(below[0][0] - 1, low - WINDOW) if below else low
    everything: Ranges = ((floor + 1, top),) if floor < top else ()
    numbers = partition_numbers(connection, tables, floor, top, len(old)) if everything else {}
    pending = ranges_of(seq for seq, number in numbers.items() if contains(lacking[number], seq))
    unseen = subtract(everything, ranges_of(numbers))
    for one in lacking:  # whoever is past a number that cannot be seen has proven it dead
        unseen = subtract(unseen, subtract(everything, one))
    return Position(top, joined((*upto(below, floor), *pending, *unseen)))

"""Subscriptions that are paused for every process: rows of ``event_deliveries`` with the number 0, which no event has."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..event import now
from ..schema import Tables
from .leases import begin_writing
from .troubles import insert_into

PAUSED = "paused"
NO_EVENT = 0

Named = tuple[str, str]
"""Group and subscription."""


def pause(connection: Connection, tables: Tables, wanted: Sequence[Named]) -> None:
    """Remember that they are paused; nothing happens for those that are."""
    if not wanted:
        return
    begin_writing(connection)
    rows = [
        {
            "group": group,
            "seq": NO_EVENT,
            "subscription": subscription,
            "status": PAUSED,
            "attempts": 0,
            "first_failed_at": now(),
            "last_failed_at": now(),
        }
        for group, subscription in wanted
    ]
    connection.execute(insert_into(connection, tables.deliveries).on_conflict_do_nothing(), rows)


def resume(connection: Connection, tables: Tables, wanted: Sequence[Named]) -> None:
    """Forget it; nothing happens for those that are not paused."""
    begin_writing(connection)
    d = tables.deliveries
    for group, subscription in wanted:
        connection.execute(
            sa.delete(d).where(d.c.group == group, d.c.seq == NO_EVENT, d.c.subscription == subscription)
        )


def paused(connection: Connection, tables: Tables, groups: Sequence[str]) -> set[Named]:
    """Those of these groups that are."""
    d = tables.deliveries
    query = sa.select(d.c.group, d.c.subscription).where(d.c.group.in_(groups), d.c.seq == NO_EVENT)
    return {(group, subscription) for group, subscription in connection.execute(query)}

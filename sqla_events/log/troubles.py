"""Rows of ``event_deliveries``: only events with trouble have one, for each subscription that has it.

``retrying``: a handler failed and is tried again. ``failed``: a dead letter. ``redriven``: a dead letter on its way back to
its subscription. They are written in the transaction that commits the position, so what a position calls done and what
is a dead letter never disagree.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from ..position import Ranges, contains
from ..schema import Tables

RETRYING, FAILED, REDRIVEN = "retrying", "failed", "redriven"


@dataclass(frozen=True)
class Trouble:
    """One subscription's trouble with one event. ``status`` None: it is over, the row goes."""

    seq: int
    subscription: str
    status: str | None
    attempts: int = 0
    next_attempt_at: float | None = None
    """Unix seconds."""
    error: str | None = None
    traceback: str | None = None


def write_troubles(connection: Connection, tables: Tables, group: str, troubles: Sequence[Trouble]) -> None:
    """Store them: the last one said about an event and subscription holds."""
    over = [trouble for trouble in troubles if trouble.status is None]
    current = [trouble for trouble in troubles if trouble.status is not None]
    if over:
        _delete(connection, tables, group, over)
    if current:
        _upsert(connection, tables, group, current)


def _delete(connection: Connection, tables: Tables, group: str, troubles: Sequence[Trouble]) -> None:
    table = tables.deliveries
    statement = sa.delete(table).where(
        table.c.group == group,
        table.c.seq == sa.bindparam("the_seq"),
        table.c.subscription == sa.bindparam("the_subscription"),
    )
    connection.execute(statement, [{"the_seq": one.seq, "the_subscription": one.subscription} for one in troubles])


def _upsert(connection: Connection, tables: Tables, group: str, troubles: Sequence[Trouble]) -> None:
    insert = insert_into(connection, tables.deliveries)
    kept = ("status", "attempts", "next_attempt_at", "error", "traceback", "last_failed_at")
    statement = insert.on_conflict_do_update(
        index_elements=["group", "seq", "subscription"], set_={name: insert.excluded[name] for name in kept}
    )
    now = dt.datetime.now(dt.UTC)
    connection.execute(statement, [_values(group, trouble, now) for trouble in troubles])


def insert_into(connection: Connection, table: sa.Table) -> Any:
    """An INSERT that knows ON CONFLICT."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def _values(group: str, trouble: Trouble, now: dt.datetime) -> dict[str, Any]:
    return {
        "group": group,
        "seq": trouble.seq,
        "subscription": trouble.subscription,
        "status": trouble.status,
        "attempts": trouble.attempts,
        "next_attempt_at": trouble.next_attempt_at,
        "error": _storable(trouble.error),
        "traceback": _storable(trouble.traceback),
        "first_failed_at": now,
        "last_failed_at": now,
    }


def _storable(text: str | None) -> str | None:
    """PostgreSQL's text holds no NUL, and UTF-8 no lone surrogate; an error's message may."""
    return text and text.replace("\x00", "\\x00").encode(errors="backslashreplace").decode()


Past = Mapping[str, tuple[str, int, float | None]]
"""What is known about one event, by subscription: status, attempts, and when the next one is due (Unix seconds)."""


def troubles_within(connection: Connection, tables: Tables, group: str, gaps: Ranges) -> dict[int, Past]:
    """What is known about events that will be read again, by seq."""
    if not gaps:
        return {}
    table = tables.deliveries
    found: dict[int, dict[str, tuple[str, int, float | None]]] = {}
    rows = connection.execute(
        sa.select(table.c.seq, table.c.subscription, table.c.status, table.c.attempts, table.c.next_attempt_at).where(
            table.c.group == group, table.c.seq >= gaps[0][0], table.c.seq <= gaps[-1][1], table.c.status != REDRIVEN
        )
    )
    for seq, subscription, *what in rows:
        if contains(gaps, seq):
            found.setdefault(seq, {})[subscription] = (what[0], what[1], what[2])
    return dict(found)


def redriven(
    connection: Connection, tables: Tables, group: str, besides: Collection[tuple[int, str]], limit: int
) -> list[tuple[int, str, int, float | None, str | None]]:
    """What to deliver again (seq, subscription, attempts, when the next is due, error), oldest first, without what is in hand already."""
    table = tables.deliveries
    rows = connection.execute(
        sa.select(table.c.seq, table.c.subscription, table.c.attempts, table.c.next_attempt_at, table.c.error)
        .where(table.c.group == group, table.c.status == sa.literal_column(f"'{REDRIVEN}'"))
        .order_by(table.c.seq)
        .limit(limit + len(besides))
    )
    return [tuple(row) for row in rows if (row.seq, row.subscription) not in besides][:limit]


def attempts_of(known: Past) -> dict[str, int]:
    """Failed attempts of the subscriptions that are still at it."""
    return {name: attempts for name, (status, attempts, _) in known.items() if status == RETRYING}


def due_of(known: Past) -> dict[str, float]:
    """When their next attempts are due."""
    return {name: due for name, (status, _, due) in known.items() if status == RETRYING and due is not None}


def buried_of(known: Past) -> frozenset[str]:
    """Subscriptions that gave up."""
    return frozenset(name for name, (status, _, _) in known.items() if status == FAILED)

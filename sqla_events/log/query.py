"""Questions about the log that no reader asks on its way: one event, what groups think of it, where they are."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import Connection

from ..event import Event, Status
from ..position import Position
from ..schema import Tables
from .reading import by_columns, events_of, select_rows
from .rows import Row

PAGE = 500
IN_SLACKS = (dt.timedelta(seconds=2), dt.timedelta(minutes=10))
"""How far the clock that made an id and the database's may be apart, before the whole log is searched."""


def rows_by_seq(connection: Connection, tables: Tables, seqs: Iterable[int]) -> dict[int, Row]:
    """Rows by their seqs; those that do not exist any more are left out."""
    return {row.seq: row for row in by_columns(connection, tables, sorted(set(seqs)))}


# One event ----------------------------------------------------------------------------------------------------------


def get_event(connection: Connection, tables: Tables, event_id: uuid.UUID, group: str) -> Event | None:
    """One event with its status as a group sees it; None if the log does not have it.

    A version 7 id says when it was made, and ``seq`` is searched by ``created_at`` in as many steps as it has bits. Other
    ids are looked for by the BRIN index, which PostgreSQL uses once it has statistics, or by a scan of the log.
    """
    row = _find(connection, tables, event_id)
    return None if row is None else seen_by(connection, tables, [row], group)[0]


def _find(connection: Connection, tables: Tables, event_id: uuid.UUID) -> Row | None:
    e = events_of(tables)
    same = e.c.id == event_id
    if event_id.version == 7:
        made = dt.datetime.fromtimestamp((event_id.int >> 80) / 1000, dt.UTC)
        for slack in IN_SLACKS:
            first, last = (seq_at(connection, tables, moment) for moment in (made - slack, made + slack))
            found = select_rows(connection, tables, [same, e.c.seq.between(first, last)], 1)
            if found:
                return found[0]
    seqs = connection.scalars(sa.select(tables.events.c.seq).where(tables.events.c.id == event_id)).all()
    found = by_columns(connection, tables, seqs)
    return found[0] if found else None


def seq_at(connection: Connection, tables: Tables, moment: dt.datetime) -> int:
    """The seq from which on events were made at that moment or later, as far as the order of seq is the order of time.

    A binary search that the server does in one statement, three index probes a step.
    """
    events, kind = tables.names.qualified(tables.names.events), tables.events.c.created_at.type
    postgres = connection.dialect.name == "postgresql"
    value: Any = moment if postgres else moment.astimezone(dt.UTC).isoformat()
    search = _SEARCH.format(events=events, early=_EARLY.format(events=events))
    query = sa.text(search).bindparams(sa.bindparam("moment", value, kind if postgres else sa.Text()))
    return connection.scalar(query) or 0


_SEARCH = """
WITH RECURSIVE search(low, high) AS (
    SELECT min(seq), max(seq) FROM {events}
    UNION ALL
    SELECT CASE WHEN {early} THEN (SELECT min(e.seq) FROM {events} AS e WHERE e.seq >= (low + high) / 2) + 1 ELSE low END,
        CASE WHEN {early} THEN high ELSE (low + high) / 2 - 1 END
    FROM search WHERE low <= high
)
SELECT max(low) FROM search"""
_EARLY = "(SELECT e.created_at < :moment FROM {events} AS e WHERE e.seq >= (low + high) / 2 ORDER BY e.seq LIMIT 1)"
"""Whether the first event from the middle on was made before."""


def as_stored(connection: Connection, moment: dt.datetime) -> Any:
    """A time to compare ``created_at`` with. On SQLite it is text, ISO 8601 with a T, as its default writes it."""
    if connection.dialect.name == "postgresql":
        return moment
    return sa.literal(moment.astimezone(dt.UTC).isoformat(), sa.Text())


def seen_by(connection: Connection, tables: Tables, rows: Sequence[Row], group: str) -> list[Event]:
    """Rows as events, with what the view ``event_status`` says about them."""
    states: dict[int, Any] = {}
    for start in range(0, len(rows), PAGE):
        seqs = [row.seq for row in rows[start : start + PAGE]]
        states |= {state.seq: state for state in connection.execute(_states(connection, tables, seqs, group))}
    return [_with_state(row.known(), states.get(row.seq)) for row in rows]


def _states(connection: Connection, tables: Tables, seqs: list[int], group: str) -> sa.Select[Any]:
    """The view for each of these numbers.

    On PostgreSQL one by one (LATERAL, which OFFSET keeps it from undoing): asked for all at once, it would first gather
    every delivery that there is, for each of them again where statistics are old (more than a minute for 500 numbers).
    """
    names = ("seq", "status", "processed_at", "completed_at", "error", "retry_count")
    view = sa.table(
        tables.names.status, *(sa.column(name) for name in names), sa.column("group"), schema=tables.names.schema
    )
    query = sa.select(*(view.c[name] for name in names)).where(view.c.group == group)
    if connection.dialect.name != "postgresql":
        return query.where(view.c.seq.in_(seqs))
    numbers = sa.func.unnest(sa.cast(seqs, ARRAY(sa.BigInteger)))
    wanted = numbers.table_valued(sa.column("seq", sa.BigInteger), name="wanted").render_derived()
    each = query.where(view.c.seq == wanted.c.seq).offset(0).lateral()
    return sa.select(each).select_from(wanted.join(each, sa.true()))


def _with_state(event: Event, state: Any) -> Event:
    if state is None:  # a group that nobody has read for yet
        return event
    return event.replace(
        status=Status(state.status),
        processed_at=in_utc(state.processed_at),
        completed_at=in_utc(state.completed_at),
        error=state.error,
        retry_count=int(state.retry_count or 0),
    )


def in_utc(value: Any) -> dt.datetime | None:
    """A time as the drivers give it: a datetime, naive on SQLite, or its text."""
    moment = dt.datetime.fromisoformat(value) if isinstance(value, str) else value
    return moment.replace(tzinfo=dt.UTC) if moment is not None and moment.tzinfo is None else moment


# Where groups are ---------------------------------------------------------------------------------------------------


def newest(connection: Connection, tables: Tables) -> int:
    """The highest seq that is visible; 0 for an empty log."""
    return connection.scalar(sa.select(sa.func.max(tables.events.c.seq))) or 0


@dataclass(frozen=True)
class Group:
    """One partition of a consumer group, as it is stored."""

    group: str
    partition: int
    partitions: int
    position: Position
    owner: str | None
    lease_expires: dt.datetime | None
    epoch: int
    updated_at: dt.datetime | None


def groups(connection: Connection, tables: Tables, group: str | None = None) -> list[Group]:
    """Every partition of every group, or of one."""
    t = tables.positions
    query = sa.select(t).order_by(t.c.group, t.c.partition)
    if group is not None:
        query = query.where(t.c.group == group)
    return [
        Group(
            r.group,
            r.partition,
            r.partitions,
            Position.parse(r.high, r.gaps),
            r.owner,
            in_utc(r.lease_expires),
            r.epoch,
            in_utc(r.updated_at),
        )
        for r in connection.execute(query)
    ]

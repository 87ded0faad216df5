"""Questions about the log that no reader asks on its way: one event, many events, how far the groups are."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..event import Event, Status, now
from ..filter import like, matches
from ..position import Position
from ..schema import Tables
from .pauses import paused
from .reading import by_columns, events_of, select_rows
from .rows import Row
from .troubles import FAILED

PAGE = 500
IN_SLACKS = (dt.timedelta(seconds=2), dt.timedelta(minutes=10))
"""How far the clock that made an id and the database's may be apart, before the whole log is searched."""


def rows_by_seq(connection: Connection, tables: Tables, seqs: Iterable[int]) -> dict[int, Row]:
    """Rows by their seqs; those that do not exist any more are left out."""
    return {row.seq: row for row in by_columns(connection, tables, sorted(set(seqs)))}


# One event ----------------------------------------------------------------------------------------------------------


def get_event(connection: Connection, tables: Tables, event_id: uuid.UUID, group: str) -> Event | None:
    """One event with its status as a group sees it; None if the log does not have it.

    There is no index on ``id`` (every capture would pay for it): a version 7 id says when it was made, and ``seq`` is
    searched by ``created_at`` in as many steps as it has bits. An id without a time costs a scan of the log.
    """
    row = _find(connection, tables, event_id)
    return None if row is None else _seen(connection, tables, [row], group)[0]


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
    found = select_rows(connection, tables, [same], 1)
    return found[0] if found else None


def seq_at(connection: Connection, tables: Tables, moment: dt.datetime) -> int:
    """The seq from which on events were made at that moment or later, as far as the order of seq is the order of time."""
    e = tables.events
    low, high = connection.execute(sa.select(sa.func.min(e.c.seq), sa.func.max(e.c.seq))).one()
    if low is None:
        return 0
    while low <= high:
        middle = (low + high) // 2
        seq, earlier = connection.execute(
            sa.select(e.c.seq, e.c.created_at < as_stored(connection, moment))
            .where(e.c.seq >= middle)
            .order_by(e.c.seq)
            .limit(1)
        ).one()
        if earlier:
            low = int(seq) + 1
        else:
            high = middle - 1
    return int(low)


def as_stored(connection: Connection, moment: dt.datetime) -> Any:
    """A time to compare ``created_at`` with. On SQLite it is text, ISO 8601 with a T, as its default writes it."""
    if connection.dialect.name == "postgresql":
        return moment
    return sa.literal(moment.astimezone(dt.UTC).isoformat(), sa.Text())


# Many events --------------------------------------------------------------------------------------------------------


def list_events(connection: Connection, tables: Tables, wanted: Any, group: str) -> list[Event]:
    """Events that fulfil an ``EventFilter``, with their status as a group sees it."""
    e = events_of(tables)
    where = _conditions(connection, e, wanted)
    found: list[Event] = []
    after = wanted.after
    while len(found) < wanted.limit:
        beyond = [] if after is None else [e.c.seq < after if wanted.newest_first else e.c.seq > after]
        rows = select_rows(connection, tables, [*where, *beyond], PAGE, wanted.newest_first)
        fitting = [row for row in rows if matches(wanted.pattern, row.type)]
        found += [
            one
            for one in _seen(connection, tables, fitting, group)
            if wanted.status is None or one.status == wanted.status
        ]
        if len(rows) < PAGE:
            break
        after = rows[-1].seq
    return found[: wanted.limit]


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


def _seen(connection: Connection, tables: Tables, rows: Sequence[Row], group: str) -> list[Event]:
    """Rows as events, with what the view ``event_status`` says about them."""
    if not rows:
        return []
    names = ("seq", "status", "processed_at", "completed_at", "error", "retry_count")
    view = sa.table(
        tables.names.status, *(sa.column(name) for name in names), sa.column("group"), schema=tables.names.schema
    )
    states: dict[int, Any] = {}
    for start in range(0, len(rows), PAGE):
        seqs = [row.seq for row in rows[start : start + PAGE]]
        query = sa.select(*(view.c[name] for name in names)).where(view.c.seq.in_(seqs), view.c.group == group)
        states |= {state.seq: state for state in connection.execute(query)}
    return [_with_state(row.to_event(), states.get(row.seq)) for row in rows]


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


# How far ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GroupStats:
    """How far one partition of a group is."""

    group: str
    partition: int
    lag: int
    """Numbers in the log that it is not through with, dead letters not counted; more than the events where numbers were never used."""
    lag_seconds: float
    """Age of the oldest event it is not through with; 0 without any."""
    dead: int
    """Dead letters of the group."""
    owner: str | None
    """Who holds the lease."""
    updated_at: dt.datetime | None
    """When it last moved."""
    paused: tuple[str, ...] = ()
    """Subscriptions of the group that are paused for every process."""


def stats(connection: Connection, tables: Tables) -> list[GroupStats]:
    """Every partition of every group."""
    top, d = newest(connection, tables), tables.deliveries
    counts = connection.execute(sa.select(d.c.group, sa.func.count()).where(d.c.status == FAILED).group_by(d.c.group))
    dead: dict[str, int] = dict(tuple(row) for row in counts)
    parts = groups(connection, tables)
    held = paused(connection, tables, [part.group for part in parts])
    return [
        replace(
            _stats(connection, tables, part, top, dead.get(part.group, 0)),
            paused=tuple(sorted(name for group, name in held if group == part.group)),
        )
        for part in parts
    ]


def _stats(connection: Connection, tables: Tables, part: Group, top: int, dead: int) -> GroupStats:
    lag = max(top - part.position.high, 0) + part.position.pending_below()
    since = _oldest(connection, tables, part.position) if lag else None
    age = (now() - since).total_seconds() if since is not None else 0.0
    return GroupStats(part.group, part.partition, lag, max(age, 0.0), dead, part.owner, part.updated_at)


def _oldest(connection: Connection, tables: Tables, position: Position) -> dt.datetime | None:
    """When the oldest event was made that is in a gap or above; of many gaps the first hundred are looked at."""
    e = tables.events
    for first, last in (*position.gaps[:100], (position.high + 1, 2**62)):
        query = sa.select(e.c.created_at).where(e.c.seq >= first, e.c.seq <= last).order_by(e.c.seq).limit(1)
        since = connection.execute(query).scalar()
        if since is not None:
            return in_utc(since)
    return None


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

"""Positions and their leases: one row for each group and partition, one UPDATE to take, renew, commit or release it.

Leases are rows, not advisory locks: they work through a transaction pooler and on SQLite. ``epoch`` grows whenever the
owner changes, and every write names it: a process that was paused for longer than its lease changes nothing when it wakes
(a fencing token, as in Kleppmann, "How to do distributed locking").
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..errors import ConfigError, LeaseLost
from ..position import Position, Ranges, to_text
from ..schema import Tables
from .settings import ReaderSettings
from .troubles import Trouble, insert_into, write_troubles


@dataclass(frozen=True)
class Lease:
    """What an owner holds."""

    group: str
    partition: int
    owner: str
    epoch: int
    position: Position


@dataclass(frozen=True)
class Progress:
    """What one commit writes."""

    position: Position
    highs: tuple[int, ...]
    """What ``high`` may be in the row now."""
    last: tuple[int, str] | None = None
    """Seq and id of the row that the new ``high`` rests on, where it moves."""
    filled: Ranges = ()
    started_at: dt.datetime | None = None
    """When the first event of the batch was read; None: there is no batch, the lease is only renewed."""
    troubles: Sequence[Trouble] = ()


def begin_writing(connection: Connection) -> None:
    """Take SQLite's write lock now: a transaction that reads first and writes later can be refused half-way."""
    if connection.dialect.name == "sqlite" and not connection.connection.driver_connection.in_transaction:  # type: ignore[union-attr]
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def acquire(connection: Connection, tables: Tables, settings: ReaderSettings) -> Lease | None:
    """Take the lease if it is free, has expired or is ours; None: somebody else holds it.

    :raises ConfigError: if the group is split into another number of partitions.
    """
    table, here = tables.positions, _this(tables.positions, settings.group, settings.partition)
    free = sa.or_(table.c.owner.is_(None), table.c.owner == settings.owner, table.c.lease_expires <= _now(connection))
    begin_writing(connection)
    row = connection.execute(sa.select(table.c.partitions, free.label("free")).where(*here)).one_or_none()
    if row is None:
        _create(connection, tables, settings)
    elif row.partitions != settings.partitions:
        raise _wrong_partitions(settings, row.partitions)
    elif not row.free:
        return None
    taken = connection.execute(
        sa.update(table)
        .where(*here, free)
        .values(owner=settings.owner, epoch=table.c.epoch + 1, lease_expires=_now(connection, settings.lease))
        .returning(table.c.epoch, table.c.high, table.c.gaps, table.c.partitions)
    ).one_or_none()
    if taken is None:
        return None
    if taken.partitions != settings.partitions:
        raise _wrong_partitions(settings, taken.partitions)
    return Lease(
        settings.group, settings.partition, settings.owner, taken.epoch, Position.parse(taken.high, taken.gaps)
    )


def _wrong_partitions(settings: ReaderSettings, found: int) -> ConfigError:
    return ConfigError(
        f"group {settings.group!r} has {found} partitions and the setting 'partitions' is {settings.partitions}; "
        "changing it is an operation of its own: see docs/operations.md"
    )


def _create(connection: Connection, tables: Tables, settings: ReaderSettings) -> None:
    start: Any = settings.start or 0
    if start < 0:
        start = sa.select(sa.func.coalesce(sa.func.max(tables.events.c.seq), 0)).scalar_subquery()
    insert = insert_into(connection, tables.positions).values(
        group=settings.group,
        partition=settings.partition,
        partitions=settings.partitions,
        high=start,
        updated_at=_now(connection),
    )
    connection.execute(insert.on_conflict_do_nothing())


def commit(connection: Connection, tables: Tables, lease: Lease, progress: Progress, seconds: float) -> int | None:
    """Write the position and what belongs to it, renew the lease, and return this transaction's id (None on SQLite).

    :raises LeaseLost: if the lease has another owner, or the log is not the one that was read; nothing is written.
    """
    table = tables.positions
    begin_writing(connection)
    update = (
        sa.update(table)
        .where(
            *_this(table, lease.group, lease.partition),
            table.c.epoch == lease.epoch,
            *_same_log(tables, progress.highs, progress.last),
        )
        .values(
            high=progress.position.high,
            gaps=progress.position.gaps_text,
            lease_expires=_now(connection, seconds),
            updated_at=_now(connection),
        )
    )
    horizon = _one(connection, update, lease)
    if progress.started_at is not None:
        _batch(connection, tables, lease, progress)
    if progress.troubles:
        write_troubles(connection, tables, lease.group, progress.troubles)
    return horizon


def _same_log(tables: Tables, highs: Sequence[int], last: tuple[int, str] | None) -> list[sa.ColumnElement[bool]]:
    """That the position is one we wrote and the last row is still what we read.

    A server that fell back to an older state (asynchronous commit and a crash, a fail-over) gives numbers out again:
    whoever went on from memory would lose the events that got them.
    """
    conditions: list[sa.ColumnElement[bool]] = [tables.positions.c.high.in_(highs)]
    if last is not None:
        conditions.append(_row_exists(tables, *last))
    return conditions


def _row_exists(tables: Tables, seq: int, identity: str) -> sa.Exists:
    return sa.exists().where(tables.events.c.seq == seq, tables.events.c.id == uuid.UUID(identity))


def has_row(connection: Connection, tables: Tables, seq: int, identity: str) -> bool:
    """Whether the log has this event under this number."""
    return bool(connection.execute(sa.select(_row_exists(tables, seq, identity))).scalar())


def has_any(connection: Connection, tables: Tables, seqs: Ranges) -> bool:
    """Whether the log has an event under any of these numbers."""
    seq = tables.events.c.seq
    for start in range(0, len(seqs), 100):
        within = sa.or_(*(seq.between(*one) for one in seqs[start : start + 100]))
        if connection.execute(sa.select(sa.exists().where(within))).scalar():
            return True
    return False


def rewind(connection: Connection, tables: Tables, lease: Lease, position: Position) -> None:
    """Set the position back and give up the lease: with the epoch, so that no commit of ours can follow.

    :raises LeaseLost: if the lease has another owner.
    """
    table = tables.positions
    begin_writing(connection)
    update = sa.update(table).where(*_this(table, lease.group, lease.partition), table.c.epoch == lease.epoch)
    back = {"high": position.high, "gaps": position.gaps_text, "updated_at": _now(connection)}
    _one(connection, update.values(back | {"epoch": table.c.epoch + 1, "owner": None, "lease_expires": None}), lease)


def _one(connection: Connection, update: sa.Update, lease: Lease) -> int | None:
    """Run an UPDATE that must hit the row of our epoch."""
    if connection.dialect.name == "postgresql":
        horizon = connection.execute(update.returning(sa.text("pg_current_xact_id()::text"))).scalar()
        hit = horizon is not None
    else:
        horizon, hit = None, connection.execute(update).rowcount == 1
    if not hit:
        raise LeaseLost(
            f"{lease.owner} lost partition {lease.partition} of group {lease.group!r}: "
            f"the lease (epoch {lease.epoch}) or the log is not what it was"
        )
    return int(horizon) if horizon is not None else None


def _batch(connection: Connection, tables: Tables, lease: Lease, progress: Progress) -> None:
    connection.execute(
        sa.insert(tables.batches).values(
            group=lease.group,
            partition=lease.partition,
            high=progress.position.high,
            epoch=lease.epoch,
            filled=to_text(progress.filled),
            instance_id=lease.owner,
            started_at=progress.started_at,
            completed_at=_now(connection),
        )
    )


def release(connection: Connection, tables: Tables, lease: Lease) -> None:
    """Let the next owner have it at once. Nothing happens if it has one already."""
    table = tables.positions
    begin_writing(connection)
    connection.execute(
        sa.update(table)
        .where(*_this(table, lease.group, lease.partition), table.c.epoch == lease.epoch)
        .values(owner=None, lease_expires=None)
    )


def still_holds(
    connection: Connection, tables: Tables, lease: Lease, highs: Sequence[int], last: tuple[int, str] | None
) -> bool:
    """Whether, after the connection was lost, the log is still what this owner took it for."""
    table = tables.positions
    conditions = (table.c.epoch == lease.epoch, *_same_log(tables, highs, last))
    return (
        connection.execute(
            sa.select(table.c.high).where(*_this(table, lease.group, lease.partition), *conditions)
        ).first()
        is not None
    )


def _this(table: sa.Table, group: str, partition: int) -> tuple[sa.ColumnElement[bool], ...]:
    return (table.c.group == group, table.c.partition == partition)


def _now(connection: Connection, ahead: float = 0.0) -> Any:
    """The database's clock: owners on several machines must agree. SQLite lives on one."""
    if connection.dialect.name == "postgresql":
        now = sa.func.clock_timestamp(type_=sa.DateTime(timezone=True))
        return now + sa.cast(sa.literal(dt.timedelta(seconds=ahead), sa.Interval()), sa.Interval()) if ahead else now
    return dt.datetime.now(dt.UTC) + dt.timedelta(seconds=ahead)

"""Positions and their leases: one row for each group and partition, one UPDATE to take, claim, commit or release it.

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

from ..errors import LeaseLost
from ..position import Position, Ranges, to_text
from ..schema import Tables
from .settings import ReaderSettings
from .troubles import Trouble, write_troubles


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


@dataclass(frozen=True)
class Seat:
    """One partition of a group as everybody sees it."""

    partition: int
    partitions: int
    owner: str | None
    """None: the lease is free, or has expired."""
    claimant: str | None
    """Who asks its owner for it."""


def survey(connection: Connection, tables: Tables, group: str) -> list[Seat]:
    """The partitions of a group that there are."""
    t, now = tables.positions, clock(connection)
    owner = sa.case((t.c.lease_expires > now, t.c.owner))
    claimant = sa.case((t.c.claim_expires > now, t.c.claimant))
    query = sa.select(t.c.partition, t.c.partitions, owner, claimant).where(t.c.group == group).order_by(t.c.partition)
    return [Seat(*row) for row in connection.execute(query)]


def acquire(connection: Connection, tables: Tables, settings: ReaderSettings) -> Lease | None:
    """Take the lease if it is free, has expired or is ours, and nobody else was promised it; None: it is not to be had."""
    t, now = tables.positions, clock(connection)
    free = sa.or_(t.c.owner.is_(None), t.c.owner == settings.owner, t.c.lease_expires <= now)
    unclaimed = sa.or_(t.c.claimant.is_(None), t.c.claimant == settings.owner, t.c.claim_expires <= now)
    begin_writing(connection)
    taken = connection.execute(
        sa.update(t)
        .where(
            *this_partition(t, settings.group, settings.partition), t.c.partitions == settings.partitions, free, unclaimed
        )
        .values(
            owner=settings.owner,
            epoch=t.c.epoch + 1,
            lease_expires=clock(connection, settings.lease),
            claimant=None,
            claim_expires=None,
        )
        .returning(t.c.epoch, t.c.high, t.c.gaps)
    ).one_or_none()
    if taken is None:
        return None
    position = Position.parse(taken.high, taken.gaps)
    return Lease(settings.group, settings.partition, settings.owner, taken.epoch, position)


def claim(connection: Connection, tables: Tables, settings: ReaderSettings) -> None:
    """Ask the owner of a partition to give it up to us; the claim holds for as long as a lease."""
    t, now = tables.positions, clock(connection)
    begin_writing(connection)
    connection.execute(
        sa.update(t)
        .where(
            *this_partition(t, settings.group, settings.partition),
            t.c.partitions == settings.partitions,
            sa.or_(t.c.claimant.is_(None), t.c.claim_expires <= now),
        )
        .values(claimant=settings.owner, claim_expires=clock(connection, settings.lease))
    )


def withdraw(connection: Connection, tables: Tables, settings: ReaderSettings) -> None:
    """Forget our claims on the group's partitions."""
    t = tables.positions
    begin_writing(connection)
    ours = (t.c.group == settings.group, t.c.claimant == settings.owner)
    connection.execute(sa.update(t).where(*ours).values(claimant=None, claim_expires=None))


@dataclass(frozen=True)
class Committed:
    """What the database says to a commit."""

    horizon: int | None
    """The transaction's id; None on SQLite."""
    claimed: bool
    """Whether somebody asks for this partition."""


def commit(connection: Connection, tables: Tables, lease: Lease, progress: Progress, seconds: float) -> Committed:
    """Write the position and what belongs to it, and renew the lease.

    :raises LeaseLost: if the lease has another owner, or the log is not the one that was read; nothing is written.
    """
    table = tables.positions
    begin_writing(connection)
    update = (
        sa.update(table)
        .where(
            *this_partition(table, lease.group, lease.partition),
            table.c.epoch == lease.epoch,
            *_same_log(tables, progress.highs, progress.last),
        )
        .values(
            high=progress.position.high,
            gaps=progress.position.gaps_text,
            lease_expires=clock(connection, seconds),
            updated_at=clock(connection),
        )
    )
    committed = _one(connection, update.returning(table.c.claim_expires > clock(connection)), lease)
    if progress.started_at is not None:
        _batch(connection, tables, lease, progress)
    if progress.troubles:
        write_troubles(connection, tables, lease.group, progress.troubles)
    return committed


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
    update = sa.update(table).where(*this_partition(table, lease.group, lease.partition), table.c.epoch == lease.epoch)
    back = {"high": position.high, "gaps": position.gaps_text, "updated_at": clock(connection)}
    update = update.values(back | {"epoch": table.c.epoch + 1, "owner": None, "lease_expires": None})
    _one(connection, update.returning(sa.false()), lease)


def _one(connection: Connection, update: Any, lease: Lease) -> Committed:
    """Run an UPDATE that must hit the row of our epoch."""
    if connection.dialect.name == "postgresql":
        update = update.returning(sa.text("pg_current_xact_id()::text"))
    hit = connection.execute(update).one_or_none()
    if hit is None:
        raise LeaseLost(
            f"{lease.owner} lost partition {lease.partition} of group {lease.group!r}: "
            f"the lease (epoch {lease.epoch}) or the log is not what it was"
        )
    return Committed(int(hit[1]) if len(hit) > 1 else None, bool(hit[0]))


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
            completed_at=clock(connection),
        )
    )


def release(connection: Connection, tables: Tables, lease: Lease) -> None:
    """Let the next owner have it at once. Nothing happens if it has one already."""
    table = tables.positions
    begin_writing(connection)
    connection.execute(
        sa.update(table)
        .where(*this_partition(table, lease.group, lease.partition), table.c.epoch == lease.epoch)
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
            sa.select(table.c.high).where(*this_partition(table, lease.group, lease.partition), *conditions)
        ).first()
        is not None
    )


def this_partition(table: sa.Table, group: str, partition: int) -> tuple[sa.ColumnElement[bool], ...]:
    return (table.c.group == group, table.c.partition == partition)


def clock(connection: Connection, ahead: float = 0.0) -> Any:
    """The database's clock: owners on several machines must agree. SQLite lives on one."""
    if connection.dialect.name == "postgresql":
        now = sa.func.clock_timestamp(type_=sa.DateTime(timezone=True))
        return now + sa.cast(sa.literal(dt.timedelta(seconds=ahead), sa.Interval()), sa.Interval()) if ahead else now
    return dt.datetime.now(dt.UTC) + dt.timedelta(seconds=ahead)

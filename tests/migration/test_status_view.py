"""The view event_status says of each event and group what its position, gaps and deliveries say."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sqla_events.schema import Tables

TABLES = Tables()
VIEW = sa.table("event_status", *(sa.column(name) for name in ("seq", "id", "type", "group", "status", "processed_at", "completed_at", "error", "retry_count")))


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    """Ten events, seq 1 to 10."""
    engine = sa.create_engine(database_url)
    with engine.connect() as connection:
        events = [{"id": uuid.UUID(int=seq), "source": "database", "type": "public.users.create", "payload": sa.literal_column("'1'")} for seq in range(1, 11)]
        for event in events:
            connection.execute(TABLES.events.insert().values(event))
        yield connection
    engine.dispose()


def position(connection: Connection, high: int, gaps: str = "[]", group: str = "g", partition: int = 0) -> None:
    connection.execute(TABLES.positions.insert().values(group=group, partition=partition, high=high, gaps=gaps))


def trouble(connection: Connection, seq: int, status: str, attempts: int = 1, subscription: str = "s", error: str = "boom", minute: int = 0) -> None:
    time = moment(minute)
    row = {"group": "g", "seq": seq, "subscription": subscription, "status": status, "attempts": attempts, "error": error}
    connection.execute(TABLES.deliveries.insert().values(**row, first_failed_at=time, last_failed_at=time))


def batch(connection: Connection, high: int, minute: int, filled: str = "[]", partition: int = 0) -> None:
    row = {"group": "g", "partition": partition, "high": high, "epoch": 1, "filled": filled}
    connection.execute(TABLES.batches.insert().values(**row, started_at=moment(minute), completed_at=moment(minute + 1)))


def moment(minute: int) -> Any:
    return sa.literal_column(f"'2026-01-01 00:{minute:02}:00+00:00'")


def statuses(connection: Connection, group: str | None = "g") -> dict[str, list[int]]:
    """Status -> the seqs that have it."""
    found: dict[str, list[int]] = {}
    for seq, status in connection.execute(sa.select(VIEW.c.seq, VIEW.c.status).where(VIEW.c.group.is_not_distinct_from(group)).order_by(VIEW.c.seq)):
        found.setdefault(status, []).append(seq)
    return found


def row(connection: Connection, seq: int) -> Any:
    return connection.execute(sa.select(VIEW).where(VIEW.c.seq == seq)).one()


def test_without_any_group_everything_is_pending(connection: Connection) -> None:
    assert statuses(connection, None) == {"pending": list(range(1, 11))}


def test_high_and_gaps(connection: Connection) -> None:
    """In a gap: processing; other events up to high: completed; above: pending."""
    position(connection, 8, "[[2,3],[7,7]]")
    assert statuses(connection) == {"completed": [1, 4, 5, 6, 8], "processing": [2, 3, 7], "pending": [9, 10]}


def test_groups_do_not_see_each_other(connection: Connection) -> None:
    """One row per event and group."""
    position(connection, 10)
    position(connection, 0, group="late")
    assert statuses(connection) == {"completed": list(range(1, 11))}
    assert statuses(connection, "late") == {"pending": list(range(1, 11))}


def test_several_partitions_count_as_far_as_the_slowest(connection: Connection) -> None:
    """A gap of any of them is a gap."""
    position(connection, 10, "[[2,2]]", partition=0)
    position(connection, 6, "[[5,5]]", partition=1)
    assert statuses(connection) == {"completed": [1, 3, 4, 6], "processing": [2, 5], "pending": [7, 8, 9, 10]}


def test_deliveries(connection: Connection) -> None:
    """Retrying is processing, failed is failed, with the last error and the attempts after the first."""
    position(connection, 10, "[[3,3]]")
    trouble(connection, 3, "retrying", attempts=2)
    trouble(connection, 5, "failed", attempts=4, error="first", minute=1)
    trouble(connection, 5, "failed", attempts=1, error="last", subscription="other", minute=2)
    assert statuses(connection) == {"completed": [1, 2, 4, 6, 7, 8, 9, 10], "processing": [3], "failed": [5]}
    assert (row(connection, 3).error, row(connection, 3).retry_count) == ("boom", 1)
    assert (row(connection, 5).error, row(connection, 5).retry_count) == ("last", 3)
    assert row(connection, 5).completed_at is None
    assert (row(connection, 1).error, row(connection, 1).retry_count) == (None, 0)


def test_a_failure_of_another_group_is_not_mine(connection: Connection) -> None:
    """Trouble is by group."""
    position(connection, 10, group="other")
    trouble(connection, 5, "failed")
    assert statuses(connection, "other") == {"completed": list(range(1, 11))}


def test_times_come_from_the_batch_that_did_it(connection: Connection) -> None:
    """The first that reached the event; for one that was a gap then, the batch that filled it."""
    position(connection, 8)
    batch(connection, 4, minute=10)
    batch(connection, 8, minute=20, filled="[[2,2]]")
    batch(connection, 8, minute=30)
    assert minutes(row(connection, 1)) == (10, 11)
    assert minutes(row(connection, 2)) == (20, 21)
    assert minutes(row(connection, 5)) == (20, 21)
    assert minutes(row(connection, 9)) == (None, None)


def minutes(found: Any) -> tuple[int | None, int | None]:
    """Of processed_at and completed_at."""
    read = [None if time is None else int(str(time)[14:16]) for time in (found.processed_at, found.completed_at)]
    return read[0], read[1]


def test_one_event_is_looked_up_by_its_key(connection: Connection) -> None:
    """A condition on seq reaches the primary key; nothing scans the log."""
    position(connection, 8, "[[2,3]]")
    explain = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
    if explain == "EXPLAIN":
        connection.execute(sa.text("SET LOCAL enable_seqscan = off"))
    plan = "\n".join(str(line) for line in connection.execute(sa.text(f"{explain} SELECT * FROM event_status WHERE seq = 5")))
    assert "events_pkey" in plan or "SEARCH e USING INTEGER PRIMARY KEY" in plan

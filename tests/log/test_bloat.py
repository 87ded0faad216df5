"""Nothing piles up: no dead rows in the log, whatever holds back vacuum; positions and batches stay small."""

from __future__ import annotations

import os
import threading
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine

from sqla_events.bridge import Database
from sqla_events.log.reader import leased
from sqla_events.log.settings import ReaderSettings
from sqla_events.schema import Tables
from sqla_events.signals import Signals
from tests.log.load import wait_for
from tests.log.test_postgres import BULK
from tests.servers.postgres import PostgresDatabase

EVENTS = int(os.environ.get("EVENTS_OF_LOAD", "30000"))
TABLES = Tables()


def write(postgres: PostgresDatabase) -> None:
    with postgres.connect() as link:
        for _ in range(EVENTS // 500):
            link.execute(BULK, (500,))


async def drain(postgres: PostgresDatabase, count: int) -> None:
    """One reader, while it is written and until all of it was settled."""
    database = Database(engine := create_engine(postgres.url()))
    settings = ReaderSettings("g", "one", batch_size=500, prefetch=1000, poll_interval=0.02)
    async with leased(database, TABLES, settings, Signals()) as reader:
        async for batch in reader.batches():
            reader.settle([delivery.row.seq for delivery in batch])
            count -= len(batch)
            if count <= 0:
                break
    await database.close()
    engine.dispose()


def counted(link: psycopg.Connection[Any], table: str) -> dict[str, int]:
    """What the server's statistics say about a table."""
    names = ("n_tup_ins", "n_tup_upd", "n_tup_del", "n_dead_tup", "n_tup_hot_upd")
    row = link.execute(f"SELECT {', '.join(names)} FROM pg_stat_user_tables WHERE relname = %s", (table,)).fetchone()  # type: ignore[call-overload]
    return dict(zip(names, row, strict=True))


def size(link: psycopg.Connection[Any], table: str) -> int:
    row = link.execute("SELECT pg_table_size(%s::regclass)", (table,)).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.timeout(0 if EVENTS > 100_000 else 120)
@pytest.mark.parametrize("held_back", [False, True])
async def test_no_row_of_the_log_ever_dies(postgres: PostgresDatabase, held_back: bool) -> None:
    """Also with a transaction that holds vacuum back from beginning to end."""
    with postgres.connect() as holding, postgres.connect() as link:
        if held_back:
            holding.autocommit = False
            holding.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            holding.execute("SELECT pg_current_xact_id()")
        writer = threading.Thread(target=write, args=(postgres,))
        writer.start()
        await drain(postgres, EVENTS)
        writer.join()
        wait_for(lambda: counted(link, "events")["n_tup_ins"] == EVENTS)
        wait_for(lambda: counted(link, "event_positions")["n_tup_upd"] > 1)
        log, positions, batches = (counted(link, name) for name in ("events", "event_positions", "event_batches"))
        assert (log["n_tup_upd"], log["n_tup_del"], log["n_dead_tup"]) == (0, 0, 0)
        assert positions["n_tup_hot_upd"] == positions["n_tup_upd"]  # no index entry is ever added
        assert size(link, "event_positions") < 200_000
        assert batches["n_tup_ins"] <= positions["n_tup_upd"] <= EVENTS / 50
        assert batches["n_tup_upd"] == 0
        holding.rollback()


async def test_an_idle_reader_writes_no_batches(postgres: PostgresDatabase) -> None:
    """Renewing its lease is one update of its row, and no more."""
    database = Database(engine := create_engine(postgres.url()))
    async with leased(database, TABLES, ReaderSettings("g", "one"), Signals()) as reader:
        for _ in range(300):
            await reader.commit()
    await database.close()
    engine.dispose()
    with postgres.connect() as link:
        wait_for(lambda: counted(link, "event_positions")["n_tup_upd"] > 300)
        assert counted(link, "event_batches")["n_tup_ins"] == 0
        assert size(link, "event_positions") < 50_000

"""Nothing lost, doubled or swapped under everything at once: the test that the log exists for."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sqla_events.bridge import Database
from sqla_events.log import groups, reader
from sqla_events.log.ledger import Found, Ledger, Plan
from sqla_events.log.reader import Reader, leased
from sqla_events.log.rows import Row
from sqla_events.log.settings import ReaderSettings
from sqla_events.schema import Tables
from sqla_events.signals import Signals
from tests.log.load import Tally, Writers
from tests.servers.postgres import PostgresDatabase

SECONDS = float(os.environ.get("SECONDS_OF_LOAD", "3"))
TABLES = Tables()


def engine_of(postgres: PostgresDatabase, driver: str) -> Engine | AsyncEngine:
    if driver == "psycopg":
        return create_engine(postgres.url())
    return create_async_engine(postgres.url(driver.removesuffix("_async")))


class Reading:
    """Readers one after the other, as long as there is load and until nothing is left; each may crash."""

    def __init__(self, database: Database, writers: Writers, crashes: bool = True, seed: int = 1) -> None:
        self.tally = Tally()
        self._database = database
        self._writers = writers
        self._crashes = crashes
        self._chance = random.Random(seed)
        self._lives = 0

    async def run(self, seconds: float) -> None:
        """Load for so long, then read the rest."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await self.life(min(self._chance.uniform(0.2, 1.0), end - time.monotonic()), crash=self._crashes)
        await asyncio.to_thread(self._writers.stop)
        await self.life(30.0, crash=False)

    async def life(self, seconds: float, crash: bool) -> None:
        """One reader, for so many seconds at most."""
        self._lives += 1
        settings = ReaderSettings(
            "load", f"reader-{self._lives}", lease=0.5, batch_size=200, prefetch=400, poll_interval=0.05
        )
        async with leased(self._database, TABLES, settings, Signals()) as reading:
            try:
                async with asyncio.timeout(seconds):
                    await self._read(reading)
            except TimeoutError:
                assert crash or seconds < 30.0, f"not through: {reading.position}"
            if crash:
                reading.close = _nothing  # type: ignore[method-assign]  # no last commit, no release: kill -9

    async def _read(self, reading: Reader) -> None:
        life = self.tally.life(reading.lease.position, self._writers.truth)
        held: list[int] = []
        async for batch in reading.batches():
            life.deliver(delivery.row for delivery in batch)
            held += [delivery.row.seq for delivery in batch]
            self._chance.shuffle(held)
            keep = self._chance.choice([0, 0, len(held) // 2]) if not self._over() else 0
            reading.settle(held[keep:])
            held = held[:keep]
            if self._over() and not held and not self.tally.lost(self._writers.truth):
                return

    def _over(self) -> bool:
        return self._writers._stop.is_set()


async def _nothing() -> None:
    pass


async def run_load(
    engine: Engine | AsyncEngine, writers: Writers, crashes: bool = True, seconds: float = SECONDS
) -> Tally:
    database = Database(engine)
    try:
        reading = Reading(database, writers, crashes)
        await reading.run(seconds)
        return reading.tally
    finally:
        await database.close()
        if isinstance(engine, AsyncEngine):
            await engine.dispose()
        else:
            engine.dispose()


@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize("driver", ["psycopg", "psycopg_async", "asyncpg"])
async def test_nothing_is_lost_doubled_or_swapped(
    postgres: PostgresDatabase, driver: str, record_property: Callable[[str, object], None]
) -> None:
    """Contended rows, savepoints, rollbacks, open transactions, bulk inserts, events as first write, readers that crash."""
    with Writers(postgres.connect, count=8) as writers:
        tally = await run_load(engine_of(postgres, driver), writers)
    summary = tally.summary(writers.truth)
    record_property("load", summary)
    print(summary)  # noqa: T201 - the figure that is reported
    assert len(writers.truth.events) > 100
    assert not tally.lost(writers.truth), summary
    assert (tally.duplicated, tally.inverted, len(tally.phantoms(writers.truth))) == (0, 0, 0), summary


@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_no_isolation_of_the_writers_makes_a_difference(postgres: PostgresDatabase, level: str) -> None:
    """Their engine's level is not the reader's, and what fails to serialize was never an event."""

    def connect() -> psycopg.Connection:
        link = postgres.connect()
        link.isolation_level = getattr(psycopg.IsolationLevel, level.replace(" ", "_"))
        return link

    with Writers(connect, count=4, longest=0.3) as writers:
        tally = await run_load(create_engine(postgres.url(), isolation_level=level), writers, seconds=SECONDS / 2)
    summary = tally.summary(writers.truth)
    assert len(writers.truth.rolled_back) > 0
    assert not tally.lost(writers.truth), summary
    assert (tally.duplicated, tally.inverted, len(tally.phantoms(writers.truth))) == (0, 0, 0), summary


class Naive(Ledger):
    """``seq > last``: what most home-made outboxes do."""

    def take(self, plan: Plan, found: Found[Row]) -> list[Row] | None:  # type: ignore[override]
        rows = sorted((row for row in found.rows if row.seq > plan.high), key=lambda row: row.seq)[: plan.limit]
        self.in_hand.update(row.seq for row in rows)
        self.high = max([self.high, *(row.seq for row in rows)])
        return rows


async def test_seq_greater_than_last_does_lose(postgres: PostgresDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same load shows it, so the test above would notice if positions went wrong."""
    monkeypatch.setattr(reader, "Ledger", Naive)
    database = Database(engine := create_engine(postgres.url()))
    with Writers(postgres.connect, count=8) as writers:
        reading = Reading(database, writers)
        while len(writers.truth.events) < 400:
            await reading.life(0.5, crash=False)
        await asyncio.to_thread(writers.stop)
        await reading.life(1.0, crash=False)
    assert reading.tally.lost(writers.truth)
    await database.close()
    engine.dispose()


async def test_every_gap_fills_or_is_proven_dead(postgres: PostgresDatabase) -> None:
    """After the writers have ended, the stored position has no gaps, and the lease is free."""
    with Writers(postgres.connect, count=4, longest=0.2) as writers:
        await run_load(create_engine(postgres.url()), writers, crashes=False, seconds=1.0)
    database = Database(engine := create_engine(postgres.url()))
    async with (
        leased(database, TABLES, ReaderSettings("load", "last"), Signals()) as reading,
        asyncio.timeout(20),
    ):
        stream = reading.batches()
        coming = asyncio.ensure_future(anext(stream))
        while reading.position.gaps:
            await asyncio.sleep(0.01)
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
    (group,) = await database.run(groups, TABLES)
    assert (group.owner, group.position.gaps) == (None, ())
    await database.close()
    engine.dispose()

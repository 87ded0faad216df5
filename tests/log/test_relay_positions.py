"""The relay on a transport that keeps its position: killed at the worst moment, lost entries, a log that was set back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import Connection

from sqla_events import relay
from sqla_events.bridge import Database, Doorbell
from sqla_events.errors import LeaseLost, ProviderUnavailable
from sqla_events.event import Event, decode
from sqla_events.log import append, groups, leases
from sqla_events.log.settings import ReaderSettings
from sqla_events.position import Position
from sqla_events.provider import Batch, Features, Kept
from sqla_events.relay import Relay
from sqla_events.schema import Tables
from sqla_events.signals import Signals

TABLES = Tables()


class Keeping:
    """A transport in memory that stores the position with the messages."""

    features = Features(True, True, True, idempotent_publish=True, keeps_position=True)

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.kept = Kept()
        self.epoch = 0
        self.intact = True

    async def resume(self, lease: Batch, replace: bool = False) -> Kept:
        self._fence(lease.epoch)
        if replace:
            self.kept = Kept(lease.position)
        return self.kept

    async def publish(self, batch: Batch) -> None:
        self._fence(batch.epoch)
        before = Position.from_text(self.kept.position)
        fresh = [one for one in batch.messages if one.seq is None or not before.done(one.seq)]
        self.events += [decode(one.body) for one in fresh]
        seq, identity = max([(self.kept.seq or 0, self.kept.id)] + [(one.seq or 0, one.id) for one in fresh])
        self.kept = Kept(before.also(Position.from_text(batch.position)).text, seq, identity)

    def lose(self, count: int) -> None:
        """As a crash does that costs the last second: entries and position go back together."""
        del self.events[count:]
        self.kept = Kept(Position(count).text, count, str(self.events[-1].id)) if count else Kept()
        self.intact = False

    def _fence(self, epoch: int) -> None:
        if epoch < self.epoch or (epoch == self.epoch and not self.intact):
            raise LeaseLost("not what it was")
        self.epoch, self.intact = epoch, True

    @property
    def numbers(self) -> list[Any]:
        return [event.payload for event in self.events]


class Running:
    """Relays, one after the other, as a supervisor runs them."""

    def __init__(self, database: Database, provider: Keeping) -> None:
        settings = ReaderSettings("relay:test", "one", poll_interval=0.02, batch_size=10, prefetch=40, lease=2.0)
        self._make = lambda: Relay(database, TABLES, provider, settings, Signals(), Doorbell())  # type: ignore[arg-type]
        self._stopping = False

    async def __aenter__(self) -> Running:
        self.task = asyncio.create_task(self._run())
        return self

    async def _run(self) -> None:
        while not self._stopping:
            self.relay = self._make()
            try:
                await self.relay.run()
            except LeaseLost:
                continue

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        self.relay.stop()
        async with asyncio.timeout(10):
            await asyncio.gather(self.task, return_exceptions=True)


async def publish(database: Database, *numbers: int) -> None:
    await database.run(append, TABLES, [Event(type="public.things.create", payload=n, key="1") for n in numbers])


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def committed(database: Database) -> int:
    return (await database.run(groups, TABLES))[0].position.high


async def test_published_and_not_committed_is_not_published_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay dies between the two, more than once; what it had published stays once."""
    provider = Keeping()
    await publish(database, *range(25))
    for count in (25, 30):
        with monkeypatch.context() as broken:

            def refuse(*_: object) -> None:
                raise ProviderUnavailable("the database is gone")

            broken.setattr(leases, "commit", refuse)
            async with Running(database, provider) as running:
                await until(lambda count=count: len(provider.events) == count)
                running.task.cancel()
        await publish(database, *range(count, count + 5))
    assert await committed(database) == 0
    async with Running(database, provider):
        await until(lambda: len(provider.events) == 35)
    assert provider.numbers == list(range(35))
    assert await committed(database) == 35


@pytest.mark.parametrize("left", [0, 20])
async def test_what_the_transport_lost_is_published_again(database: Database, left: int) -> None:
    """While no relay ran: some of it, or all of it. In order, and what it still has not twice."""
    provider = Keeping()
    await publish(database, *range(30))
    async with Running(database, provider):
        await until(lambda: len(provider.events) == 30)
    assert await committed(database) == 30
    provider.lose(left)
    async with Running(database, provider):
        await until(lambda: len(provider.events) == 30)
        await publish(database, 30)
        await until(lambda: len(provider.events) == 31)
    assert provider.numbers == list(range(31))


async def test_a_loss_is_noticed_in_silence(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing new has to be published for it."""
    monkeypatch.setattr(relay, "LOOK_SECONDS", 0.02)
    provider = Keeping()
    await publish(database, *range(30))
    async with Running(database, provider):
        await until(lambda: len(provider.events) == 30)
        provider.lose(12)
        await until(lambda: len(provider.events) == 30)
    assert provider.numbers == list(range(30))


async def test_numbers_without_rows_are_not_lost(database: Database) -> None:
    """What the transport's position lacks, and no row has (a rolled-back transaction), sets nothing back."""
    provider = Keeping()
    await publish(database, *range(10))
    async with Running(database, provider):
        await until(lambda: len(provider.events) == 10)
    await database.run(lambda link: link.execute(TABLES.events.delete().where(TABLES.events.c.seq == 5)))
    provider.kept = Kept(Position(10, ((5, 5),)).text, provider.kept.seq, provider.kept.id)
    epoch = provider.epoch
    async with Running(database, provider):
        await publish(database, 10)
        await until(lambda: len(provider.events) == 11)
    assert provider.numbers == list(range(11))
    assert provider.epoch == epoch + 1


async def test_numbers_that_a_log_gives_out_again_are_published(database: Database) -> None:
    """The log fell back to an older state: what the transport knows about the numbers since is about other events."""
    provider = Keeping()
    await publish(database, *range(10))
    async with Running(database, provider):
        await until(lambda: len(provider.events) == 10)
    await database.run(set_back, 6)
    await publish(database, *range(100, 102))
    async with Running(database, provider):
        await until(lambda: len(provider.events) == 12)
        await publish(database, *range(102, 106))
        await until(lambda: len(provider.events) == 16)
    assert provider.numbers == [*range(10), *range(100, 106)]


def set_back(connection: Connection, seq: int) -> None:
    """As restoring a backup does."""
    connection.execute(TABLES.events.delete().where(TABLES.events.c.seq > seq))
    connection.execute(TABLES.positions.update().values(high=seq, gaps="[]"))
    numbers = {
        "postgresql": "SELECT setval('events_seq_seq', :seq)",
        "sqlite": "UPDATE sqlite_sequence SET seq = :seq WHERE name = 'events'",
    }
    connection.execute(text(numbers[connection.dialect.name]), {"seq": seq})

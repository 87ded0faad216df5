"""Partitions spread over processes that come and go, and a group cut anew while it is read: on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqla_events.bridge import Database, Doorbell
from sqla_events.config import Config
from sqla_events.errors import ConfigError, LeaseLost
from sqla_events.event import Event, decode
from sqla_events.log import append, groups, leases
from sqla_events.log.cut import remaining
from sqla_events.log.leases import Progress, Seat
from sqla_events.log.reader import Reader, leased
from sqla_events.log.reading import partition_numbers
from sqla_events.log.settings import ReaderSettings
from sqla_events.log.spread import seek, spread, to_claim, to_take
from sqla_events.position import Position, ranges_of
from sqla_events.provider import Batch, Features, Interest, ProviderContext
from sqla_events.providers.memory import MemoryProvider
from sqla_events.relay import Relays
from sqla_events.schema import Tables
from sqla_events.signals import Signals
from tests.log.readers import publish, reading, until

TABLES = Tables()
KEYS = 8
BATCH = 20


class Transport:
    """What every relay publishes to: remembers, and looks at each lane."""

    features = Features(durable=True, shared_groups=True, cross_process=True)

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.inverted = 0
        self._newest: dict[str | None, int] = {}

    async def publish(self, batch: Batch) -> None:
        await asyncio.sleep(0.002)
        for message in batch.messages:
            event = decode(message.body)
            self.inverted += event.payload <= self._newest.get(event.key, -1)
            self._newest[event.key] = event.payload
            self.seen.append(event.payload)


class Process:
    """One that relays its share of the group."""

    def __init__(self, database: Database, transport: Any, owner: str, partitions: int = 4, **given: Any) -> None:
        given = {"lease": 20.0} | given  # not lost on a machine that is busy otherwise
        about = ReaderSettings("g", owner, partitions=partitions, batch_size=BATCH, poll_interval=0.02, **given)
        self._relays = Relays(database, TABLES, transport, about, Signals(), Doorbell())
        self._task = asyncio.create_task(self._relays.run())

    async def stop(self) -> None:
        """As at SIGTERM."""
        self._relays.stop()
        async with asyncio.timeout(60):
            await self._task

    async def crash(self) -> None:
        """As at SIGKILL: nothing is committed or given back."""
        for relay in self._relays._working.values():
            relay._provider = relay._database = Gone()  # type: ignore[assignment]
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task


class Gone:
    def __getattr__(self, name: str) -> Any:
        raise asyncio.CancelledError


class Load:
    """Events of a few rows, numbered, for as long as the block lasts."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._over = False
        self.count = 0

    async def __aenter__(self) -> Load:
        self._task = asyncio.create_task(self._write())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True
        await self._task

    async def _write(self) -> None:
        while not self._over:
            events = [Event(type="a.b.c", key=str(n % KEYS), payload=n) for n in range(self.count, self.count + 10)]
            await self._database.run(append, TABLES, events)
            self.count += 10
            await asyncio.sleep(0.01)


async def held(database: Database) -> dict[str, int]:
    """Leases by owner."""
    seats = await database.run(leases.survey, TABLES, "g")
    return dict(Counter(seat.owner for seat in seats if seat.owner))


def spread_as(database: Database, *counts: int) -> Callable[[], Any]:
    """Whether the leases are spread like this."""

    async def check() -> bool:
        return sorted((await held(database)).values(), reverse=True) == list(counts)

    return check


# Who takes what -----------------------------------------------------------------------------------------------------


def seats(*owners: str | None, claims: dict[int, str] | None = None) -> list[Seat]:
    return [Seat(number, len(owners), owner, (claims or {}).get(number)) for number, owner in enumerate(owners)]


@pytest.mark.parametrize(
    ("given_", "me", "expected"),
    [
        (seats("a", "a", "a", "a"), "b", [0, 1]),
        (seats("a", "a", "a"), "b", [0]),
        (seats("a", "a", "b", "b"), "c", [2]),
        (seats("a", "b", "c", "d"), "e", []),
        (seats("a"), "b", []),
        (seats("a", "a", "a", "a", claims={0: "b", 1: "b"}), "b", []),
        (seats("a", "a", "a", "a", claims={0: "b"}), "b", [1]),
        (seats("a", "a", "a", "a", claims={0: "b", 1: "b"}), "a", []),
        (seats("a", "a", "a", "b", "b", "c"), "c", [0]),
        (seats("a", None, None, None), "a", []),
    ],
)
def test_how_many_are_claimed(given_: list[Seat], me: str, expected: list[int]) -> None:
    """Half of the difference to whoever has most."""
    wanted = {seat.partition for seat in given_ if seat.owner != me}
    assert to_claim(given_, me, wanted) == expected


def test_what_may_be_taken() -> None:
    """What is free and promised to nobody else."""
    given_ = seats(None, "b", None, None, "a", claims={2: "b", 3: "a"})
    assert to_take(given_, "a", {0, 1, 2, 3, 4}) == [0, 3, 4]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**32))
def test_claims_end_in_an_even_spread(partitions: int, processes: int, seed: int) -> None:
    """Whoever comes in whatever order: no two differ by more than one, and then nobody claims any more."""
    chance, names = random.Random(seed), [f"p{n}" for n in range(processes)]
    owners: list[str | None] = [None] * partitions
    claims: dict[int, str] = {}
    for _ in range(40 * processes):
        me = chance.choice(names)
        now = [Seat(n, partitions, owners[n], claims.get(n)) for n in range(partitions)]
        wanted = {n for n in range(partitions) if owners[n] != me}
        for number in to_take(now, me, wanted):
            owners[number] = me
            claims.pop(number, None)
        claims |= dict.fromkeys([] if to_take(now, me, wanted) else to_claim(now, me, wanted), me)
        for number in [n for n in claims if chance.random() < 0.5]:
            owners[number] = None  # the owner gives it up
    counts = Counter(dict.fromkeys(names, 0)) + Counter(owner for owner in owners if owner)
    assert sum(counts.values()) >= partitions - len(claims)
    assert max(counts.values()) - min(counts[name] for name in names) <= 1 or claims


# Processes ----------------------------------------------------------------------------------------------------------


async def test_leases_spread_evenly_as_processes_join_and_leave(database: Database) -> None:
    """Handed over without a gap: nothing is lost, swapped, or published twice."""
    transport = Transport()
    async with Load(database) as load:
        crew = [Process(database, transport, "one")]
        await until(spread_as(database, 4))
        for expected in ((2, 2), (2, 1, 1), (1, 1, 1, 1)):
            crew.append(Process(database, transport, f"process-{len(crew)}"))
            await until(spread_as(database, *expected))
        crew.append(Process(database, transport, "standby"))
        for expected in ((1, 1, 1, 1), (2, 1, 1), (2, 2), (4,)):
            await crew.pop(0).stop()
            await until(spread_as(database, *expected))
    await until(lambda: len(transport.seen) >= load.count)
    await crew.pop().stop()
    assert sorted(transport.seen) == list(range(load.count))
    assert transport.inverted == 0
    assert {(part.owner, part.position.gaps) for part in await database.run(groups, TABLES)} == {(None, ())}


async def test_a_crashed_process_is_replaced_when_its_leases_expire(database: Database) -> None:
    """What it had not committed comes again; nothing is lost."""
    transport = Transport()
    async with Load(database) as load:
        one, two = (Process(database, transport, name, lease=1.0) for name in ("one", "two"))
        await until(spread_as(database, 2, 2))
        await one.crash()
        await until(lambda: held_by(database, "two", 4))
    await until(lambda: set(transport.seen) == set(range(load.count)))
    await two.stop()


async def held_by(database: Database, owner: str, count: int) -> bool:
    return await held(database) == {owner: count}


async def test_a_claim_waits_for_what_is_in_hand_and_no_longer_than_a_lease(database: Database) -> None:
    """Not settled in time, reading goes on here; settled in time, the lease goes to whoever asked, and to nobody else."""
    await publish(database, 20)
    other = ReaderSettings("g", "two", partitions=2, lease=30.0)
    async with reading(database, lease=0.6, partitions=2) as reader:
        stream = reader.batches()
        got = list(await anext(stream))
        coming = await _claimed(database, reader, stream, other)
        await until(lambda: reader._deaf_until > 0)
        await publish(database, 40)
        got += await coming
        assert len(got) > 20
        reader._deaf_until = 0.0
        coming = await _claimed(database, reader, stream, other)
        await until(lambda: reader._claimed)
        assert not coming.done()
        for delivery in got:
            delivery.ack()
        with pytest.raises(StopAsyncIteration):
            await coming
    assert await database.run(leases.acquire, TABLES, replace(other, owner="three")) is None
    lease = await database.run(leases.acquire, TABLES, other)
    assert lease is not None
    assert lease.position == Position(60)


async def _claimed(database: Database, reader: Reader, stream: Any, other: ReaderSettings) -> asyncio.Future[Any]:
    coming = asyncio.ensure_future(anext(stream))
    await database.run(leases.withdraw, TABLES, other)
    await database.run(leases.claim, TABLES, other)
    await reader.commit()
    return coming


async def test_a_stop_while_a_lease_is_given_up(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up nevertheless, with what is settled: else nobody would read until it expires, and that would come again."""
    transport, closing, goes_on = Transport(), asyncio.Event(), asyncio.Event()
    commit = Reader.commit

    async def slowly(reader: Reader) -> None:
        if reader.lease.partition == 0 and reader._claimed:
            closing.set()
            await goes_on.wait()
        await commit(reader)

    await database.run(append, TABLES, [Event(type="a.b.c", key=str(n % KEYS), payload=n) for n in range(40)])
    one = Process(database, transport, "one", partitions=2)
    await until(spread_as(database, 2))
    await until(lambda: len(transport.seen) == 40)
    monkeypatch.setattr(Reader, "commit", slowly)
    await database.run(leases.claim, TABLES, ReaderSettings("g", "two", partitions=2))
    await closing.wait()
    stopping = asyncio.create_task(one.stop())
    await asyncio.sleep(0.05)
    goes_on.set()
    await stopping
    assert await held(database) == {}
    assert {part.position.high for part in await database.run(groups, TABLES)} == {40}


async def test_claims_go_with_whoever_made_them(database: Database) -> None:
    """A standby that ends leaves no lease reserved for it."""
    transport = Transport()
    one = Process(database, transport, "one")
    await until(spread_as(database, 4))
    async with spread(database, TABLES, ReaderSettings("g", "two", partitions=4, lease=60.0), Signals()) as group:
        waiting = asyncio.create_task(group.won(1))
        await until(lambda: claimed(database, "two"))
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert not await claimed(database, "two")
    await one.stop()


async def claimed(database: Database, owner: str) -> bool:
    return any(seat.claimant == owner for seat in await database.run(leases.survey, TABLES, "g"))


async def test_an_error_of_the_database_reaches_whoever_waits(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is not swallowed by the task that looks."""
    monkeypatch.setattr("sqla_events.log.spread.seek", lambda *_: (_ for _ in ()).throw(ConfigError("no")))
    with pytest.raises(ConfigError, match="no"):
        async with leased(database, TABLES, ReaderSettings("g", "one"), Signals()):
            pass


# Cutting anew -------------------------------------------------------------------------------------------------------


async def test_another_number_of_partitions_waits_for_the_others_and_goes_on_exactly(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Old and new settings overlap, as in a rolling deployment: nothing is lost, swapped, or published twice."""
    transport = Transport()
    async with Load(database) as load:
        old = [Process(database, transport, f"old-{n}", partitions=1) for n in range(2)]
        await until(spread_as(database, 1))
        for step, partitions in enumerate((3, 2, 5, 1)):
            new = [Process(database, transport, f"new-{step}-{n}", partitions=partitions) for n in range(2)]
            await until(lambda partitions=partitions: f"'partitions' is {partitions}" in caplog.text)
            await more(transport)
            for process in old:
                await process.stop()
            await until(lambda partitions=partitions: cut_into(database, partitions))
            await more(transport)
            old = new
    await until(lambda: len(transport.seen) >= load.count)
    for process in old:
        await process.stop()
    assert sorted(transport.seen) == list(range(load.count))
    assert transport.inverted == 0


async def more(transport: Transport) -> None:
    """Until some more has been published."""
    count = len(transport.seen)
    await until(lambda: len(transport.seen) > count + 20)


async def cut_into(database: Database, partitions: int) -> bool:
    parts = await database.run(groups, TABLES)
    return [(part.partition, part.partitions) for part in parts] == [(n, partitions) for n in range(partitions)]


async def test_a_zombie_of_another_cut_commits_nothing(database: Database) -> None:
    """Its partition is another one now, or none: the epoch is over in both cases."""
    await database.run(append, TABLES, [Event(type="a.b.c", key=str(n), payload={"n": n}) for n in range(20)])
    old = ReaderSettings("g", "old", partitions=2, lease=0.0)
    zombies = (await database.run(seek, TABLES, old, {0, 1})).won
    assert len(zombies) == 2
    new = ReaderSettings("g", "new", partitions=1)
    (lease,) = (await database.run(seek, TABLES, new, {0})).won
    for zombie in zombies:
        assert lease.epoch > zombie.epoch
        with pytest.raises(LeaseLost):
            await database.run(leases.commit, TABLES, zombie, Progress(Position(20), (0,)), 5.0)
        await database.run(leases.release, TABLES, zombie)
    (part,) = await database.run(groups, TABLES)
    assert (part.owner, part.position) == ("new", Position())


async def test_rows_that_an_older_version_had_not_made_yet_are_added(database: Database) -> None:
    """It made each when its lease was first taken."""
    await database.run(seek, TABLES, ReaderSettings("g", "one", partitions=3), {0, 1, 2})
    await database.run(lambda link: link.execute(TABLES.positions.delete().where(TABLES.positions.c.partition == 1)))
    won = (await database.run(seek, TABLES, ReaderSettings("g", "one", partitions=3), {1})).won
    assert [lease.partition for lease in won] == [1]


async def test_what_is_done_stays_done_and_nothing_else(database: Database) -> None:
    """Whatever the old partitions had done, each of its own events; unseen numbers wait unless one has proven them dead."""
    chance = random.Random(3)
    await database.run(append, TABLES, [Event(type="a.b.c", key=str(chance.randrange(30)), payload=n) for n in range(300)])
    await database.run(lambda link: link.execute(TABLES.events.delete().where(TABLES.events.c.seq % 10 == 0)))
    for of in (1, 2, 3, 5):
        old = [position(chance) for _ in range(of)]
        own = await database.run(partition_numbers, TABLES, 0, 300, of)
        top = max(one.high for one in old)
        result = await database.run(remaining, TABLES, old)
        assert result.high == top
        for seq in range(1, top + 1):
            done = old[own[seq]].done(seq) if seq in own else any(one.done(seq) for one in old)
            assert result.done(seq) == done, (of, seq, old)


def position(chance: random.Random) -> Position:
    high = chance.randrange(50, 300)
    return Position(high, ranges_of(chance.sample(range(1, high), chance.randrange(8))))


async def test_partitions_far_apart_are_cut_at_the_slowest(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the window what was done comes again: never the other way round."""
    monkeypatch.setattr("sqla_events.log.cut.WINDOW", 10)
    await database.run(append, TABLES, [Event(type="a.b.c", key=str(n), payload=n) for n in range(100)])
    result = await database.run(remaining, TABLES, [Position(20), Position(90)])
    assert result.high == 30
    own = await database.run(partition_numbers, TABLES, 0, 30, 2)
    assert {seq for seq in range(1, 31) if not result.done(seq)} == {seq for seq, n in own.items() if n == 0 and seq > 20}
    result = await database.run(remaining, TABLES, [Position(20, ((2, 9), (12, 19))), Position(90)])
    assert {seq for seq in range(1, 21) if not result.done(seq)} == {*range(2, 10), *(seq for seq in range(12, 20) if own[seq] == 0)}


async def test_consumers_of_the_log_share_as_relays_do(database: Database) -> None:
    """Two readers of one group in two processes; a handover makes nothing come twice."""
    await database.run(append, TABLES, [Event(type="a.b.c", key=str(n % KEYS), payload={"n": n}) for n in range(50)])
    config = Config(partitions=4, poll_interval=0.02)
    seen: list[int] = []

    async def consume(name: str) -> None:
        provider = MemoryProvider(config, ProviderContext(database, TABLES, name, Signals(), Doorbell()))
        stream = provider.consume(Interest("g", ("*",), name, 100))
        try:
            async for batch in stream:
                await asyncio.sleep(0.001)
                for delivery in batch:
                    seen.append(delivery.event().payload["n"])
                    delivery.ack()
        finally:
            await stream.aclose()

    one = asyncio.create_task(consume("one"))
    await until(spread_as(database, 4))
    two = asyncio.create_task(consume("two"))
    await until(spread_as(database, 2, 2))
    await database.run(append, TABLES, [Event(type="a.b.c", key=str(n % KEYS), payload={"n": n}) for n in range(50, 90)])
    await until(lambda: len(seen) >= 90)
    one.cancel()
    await asyncio.gather(one, return_exceptions=True)
    await until(lambda: held_by(database, "two", 4))
    await database.run(append, TABLES, [Event(type="a.b.c", key=str(n % KEYS), payload={"n": n}) for n in range(90, 120)])
    await until(lambda: len(seen) >= 120)
    two.cancel()
    await asyncio.gather(two, return_exceptions=True)
    assert sorted(seen) == list(range(120))

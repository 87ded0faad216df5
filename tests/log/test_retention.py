"""What is old goes, in portions and under load, and never what somebody needs."""

from __future__ import annotations

import asyncio
import datetime as dt

from sqlalchemy import create_engine, text

from sqla_events.bridge import Database
from sqla_events.deliveries import LogDeadLetters
from sqla_events.log.retention import BEGINNING, Sweep, retain
from sqla_events.schema import Tables
from sqla_events.upkeep import keep_up
from tests.log.readers import failure, numbers, publish, reading, take, until
from tests.log.test_spread import Load, Process, Transport

TABLES = Tables()


async def passed(database: Database, seconds: float, sweep: Sweep = BEGINNING, batch: int = 5000) -> list[Sweep]:
    """The steps of one pass."""
    steps = [sweep]
    while not steps[-1].over or len(steps) == 1:
        steps.append(await database.run(retain, TABLES, seconds, steps[-1], None, batch))
    return steps[1:]


async def count(database: Database, table: str = "events") -> int:
    found: int = await database.run(lambda link: link.execute(text(f"SELECT count(*) FROM {table}")).scalar())
    return found


async def test_what_is_not_through_and_what_a_delivery_needs_stays(database: Database) -> None:
    """Oldest first, in portions, and nothing before every group is through."""
    await publish(database, 10)
    assert await passed(database, 0.0) == [Sweep(0, 0, 0, over=True)]
    async with reading(database) as reader:
        deliveries = await take(reader, 10)
        deliveries[1].bury(failure())
        for delivery in deliveries[:7]:
            delivery.ack()
    assert [step.deleted for step in await passed(database, 3600.0)] == [0]
    steps = await passed(database, 0.0, batch=4)
    assert [step.deleted for step in steps] == [3, 3]
    assert [step.deleted for step in await passed(database, 0.0, batch=4)] == [0, 0]
    async with reading(database) as reader:
        assert numbers(await take(reader, 3)) == [7, 8, 9]
    assert [letter.event.payload["n"] for letter in await LogDeadLetters(database, TABLES, lambda: None).list()] == [1]


async def test_a_pass_begins_where_something_is_left(database: Database) -> None:
    """It does not look again at what the last one has emptied."""
    await publish(database, 20)
    async with reading(database) as reader:
        deliveries = await take(reader, 20)
        deliveries[9].bury(failure())
        for delivery in deliveries:
            delivery.ack()
    steps = await passed(database, 0.0, batch=4)
    assert (sum(step.deleted for step in steps), steps[-1].bottom) == (19, 8)
    await publish(database, 4)
    again = await passed(database, 0.0, steps[-1], batch=4)
    assert [(step.deleted, step.after) for step in again] == [(0, 13), (0, 8)]
    assert await count(database, "event_batches") > 0


async def test_a_pass_ends_where_events_are_young(database: Database) -> None:
    """However many there are above."""
    await publish(database, 12)
    async with reading(database) as reader:
        for delivery in await take(reader, 12):
            delivery.ack()
    old = "UPDATE events SET created_at = '2020-01-01T00:00:00+00:00' WHERE seq <= 6"
    await database.run(lambda link: link.execute(text(old)))
    steps = await passed(database, 3600.0, batch=4)
    assert [(step.deleted, step.after) for step in steps] == [(4, 4), (2, 4)]
    assert steps[-1].bottom == 4


async def test_readers_notice_nothing(database: Database) -> None:
    """Events are deleted as soon as they are done, while relays come and go: nothing lost, swapped or twice."""
    transport = Transport()
    upkeep = asyncio.create_task(keep_up(database, TABLES, 0.05, 1000))
    async with Load(database) as load:
        one = Process(database, transport, "one", partitions=2)
        await until(lambda: len(transport.seen) > 100)
        two = Process(database, transport, "two", partitions=2)
        await until(lambda: len(transport.seen) > 300)
        await one.stop()
    await until(lambda: len(transport.seen) >= load.count)
    await until(lambda: nothing_left(database))
    await two.stop()
    upkeep.cancel()
    await asyncio.gather(upkeep, return_exceptions=True)
    assert sorted(transport.seen) == list(range(load.count))
    assert transport.inverted == 0
    assert await count(database, "event_batches") <= 6


async def nothing_left(database: Database) -> bool:
    return await count(database) == 0


async def test_batches_are_forgotten_after_a_week(database: Database) -> None:
    """They are a few rows a second while there is work, and must not be for ever, whether events are or not."""
    await publish(database, 2)
    async with reading(database) as reader:
        (await take(reader, 2))[0].ack()
    old = TABLES.batches.update().values(completed_at=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
    await database.run(lambda link: link.execute(old))
    async with reading(database) as reader:
        (await take(reader, 1))[0].ack()
    assert await count(database, "event_batches") == 2
    upkeep = asyncio.create_task(keep_up(database, TABLES, None, 1000))
    await until(lambda: only_new_batches(database))
    upkeep.cancel()
    await asyncio.gather(upkeep, return_exceptions=True)


async def only_new_batches(database: Database) -> bool:
    return await count(database, "event_batches") == 1


async def test_one_process_at_a_time_deletes(postgres_url: str) -> None:
    """Another one leaves it to the first and looks again later."""
    from sqla_events.log.retention import alone

    engine = create_engine(postgres_url)
    with engine.begin() as one, engine.begin() as other:
        assert alone(one)
        assert not alone(other)
        assert retain(other, TABLES, 0.0) == Sweep(over=True)
    engine.dispose()

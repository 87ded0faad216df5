"""Leases, fencing, standby, pauses, dead letters, large batches, partitions: on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine
from sqlalchemy.pool import QueuePool, StaticPool

from sqla_events.bridge import Database, Doorbell
from sqla_events.deliveries import LogDeadLetters
from sqla_events.errors import ConfigError, LeaseLost
from sqla_events.event import Event, Status, decode
from sqla_events.log import append, get_event, groups, leases, list_events, stats
from sqla_events.log.delivery import LogDelivery
from sqla_events.log.reader import Reader
from sqla_events.log.settings import ReaderSettings
from sqla_events.log.spread import seek
from tests.log.readers import TABLES, failure, numbers, publish, reading, take


async def test_what_is_settled_does_not_come_again_and_the_rest_does(database: Database) -> None:
    """In whatever order it was settled."""
    await publish(database, 10)
    async with reading(database) as reader:
        for delivery in reversed(await take(reader, 10)):
            if delivery.event().payload["n"] % 3:
                delivery.ack()
    async with reading(database) as reader:
        assert numbers(await take(reader, 4)) == [0, 3, 6, 9]
    (group,) = await database.run(groups, TABLES)
    assert group.position.pending_below() == 4
    assert group.position.high == 10


async def test_groups_do_not_know_each_other(database: Database) -> None:
    """Each gets every event; one begins at the end because it says so, another after a number."""
    await publish(database, 4)
    async with reading(database, "a") as a, reading(database, "b") as b:
        assert numbers(await take(a, 4)) == numbers(await take(b, 4)) == [0, 1, 2, 3]
    async with reading(database, "c", start=-1) as end, reading(database, "d", start=2) as middle:
        assert numbers(await take(middle, 2)) == [2, 3]
        await publish(database, 1)
        assert numbers(await take(end, 1)) == [0]


async def test_both_forms_of_a_row_are_the_same_event(database: Database) -> None:
    """The decoded event, and the wire form that a relay sends without decoding it."""
    told: dict[str, Any] = {
        "user_id": 7,
        "session_id": 's"1',
        "instance_id": "h",
        "metadata": {"a": 1.5},
        "key": "1'\n",
        "source": "frontend",
    }
    events = [
        Event(type="public.things.create", payload={"t": ("a", b"b")}, **told),
        Event(type="two.segments", payload=None),
        Event(type="a.b.c.d", payload="\x00ü\U0001f600", schema_version=3, user_id="x", schema="", entity="\x1e"),
        Event(type="public.x.y", schema="odd\x1fname", payload=[1]),
    ]
    await database.run(append, TABLES, events)
    async with reading(database) as reader:
        deliveries = await take(reader, 4)
    for event, delivery in zip(events, deliveries, strict=True):
        assert decode(delivery.row.to_message().body) == delivery.event()
        expected = event.replace(seq=delivery.row.seq, created_at=delivery.event().created_at)
        if event.entity == "\x1e":
            expected = expected.replace(entity=None)
        assert delivery.event() == expected
        assert abs((delivery.event().created_at - event.created_at).total_seconds()) < 0.001
        assert delivery.lane == delivery.row.to_message().lane


# Leases -------------------------------------------------------------------------------------------------------------


async def test_a_standby_takes_over_at_once_when_the_lease_is_given_back(database: Database) -> None:
    """Long before it would have expired."""
    await publish(database, 3)
    async with reading(database, lease=60.0) as first:
        waiting = asyncio.create_task(_one_life(database, owner="two", lease=60.0))
        (await take(first, 3))[0].ack()
        assert not waiting.done()
    async with asyncio.timeout(10):
        assert numbers(await waiting) == [1, 2]


async def _one_life(database: Database, **settings: Any) -> list[LogDelivery]:
    async with reading(database, **settings) as reader:
        return await take(reader, 1)


async def test_a_standby_takes_over_after_a_crash_when_the_lease_expires(database: Database) -> None:
    """Nothing that was not committed is lost."""
    await publish(database, 3)
    async with reading(database, lease=0.5) as first:
        for delivery in await take(first, 3):
            delivery.ack()
        first.close = _nothing  # type: ignore[method-assign]
        first.commit = _nothing  # type: ignore[method-assign]
    async with asyncio.timeout(10):
        assert numbers(await _one_life(database, owner="two")) == [0, 1, 2]


async def _nothing() -> None:
    pass


async def test_a_paused_reader_changes_nothing_and_stops_when_it_wakes(database: Database) -> None:
    """Its epoch is old: its commit is refused, and it hands out nothing more."""
    await publish(database, 2)
    async with reading(database, lease=0.5) as zombie:
        stream = zombie.batches()
        handed = await anext(stream)
        await zombie.commit()
        pause(zombie)
        async with asyncio.timeout(10):
            async with reading(database, owner="two") as heir:
                assert numbers(await take(heir, 2)) == [0, 1]
                await heir.commit()
                for delivery in handed:
                    delivery.ack()
                await publish(database, 1)
                with pytest.raises(LeaseLost, match="lost partition 0"):
                    await anext(stream)
                (stored,) = await database.run(groups, TABLES)
                assert (stored.owner, stored.epoch, stored.position.gaps) == ("two", 2, ((1, 2),))


def pause(reader: Reader) -> None:
    """What SIGSTOP beyond the lease looks like from inside: no commit, no renewal, and a clock that went on."""
    reader._valid_until = time.monotonic() - 1
    reader._until_due = asyncio.Event().wait  # type: ignore[method-assign, assignment]


async def test_an_expired_lease_that_nobody_took_is_renewed(database: Database) -> None:
    """A pause alone is no harm."""
    await publish(database, 1)
    async with reading(database, lease=0.5) as reader:
        pause(reader)
        assert numbers(await take(reader, 1)) == [0]
        assert reader._valid_until > time.monotonic()


async def test_two_of_one_partition_never_read_at_the_same_time(database: Database) -> None:
    """Whoever asks while the lease is held gets nothing."""
    async with reading(database, lease=30.0):
        other = ReaderSettings("g", "two", lease=30.0)
        assert await database.run(leases.acquire, TABLES, other) is None
        assert not (await database.run(seek, TABLES, replace(other, partitions=2), {0, 1})).fits


# Backpressure, sizes, bells -----------------------------------------------------------------------------------------


async def test_no_more_than_the_prefetch_is_out(database: Database) -> None:
    """Reading goes on as soon as there is room."""
    await publish(database, 50)
    async with reading(database, prefetch=20, batch_size=8) as reader:
        out: list[LogDelivery] = []
        seen: list[int] = []
        async with asyncio.timeout(20):
            async for batch in reader.batches():
                out += batch
                seen += numbers(batch)
                assert len(out) <= 20
                if len(out) >= 16:
                    for delivery in out[:9]:
                        delivery.ack()
                    del out[:9]
                if len(seen) == 50:
                    break
        assert seen == list(range(50))


async def test_a_bell_wakes_a_reader_that_would_wait_long(database: Database) -> None:
    """Polling alone would take an hour here."""
    bell = Doorbell()
    async with reading(database, "g", bell, poll_interval=3600.0) as reader:
        stream = reader.batches()
        coming = asyncio.ensure_future(anext(stream))
        reader._pace._active -= 7200  # idle for long
        await asyncio.sleep(0.05)
        await publish(database, 1)
        await asyncio.to_thread(bell.ring)
        async with asyncio.timeout(10):
            assert numbers(await coming) == [0]
        await stream.aclose()


async def test_partitions_share_the_keys(database: Database) -> None:
    """Every event goes to one of them, a row's events to the same one, and none is taken for missing."""
    events = await publish(database, 40)
    async with reading(database, partitions=2) as one, reading(database, partitions=2, partition=1) as two:
        mine, others = await asyncio.gather(_drained(one), _drained(two))
    assert sorted(numbers(mine) + numbers(others)) == list(range(len(events)))
    assert not {delivery.lane for delivery in mine} & {delivery.lane for delivery in others}
    parts = await database.run(groups, TABLES)
    assert [(part.position.high, part.position.gaps) for part in parts] == [(40, ())] * 2


async def _drained(reader: Reader) -> list[LogDelivery]:
    taken: list[LogDelivery] = []
    stream = reader.batches()
    coming = asyncio.ensure_future(anext(stream))
    async with asyncio.timeout(20):
        while reader.position.high < 40 or reader.position.gaps:
            done, _ = await asyncio.wait({coming}, timeout=0.02)
            if done:
                for delivery in coming.result():
                    taken.append(delivery)
                    delivery.ack()
                coming = asyncio.ensure_future(anext(stream))
    coming.cancel()
    await asyncio.gather(coming, return_exceptions=True)
    return taken


# Troubles -----------------------------------------------------------------------------------------------------------


async def troubles(database: Database) -> list[tuple[Any, ...]]:
    def read(connection: Any) -> list[tuple[Any, ...]]:
        query = text("SELECT seq, subscription, status, attempts FROM event_deliveries ORDER BY seq, subscription")
        return [tuple(row) for row in connection.execute(query)]

    return await database.run(read)


async def test_attempts_survive_a_crash_and_go_with_the_acknowledgement(database: Database) -> None:
    """So does what was buried by one of several subscriptions."""
    await publish(database, 1)
    async with reading(database) as reader:
        (delivery,) = await take(reader, 1)
        delivery.retry(failure(1), 30.0)
        delivery.retry(failure(2), 30.0)
        delivery.bury(failure(4, "audit"))
    assert await troubles(database) == [(1, "audit", "failed", 4), (1, "mail", "retrying", 2)]
    async with reading(database) as reader:
        (delivery,) = await take(reader, 1)
        assert (delivery.attempts, delivery.buried) == ({"mail": 2}, {"audit"})
        delivery.ack()
    assert await troubles(database) == [(1, "audit", "failed", 4)]


async def test_a_dead_letter_is_redriven_to_its_subscription_and_then_gone(database: Database) -> None:
    """The others do not see the event again."""
    letters = LogDeadLetters(database, TABLES, lambda: None)
    await publish(database, 3)
    async with reading(database) as reader:
        for delivery in await take(reader, 3):
            delivery.bury(failure())
            delivery.ack()
        await reader.commit()
        found = await letters.list(group="g")
        assert [letter.event.payload["n"] for letter in found] == [0, 1, 2]
        assert {(letter.event.status, letter.event.error) for letter in found} == {(Status.FAILED, "OSError: no route")}
        assert await letters.list(group="g", after=found[1].id, limit=5) == found[2:]
        assert await letters.redrive([found[1].id]) == 1
        (again,) = await take(reader, 1)
        assert (again.only, numbers([again])) == ("mail", [1])
        again.ack()
        await reader.commit()
        assert await letters.discard(pattern="public.things.*", group="g") == 2
    assert await troubles(database) == []


async def test_a_redriven_letter_can_be_buried_again_and_survives_a_crash(database: Database) -> None:
    """It stays a dead letter, however often it comes back."""
    letters = LogDeadLetters(database, TABLES, lambda: None)
    await publish(database, 1)
    async with reading(database) as reader:
        (delivery,) = await take(reader, 1)
        delivery.bury(failure())
        delivery.ack()
    await letters.redrive()
    async with reading(database, lease=0.5) as reader:
        (delivery,) = await take(reader, 1)
        delivery.retry(failure(1), 9.0)
    async with reading(database) as reader:
        (delivery,) = await take(reader, 1)
        assert (delivery.only, delivery.attempts) == ("mail", {"mail": 1})
        delivery.bury(failure(2))
        await reader.commit()
        delivery.ack()
    assert await troubles(database) == [(1, "mail", "failed", 2)]


# Retention and questions --------------------------------------------------------------------------------------------


class Wanted:
    """An EventFilter."""

    pattern = "*"
    status = group = source = schema = entity = operation = key = user_id = None
    session_id = instance_id = since = until = after = None
    limit = 100
    newest_first = False

    def __init__(self, **given: Any) -> None:
        self.__dict__.update(given)


async def test_questions_about_events(database: Database) -> None:
    """One by its id, many by conditions, each with its status as a group sees it; how far the group is."""
    events = await publish(database, 6)
    assert (await database.run(get_event, TABLES, events[2].id, "g")) == events[2].replace(seq=3)
    async with reading(database) as reader:
        deliveries = await take(reader, 6)
        deliveries[0].ack()
        deliveries[1].bury(failure())
        deliveries[1].ack()
    seen = await database.run(list_events, TABLES, Wanted(), "g")
    assert [one.status for one in seen] == [Status.COMPLETED, Status.FAILED, *[Status.PROCESSING] * 4]
    assert seen[0].completed_at is not None
    assert seen[1].error == "OSError: no route"
    first = await database.run(get_event, TABLES, events[0].id, "g")
    assert first == seen[0]
    newest = await database.run(list_events, TABLES, Wanted(newest_first=True, limit=2, status="processing"), "g")
    assert [one.seq for one in newest] == [6, 5]
    assert [one.seq for one in await database.run(list_events, TABLES, Wanted(key="1", after=2), "g")] == []
    assert [one.seq for one in await database.run(list_events, TABLES, Wanted(since=seen[3].created_at), "g")][-1] == 6
    (of_group,) = await database.run(stats, TABLES)
    assert (of_group.lag, of_group.dead) == (4, 1)
    assert of_group.lag_seconds >= 0
    assert await database.run(get_event, TABLES, Event(type="x").id, "g") is None


def test_engines_that_cannot_keep_the_promise_are_refused() -> None:
    """Before anything is read."""
    for url, options, message in (
        ("sqlite://", {}, "in memory"),
        ("sqlite:///file:x?mode=memory&uri=true", {"poolclass": QueuePool}, "in memory"),
        ("sqlite:///x.db", {"poolclass": StaticPool}, "connections of their own"),
        ("sqlite:///x.db", {"isolation_level": "AUTOCOMMIT"}, "AUTOCOMMIT"),
    ):
        engine: Engine = create_engine(url, **options)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=message):
            Database(engine)


async def test_what_nobody_wants_is_passed_over(database: Database) -> None:
    """Far more than a batch of it is no pause; payloads of what matches are whole, also where names are odd to SQL."""
    odd = "sch'ema%.o$1:b_x.create"
    events = [Event(type="public.things.create", payload=n, key="1") for n in range(3000)]
    wanted = [Event(type=odd, payload="a", key="1"), Event(type="public.users.delete", payload={"n": 1}, key="1")]
    await database.run(append, TABLES, [*events, wanted[0], *events[:10], wanted[1]])
    patterns = ("sch'ema%.o$1:b_x.*", "public.us[e]rs.delete")
    async with reading(database, patterns=patterns, poll_interval=60.0) as reader:
        taken = await take(reader, 2)
        assert [(one.type, one.event().payload) for one in taken] == [(one.type, one.payload) for one in wanted]
        taken[1].ack()
    (group,) = await database.run(groups, TABLES)
    assert (group.position.high, group.position.pending_below()) == (3012, 1)


async def test_trouble_of_a_subscription_that_left_is_forgotten(database: Database) -> None:
    """An event that was waiting for its retry, and that nobody of the group wants any more."""
    await publish(database, 1)
    async with reading(database) as reader:
        (delivery,) = await take(reader, 1)
        delivery.retry(failure(), 60)
    await database.run(append, TABLES, [Event(type="public.others.create")])
    async with reading(database, patterns=("public.others.*",)) as reader:
        (wanted,) = await take(reader, 1)
        wanted.ack()
    (group,) = await database.run(groups, TABLES)
    assert (group.position.high, group.position.pending_below()) == (2, 0)
    assert await database.run(lambda connection: connection.execute(TABLES.deliveries.select()).all()) == []

"""Questions to the log: the same answers as the view's, by plans that never read the log from end to end."""

from __future__ import annotations

import datetime as dt
import random
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import create_engine, text

from sqla_events.bridge import Database
from sqla_events.event import Event, Status
from sqla_events.inspection import EventFilter
from sqla_events.log import get_event, list_events, stats
from sqla_events.position import ranges_of, to_text
from sqla_events.schema import Tables
from tests.log.readers import publish, reading, take
from tests.log.test_postgres import BULK
from tests.servers.postgres import PostgresDatabase

TABLES = Tables()
COUNT = 60


def in_all_states(connection: sa.Connection) -> None:
    """A group of two partitions with gaps, dead letters and retries."""
    chance = random.Random(5)
    for number in range(2):
        high = chance.randrange(30, 50)
        gaps = to_text(ranges_of(chance.sample(range(1, high), 8)))
        connection.execute(TABLES.positions.insert().values(group="g", partition=number, partitions=2, high=high, gaps=gaps))
    moment = dt.datetime.now(dt.UTC)
    for status, seqs in (("failed", range(2, 30, 3)), ("retrying", range(1, 30, 7)), ("redriven", range(4, 20, 6))):
        for seq in seqs:
            row = {"group": "g", "seq": seq, "subscription": status, "status": status, "attempts": 2}
            connection.execute(TABLES.deliveries.insert().values(**row, first_failed_at=moment, last_failed_at=moment))


@pytest.mark.parametrize("newest_first", [False, True])
async def test_a_status_is_found_where_it_is(
    database: Database, newest_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The events with it, all of them, in order, whatever the page."""
    monkeypatch.setattr("sqla_events.log.listing.PIECES", 3)
    await publish(database, COUNT)
    await database.run(in_all_states)

    async def ask(**conditions: Any) -> list[Event]:
        wanted = EventFilter(newest_first=newest_first, **({"limit": COUNT} | conditions))
        return await database.run(list_events, TABLES, wanted, "g")

    everything = await ask()
    assert [one.seq for one in everything] == sorted(range(1, COUNT + 1), reverse=newest_first)
    for status in Status:
        expected = [one.seq for one in everything if one.status == status]
        assert len(expected) >= 5
        assert [one.seq for one in await ask(status=status)] == expected
        assert [one.seq for one in await ask(status=status, limit=4)] == expected[:4]
        assert [one.seq for one in await ask(status=status, after=expected[2])] == expected[3:]
        assert await database.run(list_events, TABLES, EventFilter(status=status), "nobody") == (
            [] if status != Status.PENDING else [one.replace(status=Status.PENDING, error=None, retry_count=0, processed_at=None, completed_at=None) for one in sorted(everything, key=lambda one: one.seq or 0)]
        )


async def test_times_are_found_in_the_log(database: Database) -> None:
    """Whatever lies before and after; clocks that differ by minutes hide nothing."""
    await publish(database, COUNT)
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    for seq in range(1, COUNT + 1):
        made = (start + dt.timedelta(hours=seq, minutes=-7 if seq % 2 else 0)).isoformat()
        await database.run(lambda link, seq=seq, made=made: link.execute(text(f"UPDATE events SET created_at = '{made}' WHERE seq = {seq}")))
    since, until = start + dt.timedelta(hours=20, minutes=-5), start + dt.timedelta(hours=40)
    found = await database.run(list_events, TABLES, EventFilter(since=since, until=until), "g")
    assert [one.seq for one in found] == [*range(20, 40)]


async def test_how_far_groups_are(database: Database) -> None:
    """Lag in numbers and seconds, rate, trouble, for each partition."""
    await publish(database, COUNT)
    await database.run(in_all_states)
    async with reading(database, "fast") as reader:
        for delivery in await take(reader, 30):
            delivery.ack()
        await reader.commit()
        await publish(database, COUNT)
        for delivery in (await take(reader, COUNT))[:50]:
            delivery.ack()
        await reader.commit()
        fast, *slow = await database.run(stats, TABLES)
    assert (fast.group, fast.partitions, fast.lag, fast.dead, fast.retrying) == ("fast", 1, 10, 0, 0)
    assert fast.rate == pytest.approx(COUNT / 60)
    assert fast.oldest_pending is not None
    assert [(one.partition, one.partitions, one.dead, one.retrying) for one in slow] == [(0, 2, 10, 8), (1, 2, 10, 8)]
    assert all(one.rate == 0 and one.lag > 60 and one.lag_seconds >= fast.lag_seconds for one in slow)


class Statements:
    """What an engine executes."""

    def __init__(self, engine: sa.Engine) -> None:
        self.seen: list[tuple[str, Any]] = []
        sa.event.listen(engine, "before_cursor_execute", lambda _c, _cursor, sql, values, *_: self.seen.append((sql, values)))

    def plans(self, link: Any) -> str:
        """How they are executed."""
        found = []
        for sql, values in self.seen:
            if sql.lstrip().startswith(("SELECT", "WITH")):
                found += [row[0] for row in link.execute("EXPLAIN " + sql, values)]
        return "\n".join(found)


QUESTIONS: dict[str, Callable[[sa.Connection, uuid.UUID], object]] = {
    "get": lambda link, one: get_event(link, TABLES, one, "g"),
    "oldest": lambda link, _: list_events(link, TABLES, EventFilter(), "g"),
    "newest": lambda link, _: list_events(link, TABLES, EventFilter(newest_first=True), "g"),
    "pattern": lambda link, _: list_events(link, TABLES, EventFilter(pattern="public.*.update"), "g"),
    "since": lambda link, _: list_events(link, TABLES, EventFilter(since=dt.datetime(2020, 1, 1, tzinfo=dt.UTC)), "g"),
    **{
        status: lambda link, _, status=status: list_events(link, TABLES, EventFilter(status=status, limit=20), "g")  # type: ignore[misc]
        for status in Status
    },
    "stats": lambda link, _: stats(link, TABLES),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_no_question_scans_the_log(postgres: PostgresDatabase, question: str) -> None:
    """Analyzed when it was empty, then loaded: the statistics know nothing of what is there."""
    with postgres.connect() as link:
        link.execute("ANALYZE events")
        link.execute(BULK, (30_000,))
        link.execute("UPDATE events SET created_at = now() - (30000 - seq) * interval '1 minute'")
        link.execute("UPDATE events SET id = %s WHERE seq = 30000", (one := Event(type="a.b.c").id,))
        link.execute("VACUUM events")
        engine = create_engine(postgres.url())
        with engine.begin() as connection:
            in_all_states(connection)
            connection.execute(TABLES.positions.update().values(high=20_000))
        statements = Statements(engine)
        with engine.connect() as connection:
            assert QUESTIONS[question](connection, one)
        engine.dispose()
        for _ in range(2):
            assert "Seq Scan on events" not in statements.plans(link)
            link.execute("ANALYZE events")


def test_an_id_is_found_in_the_view(postgres: PostgresDatabase) -> None:
    """By the BRIN index, once there are statistics."""
    with postgres.connect() as link:
        for _ in range(60):
            ids = [str(Event(type="a.b.c").id) for _ in range(500)]
            link.execute("INSERT INTO events (id, source, type, payload) SELECT id::uuid, 'system', 'a.b.c', to_json(repeat('x', 300)) FROM unnest(%s::text[]) AS id ORDER BY id", (ids,))
        link.execute("VACUUM ANALYZE events")
        sql = "SELECT * FROM event_status WHERE id = %s"
        assert link.execute(sql, (ids[7],)).fetchone() is not None
        plan = "\n".join(row[0] for row in link.execute("EXPLAIN " + sql, (ids[7],)))
        assert "Bitmap Index Scan on events_id" in plan

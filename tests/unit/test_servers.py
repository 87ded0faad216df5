"""The servers that the other tests stand on: private, fresh, back on the same port after a crash."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from tests.servers.nats import NatsServer
from tests.servers.postgres import PostgresDatabase
from tests.servers.redis import RedisServer


def test_a_fresh_database_has_the_event_tables_and_nothing_in_them(database_url: str) -> None:
    """Both kinds of database come migrated and empty."""
    engine = sa.create_engine(database_url)
    with engine.begin() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM event_status")) == 0
        connection.execute(sa.text("INSERT INTO events (id, source, type, payload) VALUES ('0198a6b0-0000-7000-8000-000000000000', 'system', 'a', '1')"))
    engine.dispose()


async def test_the_same_database_with_an_async_driver(database_url: str, async_url: Callable[[str], str]) -> None:
    """asyncpg and aiosqlite reach what psycopg and sqlite3 reach."""
    engine = create_async_engine(async_url(database_url))
    async with engine.connect() as connection:
        assert await connection.scalar(sa.text("SELECT count(*) FROM events")) == 0
    await engine.dispose()


def test_postgres_comes_back_after_a_crash_with_what_was_committed(postgres: PostgresDatabase) -> None:
    """kill is a crash, start recovers, on the same port."""
    with postgres.connect() as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
    postgres.kill()
    postgres.start()
    with postgres.connect() as connection:
        assert connection.execute("SELECT one FROM kept").fetchall() == [(1,)]


def test_redis_comes_back_after_a_crash_with_what_was_written(redis: RedisServer) -> None:
    """The append-only file is on."""
    redis.call("SET", "name", "value")
    redis.restart()
    assert "value" in redis.call("GET", "name")


def test_nats_starts_empty_and_answers(nats: NatsServer) -> None:
    """It is up when the fixture is."""
    assert nats.ready()
    nats.restart()
    assert nats.ready()

"""The database as provider: other processes with nothing but its URL, the doorbell, the seed's keys, SQL over it all."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_events import ConfigError, ProviderUnavailable, connect, install_crud_hooks
from sqla_events.alembic import upgrade
from sqla_events.bridge import Database
from sqla_events.schema import Names
from tests.integration.shop import Base, Inbox, User, eventually
from tests.servers.postgres import PostgresDatabase

SERVICE = """
import json, sys
from sqla_events import connect

broker = connect(sys.argv[1], **json.loads(sys.argv[2]))

@broker.subscribe("public.users.*", group="service")
def handler(event):
    print(json.dumps([event.type, event.after["name"], str(event.id)]), flush=True)

assert not [name for name in sys.modules if name.startswith("tests")]
broker.run()
"""


@contextmanager
def service(url: str, **settings: Any) -> Iterator[list[list[str]]]:
    """Another service: a process that knows the URL and nothing else. What it printed, as it comes."""
    command = [sys.executable, "-c", SERVICE, url, json.dumps(settings)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seen: list[list[str]] = []
    reading = threading.Thread(target=lambda: seen.extend(json.loads(line) for line in process.stdout or ()))
    reading.start()
    try:
        yield seen
    finally:
        process.terminate()
        reading.join()
        assert process.stderr is not None
        error = process.stderr.read()
        process.communicate()
    assert process.returncode == 0, error


def add(engine: sa.Engine, *names: str) -> None:
    with Session(engine) as session, session.begin():
        session.add_all(User(id=hash(name) % 2**31, name=name) for name in names)


@pytest.mark.parametrize(("driver", "listen"), [("psycopg", True), ("asyncpg", True), ("psycopg", False)])
def test_another_service_needs_nothing_but_the_url(postgres: PostgresDatabase, driver: str, listen: bool) -> None:
    """Neither models nor an engine of ours; what was committed before it came, and what comes; with LISTEN and without.

    With LISTEN the service polls so seldom that only the doorbell can bring the second event in time.
    """
    engine = sa.create_engine(postgres.url())
    Base.metadata.create_all(engine)
    broker = install_crud_hooks(engine, {"provider": "database"}).start()
    add(engine, "before")
    interval = 3600 if listen else 0.05
    with service(postgres.url(driver), poll_interval=interval, database={"listen": listen}) as seen:
        eventually(lambda: len(seen) == 1)
        if listen:
            eventually(lambda: listening(postgres) == 1)
        add(engine, "after")
        eventually(lambda: len(seen) == 2)
    broker.uninstall()
    engine.dispose()
    assert [name for _, name, _ in seen] == ["before", "after"]


def test_a_service_on_sqlite(sqlite_url: str) -> None:
    """Polling: another process of the same machine."""
    engine = sa.create_engine(sqlite_url)
    Base.metadata.create_all(engine)
    broker = install_crud_hooks(engine, {})
    with service(sqlite_url, poll_interval=0.05) as seen:
        add(engine, "Ann")
        eventually(lambda: len(seen) == 1)
    broker.uninstall()
    engine.dispose()


def listening(postgres: PostgresDatabase) -> int:
    with postgres.connect() as link:
        row = link.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND state = 'idle' AND datname = current_database()"
        ).fetchone()
    return row[0] if row else 0


def test_where_listening_is_impossible_polling_goes_on(
    postgres: PostgresDatabase, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A pooler that refuses it, a role that may not: a warning, and nothing is lost."""

    async def refused(self: Database, channel: str, heard: Callable[[], object]) -> None:
        raise ProviderUnavailable("permission denied for LISTEN")

    monkeypatch.setattr(Database, "listen", refused)
    broker, inbox = connect(postgres.url(), poll_interval=0.05), Inbox()
    broker.subscribe("*", handler=inbox)
    broker.start()
    broker.publish("a.b.c").result(20)
    inbox.wait(1)
    eventually(lambda: "polling goes on: permission denied for LISTEN" in caplog.text)
    broker.stop()


def test_the_keys_of_the_seed(empty_postgres: PostgresDatabase) -> None:
    """table_name, channel and poll_interval: tables of that name, notifications on that channel."""
    upgrade(empty_postgres.url(), Names("audit_log"))
    settings = {"table_name": "audit_log", "channel": "resolvespec_events", "poll_interval": "50ms"}
    broker, inbox = connect(empty_postgres.url(), database=settings), Inbox()
    broker.subscribe("*", handler=inbox)
    broker.start()
    with empty_postgres.connect() as link:
        link.execute("LISTEN resolvespec_events")
        eventually(lambda: rung(link, broker))
        assert link.execute("SELECT count(*) > 0 FROM audit_log").fetchone() == (True,)
        inbox.wait(1)
        eventually(lambda: completed(link))
    broker.stop()


def rung(link: psycopg.Connection[Any], broker: Any) -> bool:
    broker.publish("a.b.c").result(20)
    return any(True for _ in link.notifies(timeout=0.2, stop_after=1))


def completed(link: psycopg.Connection[Any]) -> bool:
    """SQL over the history says so."""
    rows = link.execute("SELECT DISTINCT status FROM audit_log_status").fetchall()
    return rows == [("completed",)]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"provider": "database"}, "database.url does not say"),
        ("postgresql+nodriver://h/d", "URL cannot be used"),
        ({"provider": "database", "database": {"url": "no url"}}, "'no url' cannot be read"),
        ({"provider": "memory", "database": {"url": "mysql://h/d"}}, "the database is 'mysql'"),
    ],
)
def test_what_connect_refuses(source: Any, told: str) -> None:
    """With the key and what is wrong, without the URL's password."""
    with pytest.raises(ConfigError, match=told):
        connect(source)

"""The command ``sqla-events``: what it prints, and that what goes wrong is one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from sqlalchemy.orm import Session

from sqla_events import install_crud_hooks
from sqla_events.cli import main
from tests.integration.shop import Base, Inbox, User, eventually

POLICY = {"retry_policy": {"max_retries": 0}}


def cli(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def output(*arguments: str) -> str:
    done = cli(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def failure(*arguments: str) -> str:
    """The one line on stderr."""
    done = cli(*arguments)
    assert (done.exit_code, done.stdout) == (1, ""), done.output
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(database_url)
    Base.metadata.create_all(engine)
    broker = install_crud_hooks(engine, POLICY)
    yield engine
    broker.uninstall()
    engine.dispose()


def add(engine: sa.Engine, *numbers: int) -> None:
    with Session(engine) as session, session.begin():
        session.add_all([User(id=number, name="x") for number in numbers])


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# migrate ------------------------------------------------------------------------------------------------------------


def test_migrate_creates_twice_and_drops(empty_database_url: str) -> None:
    """Idempotent; --downgrade removes the tables again; the log has the name it was given."""
    for _ in range(2):
        assert "journal is up to date" in output("migrate", empty_database_url, "--table-name", "journal")
    engine = sa.create_engine(empty_database_url)
    assert sa.inspect(engine).has_table("journal")
    output("migrate", empty_database_url, "--table-name", "journal", "--downgrade")
    assert not sa.inspect(engine).has_table("journal")
    engine.dispose()


def test_migrate_into_a_schema(empty_postgres_url: str) -> None:
    """The schema is made; a URL without a driver gets ours."""
    url = empty_postgres_url.replace("+psycopg", "")
    output("migrate", url, "--schema", "side")
    assert output("tail", url, "--schema", "side") == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("migrate", "mysql+nothing://x/y"), "the database is 'mysql'"),
        (("status", "mysql://x/y"), "the database is 'mysql'"),
        (("migrate", "redis://x"), "the database is 'redis'"),
        (("migrate", "no url"), "'no url' cannot be read"),
        (("status", "notaurl"), "'notaurl' cannot be read"),
        (("triggers", "sqlite:app.db"), "'sqlite:app.db' cannot be read"),
        (("status", "postgresql://u:secret@h:port/x"), "the database URL cannot be read"),
        (("status", "postgresql+nothing://x/y"), "the database URL cannot be used"),
        (("migrate", "sqlite:///x.db", "--table-name", ""), "table_name is ''"),
        (("status", "redis://127.0.0.1:1"), "the broker has no database"),
        (("dead-letters", "list", "nats://127.0.0.1:1,127.0.0.1:2"), "NATS does not answer"),
        (("dead-letters", "list", "redis+cluster://127.0.0.1:1,127.0.0.1:2"), "127.0.0.1:1,127.0.0.1:2"),
        (("dead-letters", "list", "carrier-pigeon://x"), "provider is 'carrier-pigeon'"),
        (("migrate", "sqlite:///x.db", "--schema", "s"), "SQLite has no schemas"),
        (("migrate", "sqlite://", "--table-name", "a b"), "table_name is 'a b'"),
        (("migrate", "sqlite:///:memory:"), "in memory"),
        (("migrate", "sqlite+aiosqlite://", "--downgrade"), "in memory"),
        (("triggers", "sqlite:///file:x?mode=memory&uri=true"), "in memory"),
        (("migrate", "postgresql://nobody@127.0.0.1:1/none"), "Connection refused|connection failed"),
        (("status", "sqlite:///mistyped.db"), "there is no file 'mistyped.db'"),
        (("triggers", "sqlite:///mistyped.db"), "there is no file 'mistyped.db'"),
        (("status", "sqlite:////no/such/folder/x.db"), "there is no file '/no/such/folder/x.db'"),
        (("tail", "sqlite:///x.db", "a..b"), "pattern is 'a..b'"),
        (("relay", "sqlite:///x.db", "--provider", "memory"), "nothing to relay"),
        (("relay", "sqlite:///x.db", "--provider", "redis://127.0.0.1:1"), "sqla-events migrate"),
        (("relay", "sqlite:///x.db", "--config", "/no/such/file.yaml"), "cannot be read"),
        (("demo", "--url", "postgresql+asyncpg://x/y"), "synchronous"),
    ],
)
def test_what_goes_wrong_is_one_line(arguments: tuple[str, ...], message: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback, exit code 1, and the line says what is wrong."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.db").touch()
    error = failure(*arguments)
    assert any(part in error for part in message.split("|")), error
    assert "secret" not in error
    assert [one.name for one in tmp_path.iterdir()] == ["x.db"], "a mistyped path became a file"


def test_a_driver_without_its_library_is_one_line_too() -> None:
    """psycopg comes without libpq: what to install is said."""
    done = subprocess.run(
        [sys.executable, "-m", "sqla_events", "migrate", "postgresql://nobody@127.0.0.1:1/none"],
        env={**os.environ, "PSYCOPG_IMPL": "c"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert done.stderr.endswith("pip install 'psycopg[binary]'\n")
    assert done.stderr.count("\n") == 1


def test_missing_tables_name_the_command(empty_database_url: str) -> None:
    """Every command that asks the log says how to make it."""
    for command in (("status",), ("tail",), ("dead-letters", "list")):
        assert "sqla-events migrate" in failure(*command, empty_database_url)


# tail ---------------------------------------------------------------------------------------------------------------


def test_tail_prints_the_newest_that_match(engine: sa.Engine, database_url: str) -> None:
    """JSON lines, oldest first, as many as asked for."""
    add(engine, 1, 2, 3)
    assert [event["key"] for event in lines(output("tail", database_url))] == ["1", "2", "3"]
    (last,) = lines(output("tail", database_url, "*.users.create", "-n", "1"))
    assert (last["type"], last["payload"]["after"]["id"]) == ("public.users.create", 3)
    assert output("tail", database_url, "*.*.delete") == ""


def _heeding_sigint() -> None:
    """A shell's background job, which these tests may be, ignores it, and its children too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_tail_follow_prints_what_comes(engine: sa.Engine, database_url: str) -> None:
    """What comes later, also from a transaction that took its numbers early and commits late; SIGINT ends it quietly."""
    add(engine, 1)
    command = [sys.executable, "-m", "sqla_events", "tail", database_url, "*.users.*", "--follow", "-n", "1"]
    tail = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_heeding_sigint)
    assert tail.stdout is not None
    seen: list[str] = []
    reading = threading.Thread(target=lambda: seen.extend(json.loads(line)["key"] for line in tail.stdout or ()))
    reading.start()
    eventually(lambda: seen == ["1"])
    if engine.dialect.name == "postgresql":
        with Session(engine) as slow:
            slow.add(User(id=2, name="slow"))
            slow.flush()
            add(engine, 3)
            eventually(lambda: seen == ["1", "3"])
            slow.commit()
    else:
        add(engine, 3, 2)
    eventually(lambda: sorted(seen) == ["1", "2", "3"])
    tail.send_signal(signal.SIGINT)
    _, error = tail.communicate(timeout=10)
    reading.join()
    assert (tail.returncode, error) == (0, "")


# status and dead letters --------------------------------------------------------------------------------------------


def test_status_and_dead_letters(engine: sa.Engine, database_url: str) -> None:
    """A backlog shows as lag; dead letters are listed, shown, redriven and discarded."""
    broker = install_crud_hooks(engine, POLICY)
    broker.subscribe("*", handler=Inbox(fail=lambda event: ValueError("broken")), name="mailer")
    add(engine, 1, 2, 3)
    broker.start()
    eventually(lambda: len(broker.dead_letters.list()) == 3)
    broker.stop()
    broker.uninstall()

    head, row = output("status", database_url).splitlines()
    assert head.split() == ["group", "partition", "lag", "events", "lag", "seconds", "rate", "retrying", "dead", "owner"]
    group, partition, lag, seconds, _rate, retrying, dead, owner = row.split()
    assert (group, partition, lag, seconds, retrying, dead, owner) == ("default", "0", "0", "0.0", "0", "3", "-")

    _, *letters = output("dead-letters", "list", database_url, "--limit", "2").splitlines()
    assert len(letters) == 2
    first, second = (letter.split()[0] for letter in letters)
    assert "ValueError: broken" in letters[0]
    shown = output("dead-letters", "show", database_url, first)
    assert "Traceback" in shown
    assert '"key":"1"' in shown
    assert output("dead-letters", "redrive", database_url, first) == "redriven: 1\n"
    assert output("dead-letters", "discard", database_url, second) == "discarded: 1\n"
    assert output("dead-letters", "discard", database_url, "--all", "--pattern", "*.*.delete") == "discarded: 0\n"
    assert output("dead-letters", "discard", database_url, "--all") == "discarded: 1\n"
    assert "no dead letter" in failure("dead-letters", "show", database_url, first)
    assert "not the id" in failure("dead-letters", "redrive", database_url, "nonsense")


def test_replay_into_a_subscription(engine: sa.Engine, database_url: str) -> None:
    """By pattern and beginning; a broker that starts later delivers it, marked."""
    inbox = Inbox()
    broker = install_crud_hooks(engine, POLICY)
    broker.subscribe("*", handler=inbox, name="mailer")
    broker.start()
    add(engine, 1, 2, 3)
    inbox.wait(3)
    broker.stop()
    arguments = ("replay", database_url, "*.users.*", "--subscription", "mailer")
    inbox.events.sort(key=lambda event: event.seq or 0)  # different rows are handled in any order
    assert output(*arguments, "--position", str(inbox.events[1].seq)) == "replayed: 2\n"
    assert output(*arguments, "--since", "2999-01-01T00:00:00") == "replayed: 0\n"
    assert output(*arguments, "--id", str(inbox.events[0].id)) == "replayed: 3\n"
    assert output("replay", database_url, "--position", "999") == "replayed: 0\n"
    assert "one beginning" in failure(*arguments, "--position", "1", "--id", str(inbox.events[0].id))
    assert "there is no event" in failure(*arguments, "--id", "00000000-0000-7000-8000-000000000000")
    assert "is no time" in cli(*arguments, "--since", "yesterday").stderr
    broker.start()
    inbox.wait(6)
    broker.stop()
    broker.uninstall()
    assert sorted(event.key or "" for event in inbox.events if event.is_replay) == ["1", "2", "3"]


def test_all_dead_letters_only_when_asked_for(database_url: str) -> None:
    """Neither ids nor --all, or both: a usage error, nothing happens."""
    for arguments in ((), ("1/g/s", "--all")):
        done = cli("dead-letters", "discard", database_url, *arguments)
        assert done.exit_code == 2
        assert "--all" in done.stderr


# relay --------------------------------------------------------------------------------------------------------------


def test_relay_to_nobody(sqlite_url: str) -> None:
    """A provider that is not installed: one line that names those that are."""
    assert "carrier-pigeon" in failure("relay", sqlite_url, "--provider", "carrier-pigeon")


@pytest.mark.parametrize("place", ["provider", "destination"])
def test_relay_ends_on_sigterm(place: str, engine: sa.Engine, database_url: str, redis_url: str, tmp_path: Path) -> None:
    """In a process of its own: carries the backlog to Redis, ends with exit code 0."""
    pytest.importorskip("sqla_events.providers.redis")
    add(engine, 1, 2, 3)
    config = tmp_path / "config.yaml"
    config.write_text(f"{{poll_interval: 50ms, destinations: {{redis: '{redis_url}'}}}}")
    where = ["--provider", redis_url] if place == "provider" else ["--config", str(config)]
    command = [sys.executable, "-m", "sqla_events", "relay", database_url, *where]
    environment = {**os.environ, "SQLA_EVENTS_POLL_INTERVAL": "0.05"}
    relay = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        eventually(lambda: " 0 " in output("status", database_url).partition("relay:redis")[2])
        eventually(lambda: output("status", database_url).splitlines()[-1].split()[:3] == ["relay:redis", "0", "0"])
    finally:
        relay.terminate()
        _, error = relay.communicate(timeout=20)
    assert relay.returncode == 0, error
    assert "Traceback" not in error

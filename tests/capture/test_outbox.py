"""Every way of writing captured rows, on every driver: the same rows, in order, in the caller's transaction."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from sqla_events import CaptureError, EventFilter, event_context, install_crud_hooks
from sqla_events.alembic import upgrade
from sqla_events.capture import outbox
from sqla_events.capture.outbox import COLUMNS, COPY_ROWS, Captured, Head, write
from sqla_events.schema import Names, Tables
from tests.integration.shop import eventually

POSTGRES = ["postgresql+psycopg", "postgresql+psycopg_async", "postgresql+asyncpg"]
DRIVERS = ["sqlite", "sqlite+aiosqlite", *POSTGRES]
COUNTS = [1, 2, COPY_ROWS - 1, COPY_ROWS, 1200]

DEFAULT = Names()

TEXTS = ["plain", "tab\tline\nreturn\r\\.\\N", "“ü” 漢字 🦊", 'quoted "\' %s $1 ?', ""]


def rows(count: int) -> list[Captured]:
    """Rows with whatever text may hold, of statements with different things in common, of some rows each."""
    together = 13 if count < 100 else 73
    heads = [
        Head(("database", "public.a.create", "public", "a", "create", None, None, None, "one", 1)),
        Head(("database", "public.b\t.update", "public", "b\t", "update", '{"x":"\\t\\\\"}', "\\N", "s\n", "two", 2)),
    ]
    return [
        (
            uuid.uuid4().hex,
            None if number % 7 == 3 else TEXTS[number % 5],
            f'{{"after":{{"n":{number},"nul":"\\u0000","text":"\\\\t\\"€\\n"}}}}',
            None if number % 3 else '{"/payload/after/n":"decimal"}',
            heads[number // together % 2],
        )
        for number in range(count)
    ]


async def on(url: sa.URL | str, function: Callable[[Connection], Any], **options: Any) -> Any:
    """What the function returns of a connection in a transaction, on any driver."""
    url = sa.make_url(url)
    if url.get_dialect().is_async:
        engine = create_async_engine(url, **options)
        try:
            async with engine.begin() as connection:
                return await connection.run_sync(function)
        finally:
            await engine.dispose()
    sync = sa.create_engine(url, **options)
    try:
        with sync.begin() as plain:
            return function(plain)
    finally:
        sync.dispose()


def stored(connection: Connection, names: Names = DEFAULT) -> list[tuple[Any, ...]]:
    """What stands in the log, by seq, in the form of ``Captured`` with the head's values behind."""
    texts = ", ".join(f'CAST("{name}" AS text)' if name in outbox._KINDS else f'"{name}"' for name in COLUMNS)
    found = connection.exec_driver_sql(f"SELECT {texts} FROM {names.qualified(names.events)} ORDER BY seq")
    return [(row[0].replace("-", ""), *row[1:9], *row[9:]) for row in found]


def flat(captured: list[Captured]) -> list[tuple[Any, ...]]:
    return [(*row[:4], *row[4].values[:-1], str(row[4].values[-1])) for row in captured]


@pytest.fixture
def url_of(request: pytest.FixtureRequest) -> Callable[[str], sa.URL]:
    """The URL of a fresh database with the event tables, with a driver."""

    def make(driver: str) -> sa.URL:
        url = request.getfixturevalue("sqlite_url" if driver.startswith("sqlite") else "postgres_url")
        return sa.make_url(url).set(drivername=driver)

    return make


@pytest.mark.parametrize("driver", DRIVERS)
async def test_what_is_written_stands_there_in_order(driver: str, url_of: Callable[[str], sa.URL]) -> None:
    """Text of all kinds, NULLs, JSON with an escaped NUL, events of two statements; by INSERT, JSON and COPY."""
    for count in COUNTS:
        captured = rows(count)

        def work(connection: Connection, captured: list[Captured] = captured) -> list[tuple[Any, ...]]:
            connection.exec_driver_sql("DELETE FROM events")
            write(connection, Tables(), captured)
            return stored(connection)

        assert await on(url_of(driver), work) == flat(captured)


@pytest.mark.parametrize("driver", POSTGRES)
async def test_seqs_have_no_holes_and_created_at_is_the_default(driver: str, url_of: Callable[[str], sa.URL]) -> None:
    def work(connection: Connection) -> list[Any]:
        for count in COUNTS[:-1]:
            write(connection, Tables(), rows(count))
        return list(connection.exec_driver_sql("SELECT seq, created_at > now() - interval '1 hour' FROM events ORDER BY seq"))

    assert await on(url_of(driver), work) == [(number, True) for number in range(1, sum(COUNTS[:-1]) + 1)]


@pytest.mark.parametrize("driver", DRIVERS)
async def test_rollback_takes_them_along(driver: str, url_of: Callable[[str], sa.URL]) -> None:
    """Of a savepoint, however they were written."""

    def work(connection: Connection) -> list[tuple[Any, ...]]:
        connection.exec_driver_sql("DELETE FROM events")  # SQLite's driver begins with the first write
        for count in COUNTS:
            savepoint = connection.begin_nested()
            write(connection, Tables(), rows(count))
            savepoint.rollback()
        return stored(connection)

    assert await on(url_of(driver), work) == []


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_missing_table_is_told(driver: str, url_of: Callable[[str], sa.URL]) -> None:
    """Whatever the driver calls it; the savepoint before it can be rolled back to."""

    def work(connection: Connection) -> list[tuple[Any, ...]]:
        connection.exec_driver_sql("DELETE FROM events")
        for count in COUNTS:
            savepoint = connection.begin_nested()
            with pytest.raises(CaptureError, match=r'(?s)"missing".*sqla-events migrate URL'):
                write(connection, Tables(Names("missing")), rows(count))
            savepoint.rollback()
            write(connection, Tables(), rows(1))
        return stored(connection)

    assert len(await on(url_of(driver), work)) == len(COUNTS)


@pytest.mark.parametrize("driver", POSTGRES)
async def test_text_that_cannot_be_stored(driver: str, url_of: Callable[[str], sa.URL]) -> None:
    """PostgreSQL's text holds no NUL, and UTF-8 no lone surrogate."""

    def work(connection: Connection) -> list[tuple[Any, ...]]:
        for count in COUNTS:
            *most, last = rows(count)
            for key in ("a\x00b", "lone \ud800"):
                savepoint = connection.begin_nested()
                with pytest.raises(CaptureError, match="could not be written"):
                    write(connection, Tables(), [*most, (last[0], key, *last[2:])])
                savepoint.rollback()
        return stored(connection)

    assert await on(url_of(driver), work) == []


@pytest.mark.parametrize("driver", DRIVERS)
async def test_names_and_schema(driver: str, url_of: Callable[[str], sa.URL]) -> None:
    """A log of another name, on PostgreSQL in a schema of its own, with capitals."""
    url = url_of(driver)
    names = Names("MyEvents", None if driver.startswith("sqlite") else "Out_box")
    sync = url.set(drivername="sqlite" if driver.startswith("sqlite") else "postgresql+psycopg")
    upgrade(sync.render_as_string(hide_password=False), names)
    for count in COUNTS[:-1]:
        captured = rows(count)

        def work(connection: Connection, captured: list[Captured] = captured) -> list[tuple[Any, ...]]:
            connection.exec_driver_sql(f"DELETE FROM {names.qualified(names.events)}")
            write(connection, Tables(names), captured)
            return stored(connection, names)

        assert await on(url, work) == flat(captured)


@pytest.mark.parametrize(
    ("driver", "options"),
    [
        ("postgresql+psycopg", {"prepare_threshold": None}),
        ("postgresql+psycopg", {"prepare_threshold": 0}),
        ("postgresql+psycopg", {"client_encoding": "LATIN1"}),
        ("postgresql+psycopg_async", {"prepare_threshold": None}),
        ("postgresql+asyncpg", {"statement_cache_size": 0, "prepared_statement_cache_size": 0}),
        ("postgresql+asyncpg", {"server_settings": {"client_encoding": "LATIN1"}}),
    ],
)
async def test_settings_of_the_driver(driver: str, options: dict[str, Any], url_of: Callable[[str], sa.URL]) -> None:
    """No prepared statements, as PgBouncer wants it; prepared at once; another encoding between client and server."""
    head = rows(1)[0][4]
    for count in COUNTS[:-1]:
        captured = [(uuid.uuid4().hex, "ü", '{"x":"ü"}', None, head) for _ in range(count)]

        def work(connection: Connection, captured: list[Captured] = captured) -> list[tuple[Any, ...]]:
            connection.exec_driver_sql("DELETE FROM events")
            write(connection, Tables(), captured)
            return stored(connection)

        assert await on(url_of(driver), work, connect_args=options) == flat(captured)


def test_inside_a_pipeline(postgres_url: str) -> None:
    """The application has one open on psycopg's connection, where COPY is impossible."""
    captured = rows(COPY_ROWS)
    engine = sa.create_engine(postgres_url)
    with engine.begin() as connection:
        raw: Any = connection.connection.driver_connection
        with raw.pipeline():
            write(connection, Tables(), captured)
        assert stored(connection) == flat(captured)
    engine.dispose()


@pytest.mark.parametrize("driver", POSTGRES)
async def test_a_few_large_payloads(driver: str, url_of: Callable[[str], sa.URL]) -> None:
    """More than is sensible as one JSON parameter."""
    head = rows(1)[0][4]
    captured: list[Captured] = [(uuid.uuid4().hex, "k", f'{{"x":"{"y" * 600_000}"}}', None, head) for _ in range(3)]

    def work(connection: Connection) -> list[tuple[Any, ...]]:
        write(connection, Tables(), captured)
        return stored(connection)

    assert await on(url_of(driver), work) == flat(captured)


@pytest.mark.parametrize("driver", POSTGRES)
async def test_a_role_that_may_only_insert(driver: str, url_of: Callable[[str], sa.URL]) -> None:
    """Nothing else is needed of the log: who writes need not be able to read it."""

    def work(connection: Connection) -> int:
        connection.exec_driver_sql("CREATE ROLE writer")
        connection.exec_driver_sql("GRANT INSERT ON events TO writer")
        connection.exec_driver_sql("GRANT USAGE ON SEQUENCE events_seq_seq TO writer")
        connection.exec_driver_sql("SET ROLE writer")
        for count in COUNTS[:-1]:
            write(connection, Tables(), rows(count))
        connection.exec_driver_sql("RESET ROLE")
        written = len(stored(connection))
        connection.rollback()
        return written

    assert await on(url_of(driver), work) == sum(COUNTS[:-1])


NOTES = sa.Table(
    "notes", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True, autoincrement=False), sa.Column("text", sa.Text)
)


@pytest.mark.parametrize("count", COUNTS)
def test_captured_and_read_back(database_url: str, count: int) -> None:
    """From a Core statement to the reader of the log: values as they were, in the order of the writes."""
    engine = sa.create_engine(database_url)
    NOTES.create(engine)
    broker = install_crud_hooks(engine, {})
    wanted = [{"id": number, "text": TEXTS[number % 5]} for number in range(count)]
    with engine.begin() as connection:
        connection.execute(sa.insert(NOTES), wanted)
    events = broker.list(EventFilter(limit=2000))
    assert [event.payload["after"] for event in sorted(events, key=lambda event: event.seq)] == wanted
    broker.uninstall()
    engine.dispose()


def test_a_table_that_names_its_schema(postgres_url: str) -> None:
    """SQLAlchemy keeps the name as a kind of text of its own, as users may the session."""
    engine = sa.create_engine(postgres_url)
    table = sa.Table("notes", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), schema="app")
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema("app"))
        table.create(connection)
    broker = install_crud_hooks(engine, {})
    for count in COUNTS[:-1]:
        with engine.begin() as connection, event_context(session_id=sa.quoted_name("s", None)):
            connection.execute(table.insert(), [{}] * count)
    assert [(event.schema, event.session_id) for event in broker.list()] == [("app", "s")] * sum(COUNTS[:-1])
    broker.uninstall()
    engine.dispose()


@pytest.mark.parametrize("value", [{"a": float("nan"), "b": [1, None, float("-inf")]}, float("inf"), {"text": "NaN and \\ud800"}, "🦊"])
def test_what_only_python_takes_for_json(sqlite_url: str, value: Any) -> None:
    """SQLite stores NaN in a JSON column; the event has it too, in JSON that every reader takes."""
    engine = sa.create_engine(sqlite_url)
    table = sa.Table("loose", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("doc", sa.JSON))
    table.create(engine)
    broker = install_crud_hooks(engine)
    with engine.begin() as connection:
        connection.execute(table.insert().values(id=1, doc=value))
    with engine.begin() as connection:
        (payload,) = connection.exec_driver_sql("SELECT payload FROM events").one()
    json.loads(payload, parse_constant=pytest.fail)
    (event,) = broker.list()
    assert repr(event.after["doc"]) == repr(value)  # NaN is not equal to itself
    broker.uninstall()
    engine.dispose()


def test_half_a_surrogate_in_json_is_refused(sqlite_url: str) -> None:
    """As everywhere: no transport could carry it."""
    engine = sa.create_engine(sqlite_url)
    table = sa.Table("loose", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("doc", sa.JSON))
    table.create(engine)
    broker = install_crud_hooks(engine)
    with pytest.raises(CaptureError, match=r"loose\.doc .*lone surrogate"), engine.begin() as connection:
        connection.execute(table.insert().values(id=1, doc={"a": "\ud800"}))
    broker.uninstall()
    engine.dispose()


def test_a_payload_that_is_no_json_can_be_looked_at(sqlite_url: str) -> None:
    """What another program wrote into the log is listed and buried without its payload, and breaks no question."""
    engine = sa.create_engine(sqlite_url)
    broker = install_crud_hooks(engine)
    receipt = broker.publish("a.b.c", {"x": 1})
    receipt.result(10)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE events SET payload = '{\"x\": NaN}'")
    (event,) = broker.list()
    assert (event.type, event.payload) == ("a.b.c", None)
    assert broker.get(receipt.event.id) == event
    broker.subscribe("*", handler=print)
    broker.start()
    (letter,) = eventually(broker.dead_letters.list)
    assert (letter.event.type, letter.event.payload) == ("a.b.c", None)
    assert "cannot be decoded" in letter.error
    broker.uninstall()
    engine.dispose()

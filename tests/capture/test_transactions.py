"""What capture does around transactions, failures and settings."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Mapper, Session

from sqla_events import CaptureError, ConfigError, event_context, install_crud_hooks
from sqla_events.alembic import upgrade
from sqla_events.signals import Fact, Gap
from tests.capture.conftest import Stage
from tests.capture.model import Base, Item, Seat, Tag


def test_a_failed_flush_leaves_nothing(stage: Stage) -> None:
    """Neither in this transaction nor in the next one of the session."""
    stage.hook()
    with stage.session() as session:
        session.add_all([Tag(id=1, name="a"), Seat(row="A", number=1)])
        session.flush()
        session.execute(sa.insert(Seat), {"row": "B", "number": 1})
        session.expunge_all()
        session.add(Seat(row="A", number=1))
        with pytest.raises(sa.exc.IntegrityError):
            session.flush()
        session.rollback()
        session.add(Tag(id=2, name="b"))
        session.commit()
    assert [(event.type, event.key) for event in stage.check()] == [("public.tags.create", "2")]


@pytest.mark.parametrize("name", ["before_insert", "after_insert", "before_update", "after_update"])
def test_a_listener_that_raises_leaves_nothing(stage: Stage, name: str) -> None:
    """A user's own mapper listener fails in the middle of a flush."""
    stage.hook()

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    with stage.session() as session:
        tag = Tag(id=1, name="a")
        session.add(tag)
        session.commit()
        sa.event.listen(Tag, name, fail)
        try:
            tag.name = "b"
            session.add(Tag(id=2, name="c"))
            with pytest.raises(ZeroDivisionError):
                session.commit()
        finally:
            sa.event.remove(Tag, name, fail)
        session.rollback()
        session.add(Tag(id=3, name="d"))
        session.commit()
    assert [event.key for event in stage.check()] == ["1", "3"]


def test_a_connection_that_dies_leaves_nothing(stage: Stage) -> None:
    """Invalidated with captured rows in hand; the next transaction on a new connection is clean."""
    stage.hook()
    with stage.session() as session:
        session.add(Tag(id=1, name="a"))
        session.flush()
        session.connection().invalidate()
        session.rollback()
        session.add(Tag(id=2, name="b"))
        session.commit()
    assert [event.key for event in stage.check()] == ["2"]


def test_rollback_to_nested_savepoints(stage: Stage) -> None:
    """Only what survives every level is an event."""
    stage.hook()
    with stage.session() as session:
        session.add(Tag(id=1, name="outer"))
        outer = session.begin_nested()
        session.add(Tag(id=2, name="lost"))
        with session.begin_nested():
            session.add(Tag(id=3, name="lost with the outer one"))
        outer.rollback()
        with session.begin_nested():
            session.add(Tag(id=4, name="kept"))
        session.commit()
    assert [event.key for event in stage.check()] == ["1", "4"]


def test_autocommit_is_refused(stage: Stage) -> None:
    """On the engine at installing, on a connection at its first captured write."""
    url = stage.engine.url
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with pytest.raises(ConfigError, match="AUTOCOMMIT"):
        install_crud_hooks(engine, {})
    engine.dispose()
    stage.hook()
    with stage.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(Tag)) == 0
        with pytest.raises(CaptureError, match="AUTOCOMMIT"):
            connection.execute(sa.insert(Tag), {"name": "x"})
        assert connection.scalar(sa.select(sa.func.count()).select_from(Tag)) == 0


def test_autocommit_of_the_driver_is_refused(stage: Stage) -> None:
    """Of which SQLAlchemy does not know."""
    options: list[dict[str, Any]] = [{"autocommit": True}]
    if stage.engine.dialect.name == "sqlite":
        options = [{"isolation_level": None}, *(options if sys.version_info >= (3, 12) else ())]
    for connect_args in options:
        engine = sa.create_engine(stage.engine.url, connect_args=connect_args)
        broker = install_crud_hooks(engine, {})
        with engine.connect() as connection:
            with pytest.raises(CaptureError, match="AUTOCOMMIT"):
                connection.execute(sa.insert(Tag), {"name": "x"})
            assert connection.scalar(sa.select(sa.func.count()).select_from(Tag)) == 0
        broker.uninstall()
        engine.dispose()


@pytest.mark.parametrize("way", ["a BEGIN of one's own", "autocommit off"])
def test_who_begins_on_sqlite(stage: Stage, way: str) -> None:
    """The driver as SQLAlchemy's documentation sets it up for SAVEPOINT, and as Python 3.12 has it."""
    if stage.engine.dialect.name != "sqlite":
        pytest.skip("SQLite's driver")
    if way == "autocommit off" and sys.version_info < (3, 12):
        pytest.skip("Python 3.12")
    connect_args: dict[str, Any] = {"isolation_level": None} if way == "a BEGIN of one's own" else {"autocommit": False}
    engine = stage.engine = sa.create_engine(stage.engine.url, connect_args=connect_args)
    if way == "a BEGIN of one's own":
        sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    stage.hook()
    with stage.session() as session:
        session.add(Tag(id=1, name="gone"))
        session.flush()
        session.rollback()
        with session.begin_nested():
            session.add(Tag(id=2, name="kept"))
        nested = session.begin_nested()
        session.add(Tag(id=3, name="gone"))
        session.flush()
        nested.rollback()
        session.commit()
        session.execute(sa.update(Tag).values(name="changed"))
        session.commit()
    assert [(event.key, event.operation) for event in stage.check()] == [("2", "create"), ("2", "update")]
    engine.dispose()


class Odd:
    """A value that a column takes and JSON does not."""


class OddType(sa.types.UserDefinedType[Any]):
    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "VARCHAR(20)"

    def bind_processor(self, dialect: sa.Dialect) -> Any:
        return lambda value: "odd"


def _odd(stage: Stage) -> sa.Table:
    table = sa.Table("odd", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("value", OddType()))
    table.create(stage.engine)
    return table


def test_a_value_that_cannot_be_encoded_fails_the_write(stage: Stage) -> None:
    """The error names column and type; nothing is committed."""
    stage.hook()
    table = _odd(stage)
    with stage.session() as session:
        with pytest.raises(CaptureError, match=r"odd\.value has a .*Odd"):
            session.execute(sa.insert(table), [{"id": 1, "value": Odd()}, {"id": 2, "value": Odd()}])
            session.commit()
        session.rollback()
        assert session.execute(sa.select(table.c.id)).all() == []


def test_a_placeholder_where_it_is_wished_for(stage: Stage) -> None:
    """``on_unencodable: placeholder`` writes the event and marks the value."""
    stage.hook(on_unencodable="placeholder")
    table = _odd(stage)
    with stage.engine.begin() as connection:
        connection.execute(table.insert(), [{"id": 1, "value": Odd()}, {"id": 2, "value": Odd()}])
    assert [event.after["value"] for event in stage.events()] == ["[unencodable] Odd"] * 2


def test_a_payload_that_is_too_large(stage: Stage) -> None:
    """An error that says what to do; or truncated to key and column names."""
    stage.hook(max_payload_bytes=500)
    with stage.session() as session, pytest.raises(CaptureError, match="max_payload_bytes is 500"):
        session.add(Item(id=1, doc={"long": "x" * 1000}))
        session.commit()
    assert stage.broker is not None
    stage.broker.uninstall()
    stage.hook(max_payload_bytes=500, on_too_large="truncate")
    with stage.session() as session, session.begin():
        session.add(Item(id=1, doc={"long": "x" * 1000}))
    (event,) = stage.events()
    assert event.payload["key"] == {"id": 1}
    assert "doc" in event.payload["truncated"]
    assert "after" not in event.payload


def test_choosing_tables_operations_and_columns(stage: Stage) -> None:
    """Include, exclude, operations that are off, columns that are left out or redacted."""
    stage.hook(
        include=["public.*"],
        exclude=[Seat, "public.item_tags"],
        enable_delete=False,
        exclude_columns=["blob", "public.items.loud"],
        redact_columns=["*.items.lbl"],
    )
    with stage.session() as session, session.begin():
        item = Item(id=1, label="secret", loud="also secret", blob=b"x", tags=[Tag(id=1, name="t")])
        session.add_all([item, Seat(row="A", number=1)])
        session.flush()
        item.label = "still secret"
        session.flush()
        item.tags = []
        session.delete(item)
    events = stage.events()
    assert sorted(event.type for event in events) == [
        "public.items.create",
        "public.items.update",
        "public.tags.create",
    ]
    for event in events:
        assert "secret" not in repr(event.payload)
        assert not {"blob", "loud"} & event.after.keys()
    assert {event.after["lbl"] for event in events if event.entity == "items"} == {"[redacted]"}


def test_a_table_of_the_application_may_be_called_events(stage: Stage) -> None:
    """In another schema it is its own; only ours are never captured."""
    if stage.engine.dialect.name == "sqlite":
        sa.event.listen(stage.engine, "connect", lambda connection, _: connection.execute("ATTACH ':memory:' AS app"))
        stage.engine.dispose()
    stage.hook()
    table = sa.Table("events", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), schema="app")
    with stage.engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.schema.CreateSchema("app"))
        table.create(connection)
        connection.execute(table.insert(), {"id": 1})
    assert [event.type for event in stage.events()] == ["app.events.create"]


def test_a_column_can_say_so_itself(stage: Stage) -> None:
    """``Column(info={'sqla_events': …})``."""
    stage.hook()
    table = sa.Table(
        "accounts",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("password", sa.String, info={"sqla_events": "exclude"}),
        sa.Column("phone", sa.String, info={"sqla_events": "redact"}),
    )
    table.create(stage.engine)
    with stage.engine.begin() as connection:
        connection.execute(table.insert(), {"id": 1, "password": "p", "phone": "1"})
    assert stage.events()[0].after == {"id": 1, "phone": "[redacted]"}


def test_an_event_holds_what_is_stored_and_not_what_the_application_sees(stage: Stage) -> None:
    """A TypeDecorator's plain text never leaves: for an encrypted column the event has the ciphertext."""
    stage.hook()
    with stage.session() as session, session.begin():
        item = Item(id=1, loud="whisper")
        session.add(item)
        session.flush()
        item.loud = "more"
    created, updated = stage.check()
    assert created.after["loud"] == "WHISPER"
    assert (updated.before["loud"], updated.after["loud"]) == ("WHISPER", "MORE")


@pytest.mark.parametrize("mode", ["warn", "raise", "ignore"])
def test_text_sql_is_noticed(stage: Stage, mode: str, caplog: pytest.LogCaptureFixture) -> None:
    """It cannot be captured, but never silently: a fact and a warning, an error before anything is written, or nothing."""
    broker = stage.hook(on_gap=mode)
    facts: list[Fact] = []
    broker.signals.subscribe(facts.append)
    statement = sa.text("INSERT INTO tags (id, name) VALUES (1, 'x')")
    with stage.engine.connect() as connection:
        if mode == "raise":
            with pytest.raises(CaptureError, match="text SQL writes to 'tags'"):
                connection.execute(statement)
        else:
            connection.execute(statement)
            connection.exec_driver_sql("UPDATE tags SET name = 'y'")
            connection.execute(sa.text("SELECT 'UPDATE tags'"))
        connection.rollback()
    gaps = [fact for fact in facts if isinstance(fact, Gap)]
    assert len(gaps) == {"warn": 2, "raise": 1, "ignore": 0}[mode]
    assert ("is not captured" in caplog.text) == (mode == "warn")


def test_read_events_are_off_and_can_be_switched_on(stage: Stage) -> None:
    """One event for every entity that a session loads, written when its transaction commits."""
    stage.hook(enable_read=True)
    with stage.session() as session, session.begin():
        session.add_all([Tag(id=1, name="a"), Tag(id=2, name="b")])
    with stage.session() as session, session.begin():
        session.scalars(sa.select(Tag).order_by(Tag.id)).all()
    reads = stage.events("*.*.read")
    assert [(event.type, event.key, event.after["name"]) for event in reads] == [
        ("public.tags.read", "1", "a"),
        ("public.tags.read", "2", "b"),
    ]


def test_context_is_that_of_the_write(stage: Stage) -> None:
    """Not that of the commit; values of any kind survive in metadata."""
    stage.hook()
    moment = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    with stage.session() as session:
        with event_context(user_id=1, moment=moment):
            session.add(Tag(id=1, name="a"))
            session.flush()
        session.add(Tag(id=2, name="b"))
        session.commit()
    first, second = stage.events()
    assert (first.user_id, first.metadata) == (1, {"moment": moment})
    assert (second.user_id, second.metadata) == (None, {})


def test_uninstalling_leaves_no_listener(stage: Stage) -> None:
    """Every registry is as before, and two engines do not know of each other."""
    registries = (stage.engine.dispatch, Mapper.dispatch, Session.dispatch)

    def count() -> list[int]:
        names = (
            "before_execute",
            "after_execute",
            "before_cursor_execute",
            "after_cursor_execute",
            "commit",
            "rollback",
            "savepoint",
        )
        engine = [len(getattr(registries[0], name)) for name in names]
        mapper = [
            len(list(getattr(Mapper.dispatch, name)._clslevel.get(Mapper, ())))
            for name in ("before_update", "before_delete")
        ]
        return engine + mapper

    before = count()
    broker = stage.hook()
    assert count() != before
    broker.uninstall()
    assert count() == before


def test_an_engine_that_is_not_hooked_is_not_captured(stage: Stage) -> None:
    """Its sessions use the same classes and the same tables."""
    stage.hook()
    other = sa.create_engine(stage.engine.url)
    with Session(other) as session, session.begin():
        session.add(Tag(id=1, name="a"))
        session.flush()
    with Session(other) as session, session.begin():
        session.get_one(Tag, 1).name = "b"
    other.dispose()
    assert stage.events() == []


def test_a_million_is_drained_as_it_goes(stage: Stage) -> None:
    """Rows are written in portions, not held until the commit."""
    stage.hook()
    with stage.engine.connect() as connection:
        connection.execute(sa.insert(Tag), [{"id": number, "name": "x"} for number in range(5000)])
        inside = connection.scalar(sa.text("SELECT count(*) FROM events"))
        assert inside is not None
        assert inside >= 4000
        connection.rollback()
    assert stage.events() == []


def test_missing_tables_fail_the_write_and_say_what_to_do(empty_database_url: str) -> None:
    """The application's write is not committed without its event."""
    engine = sa.create_engine(empty_database_url)
    Base.metadata.create_all(engine)
    broker = install_crud_hooks(engine, {})
    with Session(engine) as session:
        session.add(Tag(id=1, name="a"))
        with pytest.raises(CaptureError, match="sqla-events migrate"):
            session.commit()
    broker.uninstall()
    with Session(engine) as session:
        assert session.scalars(sa.select(Tag)).all() == []
    engine.dispose()


def test_a_commit_by_another_connection_over_the_same_one_of_the_driver(tmp_path: Path) -> None:
    """A StaticPool hands one out to all: what a default commits in the middle of a flush must have its events by then."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'one.db'}", poolclass=sa.StaticPool)
    upgrade(engine.url)
    metadata = sa.MetaData()
    counter = sa.Table("counter", metadata, sa.Column("id", sa.Integer, primary_key=True))

    def following() -> int:
        with engine.begin() as connection:
            return connection.execute(sa.insert(counter)).inserted_primary_key[0]

    first = sa.Table("first", metadata, sa.Column("id", sa.Integer, primary_key=True))
    second = sa.Table("second", metadata, sa.Column("id", sa.Integer, primary_key=True, default=following))
    metadata.create_all(engine)
    broker = install_crud_hooks(engine)
    with engine.connect() as connection:
        connection.execute(sa.insert(first), {"id": 7})
        connection.execute(sa.insert(second))
        connection.rollback()
        assert connection.execute(sa.select(first)).all() == [(7,)]
    broker.uninstall()
    with engine.connect() as connection:
        types = connection.execute(sa.text("SELECT type FROM events ORDER BY seq")).scalars().all()
    assert types == ["public.first.create", "public.counter.create"]
    engine.dispose()


@pytest.mark.parametrize("text", [False, True])
def test_a_savepoint_before_the_first_write(stage: Stage, text: bool) -> None:
    """With pysqlite as it comes its RELEASE commits: the rows stay although all is rolled back then, and so do their events."""
    stage.hook()
    with stage.engine.connect() as connection:
        if text:
            connection.exec_driver_sql("SAVEPOINT one")
            connection.execute(sa.insert(Tag), {"id": 1, "name": "a"})
            connection.exec_driver_sql("RELEASE SAVEPOINT one")
        else:
            with connection.begin_nested():
                connection.execute(sa.insert(Tag), {"id": 1, "name": "a"})
        connection.execute(sa.insert(Tag), {"id": 2, "name": "b"})
        connection.rollback()
    stage.check()

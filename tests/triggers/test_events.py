"""Triggers write the same events as capture does, and replaying them yields the tables."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session

from sqla_events import Event, event_context, triggers
from tests.capture.conftest import Stage
from tests.capture.model import Base, Color, Item, Seat, Tag, no_key
from tests.capture.test_write_paths import PATHS, full


def install(stage: Stage, *tables: sa.Table, **options: Any) -> None:
    with stage.engine.begin() as connection:
        for table in tables or Base.metadata.sorted_tables:
            triggers.create(connection, table, **options)


def bare(stage: Stage) -> sa.Engine:
    """The same database without hooks: any other program."""
    engine = sa.create_engine(stage.engine.url)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys = ON"))
    return engine


def told(event: Event) -> dict[str, Any]:
    return {
        "type": event.type, "schema": event.schema, "entity": event.entity, "operation": event.operation, "key": event.key,
        "payload": event.payload, "source": event.source, "version": event.schema_version,
    }  # fmt: skip


def test_replaying_the_events_of_triggers(stage: Stage) -> None:
    """Every write path, by a program without hooks."""
    stage.hook(on_gap="ignore")
    install(stage)
    engine = bare(stage)
    for write in PATHS:
        stage.empty()
        with Session(engine) as session:
            write(session)
            session.commit()
        stage.check()
    engine.dispose()


def test_no_double_capture(stage: Stage) -> None:
    """Hooks and triggers both on: events are those of the hooks, each once; text SQL in between is the triggers'."""
    install(stage)
    stage.hook(on_gap="raise")
    for write in PATHS:
        stage.empty()
        with stage.session() as session:
            write(session)
            session.execute(sa.text("INSERT INTO tags (id, name) VALUES (900, 'by: text %')"))
            session.add(Tag(id=901, name="by the session"))
            session.flush()
            session.execute(sa.text("UPDATE tags SET name = 'again' WHERE id >= 900"))
            session.commit()
        events = stage.check()
        assert [event.key for event in events if event.type == "public.tags.create"][-2:] == ["900", "901"]
        updates = [event.before for event in events if event.type == "public.tags.update"]
        assert updates[-2:] == [{"name": "by: text %"}, {"name": "by the session"}]


def test_the_same_events_as_capture(stage: Stage) -> None:
    """Value for value, of every kind of column; what the hooks know less of is compared as far as they know."""
    stage.hook(old_values="always")

    def write(session: Session) -> None:
        items = [full(id=1), Item(id=2), Item(id=3, doc=None, raw=None), Item(id=4, raw=sa.JSON.NULL), full(id=5, color=Color.BLUE, label="")]
        session.add_all(items)
        session.flush()
        session.execute(sa.update(Item).where(Item.id == 1).values(label="b", price=None, span=None, blob=b"", ratio=2.0, doc={"x": 1.5}))
        session.add_all([Seat(row="Ä", number=1), Seat(row='"\\', number=2, guest="\x01\n")])
        session.flush()
        session.execute(sa.delete(Item).where(Item.id == 5))
        session.execute(sa.delete(Seat))
        session.commit()

    with stage.session() as session:
        write(session)
    hooked = stage.events()
    with stage.engine.begin() as connection:
        connection.execute(sa.delete(Item))
    with stage.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM events")
    install(stage)
    engine = bare(stage)
    with Session(engine) as session:
        write(session)
    engine.dispose()
    for mine, theirs in zip(hooked, stage.events(), strict=True):
        by_hook, by_trigger = told(mine), told(theirs)
        if mine.operation == "update":  # the hook's has columns that were set to what they were
            after = {name: value for name, value in mine.after.items() if mine.before.get(name, ...) != value}
            by_hook["payload"] = {"key": mine.payload["key"], "before": {name: mine.before[name] for name in after}, "after": after}
        assert by_trigger == by_hook
        assert {name: type(value) for name, value in theirs.after.items()} == {name: type(mine.after[name]) for name in theirs.after}
        assert theirs.id != mine.id
        assert abs((theirs.created_at - mine.created_at).total_seconds()) < 600


def test_more_types_of_postgresql(postgres_url: str, tmp_path: Any) -> None:
    """Arrays, ranges, addresses, intervals of either sign, floats that JSON has no word for."""
    metadata = sa.MetaData()
    table = sa.Table(
        "kinds", metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("numbers", postgresql.ARRAY(sa.Integer)),
        sa.Column("prices", postgresql.ARRAY(sa.Numeric)),
        sa.Column("span", postgresql.INT4RANGE),
        sa.Column("stay", postgresql.DATERANGE),
        sa.Column("time", sa.Interval),
        sa.Column("at", sa.DateTime(timezone=True)),
        sa.Column("ratio", sa.Float),
        sa.Column("host", postgresql.INET),
        sa.Column("net", postgresql.CIDR),
        sa.Column("doc", postgresql.JSONB),
        sa.Column("yes", sa.Boolean),
        sa.Column("color", sa.Enum(Color, values_callable=lambda kind: [member.name.lower() for member in kind], name="lower_color")),
    )  # fmt: skip
    engine = sa.create_engine(postgres_url)
    metadata.create_all(engine)
    stage = Stage(engine, engine)
    broker = stage.hook()
    values = [
        "1, '{1,NULL}', '{1.10,2}', '[1,5)', '[2026-01-01,)', '-1 day -0.5 seconds', '2026-01-02 03:04:05.5+02', 'NaN', '10.0.0.1/8', '10.0.0.0/8', '{\"a\": [null]}', true, 'red'",
        "2, NULL, '{}', 'empty', NULL, '40 days 00:00:01', 'infinity', '-Infinity', '10.0.0.1', NULL, 'null', false, 'blue'",
    ]
    with engine.begin() as connection:
        triggers.create(connection, table)
        for row in values:
            connection.execute(sa.text(f"INSERT INTO kinds VALUES ({row})".replace(":", "\\:")))
    one, two = stage.events()
    with engine.connect() as connection:
        rows = connection.execute(sa.select(*(column for column in table.c if column.name != "at")).order_by(table.c.id)).all()
    for event, row in zip((one, two), rows, strict=True):
        expected = {**row._mapping, "doc": sa.JSON.NULL if row.doc is None else row.doc}
        found = {name: value for name, value in event.after.items() if name != "at"}
        assert repr(found) == repr(expected)
    assert one.after["at"].isoformat() == "2026-01-02T01:04:05.500000+00:00"
    assert two.after["at"] is None
    broker.uninstall()
    engine.dispose()


def test_context_reaches_the_events_of_text_sql(stage: Stage) -> None:
    """Who did it, for writes that only the trigger sees; and not for those that come after."""
    install(stage, Tag.__table__)
    stage.hook()
    for number, context in enumerate([{"user_id": 7, "session_id": "s", "moment": dt.date(2026, 1, 1)}, {}], 1):
        with event_context(**context), stage.engine.begin() as connection:
            connection.execute(sa.text("INSERT INTO tags (id, name) VALUES (:id, 'x')"), {"id": number})
        with stage.engine.begin() as connection:
            connection.execute(sa.text("INSERT INTO tags (id, name) VALUES (:id, 'x')"), {"id": number + 10})
    first, *others = stage.events()
    assert (first.user_id, first.session_id, first.metadata) == (7, "s", {"moment": dt.date(2026, 1, 1)})
    assert all((event.user_id, event.session_id, event.metadata) == (None, None, {}) for event in others)


def test_another_program_can_say_who_it_is(postgres_url: str) -> None:
    """``SET LOCAL sqla_events.user_id``."""
    engine = sa.create_engine(postgres_url)
    Base.metadata.create_all(engine)
    stage = Stage(engine, engine)
    broker = stage.hook()
    install(stage, Tag.__table__)
    other = bare(stage)
    with other.begin() as connection:
        connection.exec_driver_sql("SET LOCAL sqla_events.user_id = '12'")
        connection.exec_driver_sql("INSERT INTO tags (id, name) VALUES (1, 'x')")
    other.dispose()
    assert [event.user_id for event in stage.events()] == [12]
    broker.uninstall()
    engine.dispose()


STRANGE = "Straße: 100% \"o'clock\" */ --$1"


def test_strange_names_columns_that_stay_out_and_no_key(stage: Stage) -> None:
    """Names that have to be quoted everywhere, and secrets."""
    metadata = sa.MetaData()
    table = sa.Table(
        STRANGE, metadata,
        sa.Column("ключ", sa.Integer, primary_key=True),
        sa.Column("b%s:c", sa.String, primary_key=True),
        sa.Column("it's", sa.String),
        sa.Column("password", sa.String),
        sa.Column("phone", sa.String, info={"sqla_events": "redact"}),
    )  # fmt: skip
    metadata.create_all(stage.engine)
    stage.hook(on_gap="raise", exclude=[STRANGE])
    install(stage, table, no_key, exclude_columns=["password"])
    quote = '"' + STRANGE.replace('"', '""') + '"'
    engine = bare(stage)
    with engine.begin() as connection:
        raw = connection.execution_options(no_parameters=True)
        raw.exec_driver_sql(f"INSERT INTO {quote} VALUES (1, 'k''', 'v', 'secret', '123'), (2, '\"', NULL, NULL, NULL)")
        raw.exec_driver_sql(f"UPDATE {quote} SET phone = '9', \"it's\" = 'w', password = 'p' WHERE phone IS NOT NULL")
        raw.exec_driver_sql(f"UPDATE {quote} SET password = 'only'")
        raw.exec_driver_sql(f'DELETE FROM {quote} WHERE "ключ" = 1')
        raw.exec_driver_sql(f"DELETE FROM {quote}")
        raw.exec_driver_sql("INSERT INTO no_key VALUES (1, 'x')")
        raw.exec_driver_sql("UPDATE no_key SET b = 'y'")
    engine.dispose()
    events = stage.events()
    assert [(event.operation, event.key) for event in events] == [
        ("create", "[1,\"k'\"]"), ("create", '[2,"\\""]'), ("update", "[1,\"k'\"]"), ("delete", "[1,\"k'\"]"), ("delete", '[2,"\\""]'),
        ("create", "*"), ("update", "*"),
    ]  # fmt: skip
    assert events[0].entity == STRANGE
    assert events[0].payload == {"key": {"ключ": 1, "b%s:c": "k'"}, "after": {"ключ": 1, "b%s:c": "k'", "it's": "v", "phone": "[redacted]"}}
    assert events[2].after == {"it's": "w", "phone": "[redacted]"}
    assert events[-1].payload == {"key": {}, "before": {"a": 1, "b": "x"}, "after": {"b": "y"}}


def test_truncate_deletes_every_row(postgres_url: str) -> None:
    """One event for each, so that the copy is empty, too."""
    engine = sa.create_engine(postgres_url)
    Base.metadata.create_all(engine)
    stage = Stage(engine, engine)
    broker = stage.hook(on_gap="raise")
    install(stage, Seat.__table__)
    with engine.begin() as connection:
        connection.execute(sa.insert(Seat), [{"row": "A", "number": number} for number in range(3)])
        connection.execute(sa.text("TRUNCATE seats"))
    assert [(event.operation, event.key) for event in stage.events()][3:] == [("delete", f'["A",{number}]') for number in range(3)]
    broker.uninstall()
    engine.dispose()


@pytest.mark.parametrize("by", ["connection", "script"])
def test_columns_that_are_computed_when_they_are_read(postgres_url: str, by: str) -> None:
    """PostgreSQL 18 has no values of them for triggers: the events are without, and those that are stored are in them."""
    engine = sa.create_engine(postgres_url)
    with engine.begin() as connection:
        if (engine.dialect.server_version_info or ())[0] < 18:
            pytest.skip("PostgreSQL 18")
        connection.exec_driver_sql("""CREATE TABLE sums (id integer PRIMARY KEY, n integer,
            read integer GENERATED ALWAYS AS (n + 1) VIRTUAL, kept integer GENERATED ALWAYS AS (n + 2) STORED)""")
        table = sa.Table(
            "sums", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", sa.Integer),
            sa.Column("read", sa.Integer, sa.Computed("n + 1", persisted=False)), sa.Column("kept", sa.Integer, sa.Computed("n + 2", persisted=True)),
        )  # fmt: skip
        if by == "script":
            for statement in triggers.sql(table, "postgresql"):
                connection.exec_driver_sql(statement)
        else:
            triggers.create(connection, sa.Table("sums", sa.MetaData()))
    stage = Stage(engine, engine)
    broker = stage.hook(on_gap="raise")
    with engine.begin() as connection:
        for text in ("INSERT INTO sums (id, n) VALUES (1, 1), (2, 2), (3, 3)", "UPDATE sums SET n = 9 WHERE id = 1", "DELETE FROM sums WHERE id = 2", "TRUNCATE sums"):
            connection.exec_driver_sql(text)
    events = stage.events()
    assert [event.operation for event in events] == ["create"] * 3 + ["update"] + ["delete"] * 3
    assert [event.after for event in events[2:4]] == [{"id": 3, "n": 3, "kept": 5}, {"n": 9, "kept": 11}]
    assert [event.before for event in events[3:5]] == [{"n": 1, "kept": 3}, {"id": 2, "n": 2, "kept": 4}]
    broker.uninstall()
    engine.dispose()


def test_what_triggers_of_others_write(postgres_url: str) -> None:
    """A captured statement makes another trigger write to a table: that is seen, too, on whatever table it is."""
    engine = sa.create_engine(postgres_url)
    Base.metadata.create_all(engine)
    stage = Stage(engine, engine)
    install(stage, Seat.__table__, Tag.__table__)
    broker = stage.hook()
    with engine.begin() as connection:
        connection.exec_driver_sql("""CREATE FUNCTION also() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO seats (row, number) VALUES (NEW.name, 1); UPDATE tags SET name = name || '!' WHERE id = NEW.id; RETURN NULL; END $$""")
        connection.exec_driver_sql("CREATE TRIGGER also AFTER INSERT ON tags FOR EACH ROW EXECUTE FUNCTION also()")
        connection.execute(sa.insert(Tag), {"id": 1, "name": "x"})
    assert {(event.type, event.key) for event in stage.events()} == {
        ("public.tags.create", "1"), ("public.seats.create", '["x",1]'), ("public.tags.update", "1"),
    }  # fmt: skip
    broker.uninstall()
    engine.dispose()


def test_a_role_that_may_not_write_events(postgres_url: str) -> None:
    """Another program needs rights on its own tables only, and its search path and formats change nothing."""
    engine = sa.create_engine(postgres_url)
    Base.metadata.create_all(engine)
    stage = Stage(engine, engine)
    broker = stage.hook()
    install(stage, Item.__table__)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE ROLE stranger; GRANT ALL ON items TO stranger; GRANT USAGE ON SCHEMA public TO stranger")
        connection.exec_driver_sql("SET LOCAL ROLE stranger")
        connection.exec_driver_sql("SET LOCAL search_path = pg_temp; SET LOCAL datestyle = 'German'; SET LOCAL timezone = 'Asia/Tokyo'")
        connection.exec_driver_sql("INSERT INTO public.items (id, count, touched, day, span) VALUES (1, 1, 1, '3.2.2026', '1 hour')")
        connection.exec_driver_sql("RESET ROLE; DROP OWNED BY stranger; DROP ROLE stranger")
    (event,) = stage.events()
    assert (event.after["day"].isoformat(), event.after["span"].total_seconds()) == ("2026-02-03", 3600)
    broker.uninstall()
    engine.dispose()


def test_ten_thousand_rows_in_one_update(postgres_url: str) -> None:
    """Old and new rows are paired right, where keys move, too."""
    engine = sa.create_engine(postgres_url)
    Base.metadata.create_all(engine)
    stage = Stage(engine, engine)
    broker = stage.hook()
    install(stage, Seat.__table__)
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO seats SELECT 'A', n, n::text FROM generate_series(1, 10000) AS n ORDER BY random()")
        connection.exec_driver_sql("UPDATE seats SET number = number + 20000, guest = (number + 20000)::text")
    updates = [event for event in stage.events() if event.operation == "update"]
    assert len(updates) == 10000
    assert all(event.after["number"] == event.before["number"] + 20000 == event.payload["key"]["number"] + 20000 for event in updates)
    broker.uninstall()
    engine.dispose()

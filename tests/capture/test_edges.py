"""Where capture was found wrong by attacking it: around statements that write their own events, and where errors are caught."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import create_async_engine

from sqla_events import CaptureError, install_crud_hooks
from sqla_events.capture import forms, within
from sqla_events.capture.column import ColumnCodec
from tests.capture.conftest import Stage

metadata = sa.MetaData()
things = sa.Table("things", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("x", sa.String))
old = sa.Table("old", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("x", sa.String))
hidden = sa.Table("hidden", metadata, sa.Column("x", sa.Integer, info={"sqla_events": "exclude"}))
numbers = sa.Table("numbers", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("x", sa.Float))
moments = sa.Table("moments", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("at", sa.DateTime(timezone=True)))

NAME = "it's 50% \\ \\ud800"
coded = sa.Table(
    "coded", metadata, sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("raw", sa.JSON), sa.Column("x", sa.Enum("a", NAME, native_enum=False, length=40)),
)  # fmt: skip


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statements write their own events, of few rows, too."""
    monkeypatch.setattr(within, "FEW", 0)


@pytest.fixture
def made(stage: Stage) -> Stage:
    """Three rows of things, whose events nobody has."""
    metadata.create_all(stage.engine)
    with stage.engine.begin() as connection:
        connection.execute(things.insert(), [{"id": number, "x": "a"} for number in (1, 2, 3)])
    return stage


@pytest.fixture
def on_postgres(postgres_url: str) -> Iterator[Stage]:
    engine = sa.create_engine(postgres_url)
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(things.insert(), [{"id": number, "x": "a"} for number in (1, 2, 3)])
    stage = Stage(engine, engine)
    yield stage
    if stage.broker is not None:
        stage.broker.uninstall()
    engine.dispose()


def told(stage: Stage) -> list[tuple[str, str, Any]]:
    return [(event.operation, event.key, (event.after or {}).get("x")) for event in stage.events()]


# Both databases -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("many", [False, True])
def test_a_write_without_its_event_is_not_committed(made: Stage, many: bool) -> None:
    """Although its error is caught; what a savepoint undoes does not count."""
    made.hook(max_payload_bytes=64)
    write = things.update().values(x="y" * 100) if many else things.insert().values(id=4, x="y" * 100)
    with pytest.raises(CaptureError, match="cannot be committed"), made.engine.begin() as connection:
        connection.execute(things.insert(), {"id": 5, "x": "b"})
        with pytest.raises(CaptureError, match="max_payload_bytes"):
            connection.execute(write)
    with made.engine.begin() as connection:
        assert connection.scalar(sa.select(sa.func.count()).where(things.c.x == "a")) == 3
        assert connection.scalar(sa.select(sa.func.count()).select_from(things)) == 3
        with pytest.raises(CaptureError, match="max_payload_bytes"), connection.begin_nested():
            connection.execute(write)
        connection.execute(things.insert(), {"id": 6, "x": "c"})
    assert told(made) == [("create", "6", "c")]


def test_events_that_could_not_be_written(sqlite_url: str) -> None:
    """SQLite goes on after an error: the transaction does not commit without the events that a savepoint has lost."""
    engine = sa.create_engine(sqlite_url)
    metadata.create_all(engine)
    broker = install_crud_hooks(engine, {})
    with pytest.raises(CaptureError, match="cannot be committed"), engine.begin() as connection:
        connection.exec_driver_sql("CREATE TRIGGER no BEFORE INSERT ON events BEGIN SELECT RAISE(FAIL, 'no'); END")
        connection.execute(things.insert(), {"id": 1, "x": "a"})
        with pytest.raises(CaptureError, match="no"):
            connection.begin_nested()
        connection.exec_driver_sql("DROP TRIGGER no")
    with engine.connect() as connection:
        assert connection.execute(sa.select(things)).all() == []
    broker.uninstall()
    engine.dispose()


def test_autocommit_from_the_second_transaction_on(made: Stage) -> None:
    """Refused as in the first one."""
    made.hook()
    with made.engine.connect() as connection:
        connection.execute(things.insert(), {"id": 5, "x": "b"})
        connection.commit()
        connection.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(CaptureError, match="AUTOCOMMIT"):
            connection.execute(things.insert(), {"id": 6, "x": "b"})


@pytest.mark.parametrize(
    ("name", "written"),
    [("before_cursor_execute", ["5", "7"]), ("after_cursor_execute", ["5"]), ("after_execute", ["5", "6", "7"])],
)
def test_the_error_of_another_listener(made: Stage, name: str, written: list[str]) -> None:
    """Between the write and its event, and caught: the transaction cannot commit. Before the write there is nothing to lose,
    and after the event nothing is lost.
    """

    def fail(*given: Any) -> None:
        if "wrong" in str(given):
            raise ZeroDivisionError

    first, between = name != "before_cursor_execute", name == "after_cursor_execute"
    if first:
        sa.event.listen(made.engine, name, fail)
    made.hook(carry=False)
    if not first:
        sa.event.listen(made.engine, name, fail)
    with made.engine.begin() as connection:
        with pytest.raises(ZeroDivisionError), connection.begin_nested():
            connection.execute(things.insert(), {"id": 4, "x": "wrong"})
        connection.execute(things.insert(), {"id": 5, "x": "b"})
    with pytest.raises(CaptureError, match="cannot be committed") if between else nullcontext(), made.engine.begin() as connection:
        with pytest.raises(ZeroDivisionError):
            connection.execute(things.insert(), {"id": 6, "x": "wrong"})
        connection.execute(things.insert(), {"id": 7, "x": "c"})
    with made.engine.connect() as connection:
        found = [str(key) for key in connection.scalars(sa.select(things.c.id).where(things.c.id > 3))]
    assert [one[1] for one in told(made)] == found == written


def test_a_json_key(made: Stage) -> None:
    """One text for a row, whoever writes it."""
    table = sa.Table("documents", sa.MetaData(), sa.Column("doc", sa.JSON().with_variant(JSONB(), "postgresql"), primary_key=True), sa.Column("x", sa.String))
    table.create(made.engine)
    made.hook()
    with made.engine.begin() as connection:
        connection.execute(table.insert(), {"doc": {"long": [1, "ü"], "b": None}, "x": "a"})
        connection.execute(table.update().values(x="b"))
        connection.execute(table.delete())
    assert [event.key for event in made.events()] == ['{"b":null,"long":[1,"ü"]}'] * 3


def test_offsets_with_seconds(made: Stage) -> None:
    """The clocks of Berlin in 1880: half a minute must not get lost."""
    made.hook()
    at = dt.datetime(1880, 1, 1, tzinfo=ZoneInfo("Europe/Berlin"))
    with made.engine.begin() as connection:
        connection.execute(moments.insert(), {"id": 1, "at": at})
    (event,) = made.events()
    assert event.after["at"] == at


# PostgreSQL ---------------------------------------------------------------------------------------------------------


def test_a_table_called_old(on_postgres: Stage) -> None:
    """In FROM: then ``old`` in RETURNING is that table."""
    stage = on_postgres
    with stage.engine.begin() as connection:
        connection.execute(old.insert(), {"id": 1, "x": "other"})
    stage.hook(old_values="always")
    with stage.engine.begin() as connection:
        connection.execute(things.update().where(things.c.id == old.c.id).values(x="b"))
        aliased = numbers.alias("old")
        connection.execute(numbers.insert(), {"id": 1, "x": 1})
        connection.execute(things.update().where(things.c.id == aliased.c.id).values(x="c").returning(things.c.id))
    assert [event.before for event in stage.events("*.things.*")] == [{"x": "a"}, {"x": "b"}]


def test_what_a_listener_writes_before_a_statement(on_postgres: Stage) -> None:
    """Comes before it in the log."""
    stage = on_postgres
    stage.hook()

    def write(connection: sa.Connection, _: Any, sql: str, *more: Any) -> None:
        if "UPDATE things" in sql:
            connection.execute(things.insert(), {"id": 4, "x": "a"})

    sa.event.listen(stage.engine, "before_cursor_execute", write)
    with stage.engine.begin() as connection:
        connection.execute(things.update().values(x="b"))
    assert [one for one in told(stage) if one[1] == "4"] == [("create", "4", "a"), ("update", "4", "b")]


def test_errors_that_are_not_of_the_log(on_postgres: Stage) -> None:
    """Although they speak of something that is called alike."""
    on_postgres.hook()
    for wrong in (sa.text("events_total"), sa.func.get_events(1), sa.text('"events"')):
        with pytest.raises(sa.exc.ProgrammingError), on_postgres.engine.begin() as connection:
            connection.execute(things.update().values(x=wrong))


def test_a_rule_that_is_made_later(on_postgres: Stage) -> None:
    """One statement fails, and the next ones are Python's."""
    stage = on_postgres
    stage.hook()
    with stage.engine.begin() as connection:
        connection.execute(things.update().values(x="b"))
    with stage.engine.begin() as connection:
        connection.exec_driver_sql("CREATE RULE also AS ON UPDATE TO things DO ALSO NOTIFY x")
    with pytest.raises(sa.exc.NotSupportedError), stage.engine.begin() as connection:
        connection.execute(things.update().values(x="c"))
    with stage.engine.begin() as connection:
        connection.execute(things.update().values(x="c"))
    assert [one[2] for one in told(stage)] == ["b"] * 3 + ["c"] * 3


def test_a_table_of_which_nothing_is_told(on_postgres: Stage) -> None:
    """No key, and its only column is excluded: reported as ever."""
    on_postgres.hook(on_gap="ignore")
    with on_postgres.engine.begin() as connection:
        connection.execute(hidden.insert(), {"x": 1})
        assert connection.execute(hidden.update().values(x=2)).rowcount == 1
        assert connection.execute(hidden.delete()).rowcount == 1


def test_as_many_parameters_as_the_protocol_takes(on_postgres: Stage) -> None:
    """There is no room for more of them."""
    on_postgres.hook()
    with on_postgres.engine.begin() as connection:
        assert connection.execute(things.update().where(things.c.id.in_(range(65_534))).values(x="b")).rowcount == 3
    assert len(on_postgres.events()) == 3


def test_backslashes_that_escape(on_postgres: Stage) -> None:
    """A session in which literals are not what they were to the dialect: JSON's null and members are what they are."""
    stage = on_postgres
    stage.hook()
    with stage.engine.begin() as connection:
        connection.execute(coded.insert(), {"id": 1, "raw": None, "x": NAME})
        connection.exec_driver_sql("SET LOCAL standard_conforming_strings = off; SET LOCAL escape_string_warning = off")
        connection.execute(coded.update().values(raw=coded.c.raw, x=coded.c.x))
    assert [event.after["raw"] for event in stage.events()] == [sa.JSON.NULL, sa.JSON.NULL]
    assert [event.after["x"] for event in stage.events()] == [NAME, NAME]


def test_statements_without_parameters(on_postgres: Stage) -> None:
    """What reaches the driver is what it would be without capture."""
    options = {"no_parameters": True}
    write = things.update().values(x=sa.literal_column("'50%'"))
    read = sa.select(things.c.x).distinct()
    with on_postgres.engine.begin() as connection:
        connection.execute(write, execution_options=options)
        found = connection.scalars(read).all()
    on_postgres.hook()
    with on_postgres.engine.begin() as connection:
        connection.execute(write, execution_options=options)
        assert connection.scalars(read).all() == found


def test_thousands_of_schemas(on_postgres: Stage) -> None:
    """What stands around a statement is the same for all in which the table is."""
    stage = on_postgres
    broker = stage.hook()
    with stage.engine.begin() as connection:
        for number in range(5):
            connection.exec_driver_sql(f"CREATE SCHEMA s{number}; CREATE TABLE s{number}.things (LIKE things)")
    for number in range(5):
        with stage.engine.connect().execution_options(schema_translate_map={None: f"s{number}"}) as connection:
            connection.execute(things.update().values(x="b"))
    codec = broker._capture._captured.codec_of(things)
    assert len(codec.stored) == 5
    assert len({id(stored) for stored in codec.stored.values()}) == 1
    assert [len(frames) for _, frames in codec.frames._kept.values()] == [1]


def test_intervals_before_postgresql_14(on_postgres: Stage) -> None:
    """Whose extract gives a double, as date_part does everywhere."""
    codec = ColumnCodec(sa.Column("x", sa.Interval), on_postgres.engine.dialect)
    sql = re.sub(r"extract\((\w+) FROM v\)", r"date_part('\1', v)", forms.open_form(codec, on_postgres.engine.dialect).text("v"))
    assert "date_part" in sql
    with on_postgres.engine.connect() as connection:
        read = f"SELECT {sql} FROM (VALUES (interval '800000 days 2.000001 seconds')) AS a (v)"
        assert connection.exec_driver_sql(read, execution_options={"no_parameters": True}).scalar() == '"P800000DT2.000001S"'


def test_on_asyncpg(on_postgres: Stage) -> None:
    """It counts the rows of an INSERT, and has all digits of a float, whatever the session says."""
    engine = create_async_engine(on_postgres.engine.url.set(drivername="postgresql+asyncpg"))
    more = things.insert().from_select(["id", "x"], sa.select(things.c.id + 10, things.c.x))

    async def run() -> None:
        broker = install_crud_hooks(engine, {})
        async with engine.begin() as connection:
            await connection.execute(numbers.insert(), {"id": 1, "x": 0.1 + 0.2})
            await connection.exec_driver_sql("SET LOCAL extra_float_digits = 0")
            assert (await connection.execute(more)).rowcount == 3
            assert (await connection.execute(things.insert().values([{"id": 7}, {"id": 8}]))).rowcount == 2
            await connection.execute(numbers.update().values(x=numbers.c.x))
        broker.uninstall()
        await engine.dispose()

    asyncio.run(run())
    on_postgres.hook()
    assert [event.after["x"] for event in on_postgres.events("*.numbers.*")] == [0.1 + 0.2] * 2


def test_a_key_that_is_none(made: Stage) -> None:
    """Two rows that the metadata takes for one: what is gone has an event."""
    table = sa.Table("doubles", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("x", sa.String(9)))
    with made.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE doubles (id integer, x varchar(9))")
        connection.exec_driver_sql("INSERT INTO doubles VALUES (1, 'a'), (1, 'b')")
    made.hook(carry=False)
    by_key = table.c.id == sa.bindparam("key")
    with made.engine.begin() as connection:
        assert connection.execute(table.update().where(by_key), {"key": 1, "x": "c"}).rowcount == 2
        assert connection.execute(table.delete().where(by_key), {"key": 1}).rowcount == 2
    assert [event.operation for event in made.events()] == ["update", "delete"]

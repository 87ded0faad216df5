"""What an event says of a value that is near its column's type: what is stored, whoever tells it; and one key for one row."""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
import json
import time
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import create_async_engine

from sqla_events import install_crud_hooks
from tests.capture.conftest import Stage


class Word(str, enum.Enum):  # noqa: UP042 - as people write it
    A = "va"


class NewWord(enum.StrEnum):
    A = "new"


class Number(enum.IntEnum):
    X = 7


class Cents(sa.TypeDecorator[Decimal]):
    impl = sa.Numeric(10, 2)
    cache_ok = True


SUMMER = dt.datetime(2026, 7, 1, 12, tzinfo=dt.timezone(dt.timedelta(hours=2)))
NEAR: dict[str, tuple[Any, list[Any]]] = {
    "text": (sa.String(20), [Word.A, NewWord.A, "x"]),
    "int": (sa.Integer(), [Number.X, True, 1]),
    "numeric": (sa.Numeric(10, 2), [Decimal("1.1"), Decimal("3.005"), Decimal("-3.005"), Decimal("1E+2"), 2, 1.5, Number.X]),
    "whole": (sa.Numeric(10), [Decimal("2.5"), 3]),
    "float": (sa.Float(), [1, 2.5]),
    "bool": (sa.Boolean(), [1, False]),
    "date": (sa.Date(), [dt.datetime(2026, 1, 2, 3, 4)]),
    "datetime": (sa.DateTime(), [dt.date(2026, 1, 2)]),
}
ON_POSTGRESQL: dict[str, tuple[Any, list[Any]]] = {
    "seconds": (postgresql.TIMESTAMP(precision=0), [dt.datetime(2026, 1, 1, 1, 1, 1, 500001)]),
    "single": (sa.REAL(), [0.1, 1]),
    "range": (postgresql.INT4RANGE(), [postgresql.Range(1, 4, bounds="[]")]),
    "cents": (sa.Numeric(10, 2, asdecimal=False), [1.005, 2]),
    "thousands": (sa.Numeric(10, -2), [Decimal(1234), Decimal(0), 5]),
    "interval": (sa.Interval(second_precision=2), [dt.timedelta(seconds=1.239)]),
    "numerics": (sa.ARRAY(sa.Numeric(10, 2)), [[Decimal("1.005")]]),
    "decorated": (sa.ARRAY(Cents()), [[Decimal("1.005")]]),
    "times": (sa.ARRAY(postgresql.TIMESTAMP(precision=0)), [[dt.datetime(2026, 1, 1, 1, 1, 1, 600000)]]),
    "singles": (sa.ARRAY(sa.REAL()), [[1.1]]),
    "domain": (postgresql.DOMAIN("cents", sa.Numeric(10, 2)), [Decimal("1.005")]),
    "no_range": (postgresql.NUMRANGE(), [postgresql.Range(Decimal(5), Decimal(5), bounds=bounds) for bounds in ("()", "[]")]),
    "ranges": (postgresql.NUMMULTIRANGE(), [[postgresql.Range(Decimal(1), Decimal(3)), postgresql.Range(Decimal(2), Decimal(4))]]),
    "lexemes": (postgresql.TSVECTOR(), ["b a"]),
    "path": (postgresql.JSONPATH(), ["$.a"]),
}
UNLIKE: dict[str, tuple[Any, list[Any]]] = {
    "text": (sa.String(20), [True, dt.date(2026, 1, 2)]),
    "int": (sa.Integer(), ["007", " +7 "]),
    "float": (sa.Float(), ["1.5"]),
    "numeric": (sa.Numeric(10, 2), ["1.5", " 1.239", 3]),
}
"""asyncpg refuses them."""
UNLIKE_ON: dict[str, dict[str, tuple[Any, list[Any]]]] = {
    "sqlite": {"number": (sa.Integer(), ["7.0", "1e3", "7_0", "\u0667", "1.5", str(2**63 - 1), str(2**63), "1e400", "1" * 5000])},
    "postgresql": {
        "word": (sa.String(40), [uuid.UUID(int=5), Decimal("1E+2"), 5]),
        "date": (sa.Date(), ["2026-05-06", "2026-5-6"]),
    },
}
KEYS: dict[str, tuple[Any, list[Any]]] = {
    **NEAR,
    "char": (sa.CHAR(5), ["ab", ""]),
    "moment": (sa.DateTime(timezone=True), [SUMMER]),
    "text_ref": (sa.Uuid(as_uuid=False), [str(uuid.UUID(int=11)).upper(), uuid.UUID(int=12).hex]),
    "tiny": (sa.Numeric(12, 9), [Decimal("1E-7")]),
    "naive": (sa.DateTime(timezone=True), [dt.datetime(2026, 5, 6, 7, 8)]),
    "color": (sa.Enum(NewWord, values_callable=lambda kind: [one.value for one in kind], name="newword"), ["new"]),
}
DRIVERS = ["sqlite", "sqlite+aiosqlite", "postgresql+psycopg", "postgresql+asyncpg"]


def write(connection: sa.Connection, table: sa.Table, value: Any) -> None:
    """A row by a parameter, alone and among many; then the database tells it."""
    key = value if table.name == "keys" else 1
    connection.execute(table.insert(), {"id": key, "v": value})
    connection.execute(table.update().where(table.c.id == sa.bindparam("k")).values(v=value), {"k": key})
    connection.execute(table.update().values(v=table.c.v))
    connection.execute(table.delete())
    connection.execute(table.insert(), [{"id": key, "v": value}])


def events(url: str, table: sa.Table, values: list[Any]) -> list[list[tuple[str, Any]]]:
    """Of each value: key and value of the events of its row."""
    asynchronous = "aiosqlite" in url or "asyncpg" in url
    engine: Any = create_async_engine(url) if asynchronous else sa.create_engine(url)

    def run(connection: sa.Connection) -> list[list[tuple[str, Any]]]:
        table.metadata.create_all(connection)
        broker, found = install_crud_hooks(engine, {}), []
        for value in values:
            write(connection, table, value)
            broker._capture.drain(connection)
            rows = connection.exec_driver_sql("SELECT key, payload FROM events ORDER BY seq").all()
            connection.exec_driver_sql("DELETE FROM events")
            connection.exec_driver_sql(f"DELETE FROM {table.name}")
            found.append([(key, _value(payload)) for key, payload in rows])
        broker.uninstall()
        table.metadata.drop_all(connection)
        return found

    async def run_async() -> list[list[tuple[str, Any]]]:
        async with engine.begin() as connection:
            found = await connection.run_sync(run)
        await engine.dispose()
        return found

    if asynchronous:
        return asyncio.run(run_async())
    with engine.begin() as connection:
        found = run(connection)
    engine.dispose()
    return found


def _value(payload: Any) -> Any:
    sides = payload if isinstance(payload, dict) else json.loads(payload)
    return sides.get("after", sides.get("before"))["v"]


def url_of(driver: str, request: pytest.FixtureRequest) -> str:
    sqlite = driver.startswith("sqlite")
    url = request.getfixturevalue("sqlite_url" if sqlite else "postgres_url")
    return sa.make_url(url).set(drivername=driver).render_as_string(hide_password=False)


def a_table(name: str, kind: Any) -> sa.Table:
    key = kind if name == "keys" else sa.Integer
    return sa.Table(name, sa.MetaData(), sa.Column("id", key, primary_key=True, autoincrement=False), sa.Column("v", kind))


@pytest.mark.parametrize("driver", DRIVERS)
def test_what_is_stored(driver: str, request: pytest.FixtureRequest) -> None:
    """A parameter tells what the database tells."""
    url = url_of(driver, request)
    for name, (kind, values) in (NEAR if "sqlite" in driver else {**NEAR, **ON_POSTGRESQL}).items():
        if name == "numeric" and "sqlite" in driver:
            values = [value for value in values if value not in (Decimal("3.005"), Decimal("-3.005"))]  # floats there
        if name == "bool" and "asyncpg" in driver:
            values = [False]  # the driver takes no others
        table = a_table("v_" + name, kind)
        for value, found in zip(values, events(url, table, values), strict=True):
            assert len({repr(one) for _, one in found}) == 1, (name, value, found)


@pytest.mark.parametrize("driver", [driver for driver in DRIVERS if "asyncpg" not in driver])
@pytest.mark.filterwarnings("ignore:The default date adapter")
def test_values_of_another_kind(driver: str, request: pytest.FixtureRequest) -> None:
    """A parameter tells what the database makes of text in a column of numbers, and of others in text."""
    url = url_of(driver, request)
    for name, (kind, values) in {**UNLIKE, **UNLIKE_ON[driver.partition("+")[0]]}.items():
        table = a_table("v_" + name, kind)
        for value, found in zip(values, events(url, table, values), strict=True):
            assert len({repr(one) for _, one in found}) == 1, (name, value, found)


@pytest.mark.parametrize("driver", [driver for driver in DRIVERS if "asyncpg" not in driver])
def test_one_key_of_numbers_that_are_written_as_text(driver: str, request: pytest.FixtureRequest) -> None:
    """Alone, and among others in a key."""
    for found in events(url_of(driver, request), a_table("keys", sa.Integer()), UNLIKE["int"][1]):
        assert {key for key, _ in found} == {"7"}


ZONE = "America/New_York"
WITHOUT_A_ZONE = {"2026-03-08T02:30": "2026-03-08T07:30", "2026-11-01T01:30": "2026-11-01T06:30", "2026-07-01T12:00": "2026-07-01T16:00"}
"""Local times that are left out, there twice, and there once; in UTC, as PostgreSQL has them."""


@pytest.fixture
def in_new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", ZONE)
    monkeypatch.setenv("PGTZ", ZONE)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("in_new_york")
@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+asyncpg"])
def test_one_key_of_times_without_a_zone(driver: str, request: pytest.FixtureRequest) -> None:
    """The moment that they are: psycopg leaves them to the zone of the session, asyncpg to that of the process."""
    times = list(WITHOUT_A_ZONE)[2 if "asyncpg" in driver else 0 :]
    table = a_table("keys", sa.DateTime(timezone=True))
    told = events(url_of(driver, request), table, [dt.datetime.fromisoformat(one) for one in times])
    for one, found in zip(times, told, strict=True):
        assert {key for key, _ in found} == {WITHOUT_A_ZONE[one] + ":00+00:00"}
        assert {dt.datetime.fromisoformat(value).astimezone(dt.UTC) for _, value in found} == {
            dt.datetime.fromisoformat(WITHOUT_A_ZONE[one] + "+00:00")
        }


@pytest.mark.parametrize("driver", DRIVERS)
def test_one_key(driver: str, request: pytest.FixtureRequest) -> None:
    """The key of a row is the same for whoever writes it: its events keep their order by that."""
    url = url_of(driver, request)
    for name, (kind, values) in KEYS.items():
        if name == "color" or (name == "bool" and "asyncpg" in driver):
            values = values[-1:]
        table = a_table("keys", kind)
        for value, found in zip(values, events(url, table, values), strict=True):
            assert len({key for key, _ in found}) == 1, (name, value, found)


def test_a_serializer_that_makes_bytes(stage: Stage) -> None:
    """As those do that are fast."""
    stage.engine.dispose()
    stage.engine = sa.create_engine(stage.engine.url, json_serializer=msgspec.json.encode, json_deserializer=msgspec.json.decode)
    stage.copy.dialect._json_serializer = msgspec.json.encode
    metadata = sa.MetaData()
    table = sa.Table("documents", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("doc", sa.JSON))
    stage.create(metadata)
    stage.hook(old_values="always")
    with stage.engine.begin() as connection:
        connection.execute(table.insert(), [{"id": 1, "doc": {"a": "é"}}, {"id": 2, "doc": sa.JSON.NULL}])
        connection.execute(table.update().where(table.c.id == 1).values(doc=[1, None]))
        connection.execute(table.update().values(doc={"b": 2}))
    assert [event.after["doc"] for event in stage.check(metadata)] == [{"a": "é"}, sa.JSON.NULL, [1, None], {"b": 2}, {"b": 2}]
    stage.engine.dispose()


class Tags(sa.TypeDecorator[list[str]]):
    impl = postgresql.ARRAY(sa.String).with_variant(sa.JSON(), "sqlite")
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        return None if value is None else sorted(value)


class Id(sa.TypeDecorator[uuid.UUID]):
    impl = sa.Uuid().with_variant(sa.String(36), "sqlite")
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        return str(value) if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        return uuid.UUID(value) if dialect.name == "sqlite" else value


def test_a_decorator_of_a_type_with_variants(stage: Stage) -> None:
    """The event has what that of the database is given."""
    metadata = sa.MetaData()
    table = sa.Table("varying", metadata, sa.Column("id", Id, primary_key=True), sa.Column("tags", Tags))
    stage.create(metadata)
    stage.hook(old_values="always")
    first, second = uuid.UUID(int=1), uuid.UUID(int=2)
    with stage.engine.begin() as connection:
        connection.execute(table.insert(), {"id": first, "tags": ["b", "a"]})
        connection.execute(table.insert().values([{"id": second, "tags": []}]))
        connection.execute(table.update().where(table.c.id == sa.bindparam("k")), {"k": first, "tags": ["d", "c"]})
        connection.execute(table.delete().where(table.c.id == second))
    events = stage.check(metadata)
    assert [event.key for event in events] == [str(first), str(second), str(first), str(second)]
    assert [event.after["tags"] for event in events[:3]] == [["a", "b"], [], ["c", "d"]]


def test_values_of_several_types_in_one_column(stage: Stage) -> None:
    """Of keys by which rows are read beside a statement: an upsert, and a DELETE that foreign keys follow."""
    metadata = sa.MetaData()
    table = sa.Table(
        "mixed", metadata, sa.Column("a key", sa.Numeric(10, 2), primary_key=True, autoincrement=False, key="a\tkey"), sa.Column("x", sa.Integer)
    )
    key = table.c["a\tkey"]
    owned = sa.Table("owned", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("of", sa.ForeignKey(key, ondelete="CASCADE")))
    stage.create(metadata)
    stage.hook(old_values="always")
    insert = (sqlite if stage.engine.dialect.name == "sqlite" else postgresql).insert(table)
    upsert = insert.on_conflict_do_update(index_elements=[key], set_={"x": insert.excluded.x})
    with stage.engine.begin() as connection:
        connection.execute(upsert, [{"a\tkey": 4, "x": 1}, {"a\tkey": Decimal("1.5"), "x": 2}])
        connection.execute(upsert, [{"a\tkey": 4, "x": 3}, {"a\tkey": Decimal("1.5"), "x": 4}])
        connection.execute(owned.insert(), [{"id": 1, "of": 4}, {"id": 2, "of": Decimal("1.5")}])
        connection.execute(table.delete().where(key == sa.bindparam("k")), [{"k": 4}, {"k": Decimal("1.5")}])
    told = [(event.entity, event.operation) for event in stage.check(metadata)]
    assert sorted(told) == sorted(
        [("mixed", "create")] * 2 + [("mixed", "update")] * 2 + [("owned", "create")] * 2 + [("owned", "delete")] * 2 + [("mixed", "delete")] * 2
    )


def test_replaying_a_column_that_is_called_as_a_parameter(stage: Stage) -> None:
    """JSON null among its values."""
    metadata = sa.MetaData()
    table = sa.Table("parameters", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("param_1", sa.JSON))
    stage.create(metadata)
    stage.hook()
    with stage.engine.begin() as connection:
        connection.execute(table.insert(), {"id": 1, "param_1": sa.JSON.NULL})
        connection.execute(table.update().values(param_1={}))
        connection.execute(table.update().values(param_1=sa.JSON.NULL))
    assert [event.after["param_1"] for event in stage.check(metadata)] == [sa.JSON.NULL, {}, sa.JSON.NULL]


def test_members_that_are_numbers(stage: Stage) -> None:
    """They are read as such, not as members of a class that the column does not know."""
    table = sa.Table("members", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", sa.Integer))
    table.create(stage.engine)
    stage.hook()
    with stage.engine.begin() as connection:
        connection.execute(table.insert(), {"id": 1, "n": Number.X})
        connection.execute(table.update().where(table.c.id == 1).values(n=True))
    assert [(event.key, event.after["n"]) for event in stage.events()] == [("1", 7), ("1", 1)]
    assert [type(event.after["n"]) for event in stage.events()] == [int, int]


def test_composite_keys_in_time_zones(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement that writes its own events knows the same keys, in whatever time zone its session is."""
    from sqla_events.capture import within

    monkeypatch.setattr(within, "FEW", 0)
    engine = sa.create_engine(postgres_url)
    table = sa.Table(
        "readings", sa.MetaData(), sa.Column("sensor", sa.Integer, primary_key=True), sa.Column("at", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("n", sa.Integer),
    )  # fmt: skip
    table.create(engine)
    stage = Stage(engine, engine)
    stage.hook()
    with engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL TimeZone = 'Asia/Kolkata'")
        connection.execute(table.insert(), {"sensor": 1, "at": SUMMER, "n": 1})
        connection.execute(table.update().values(n=2))
        connection.execute(table.delete())
    assert {event.key for event in stage.events()} == {'[1,"2026-07-01T10:00:00+00:00"]'}
    assert len(stage.events()) == 3
    stage.broker.uninstall()
    engine.dispose()

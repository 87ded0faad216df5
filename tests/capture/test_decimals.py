"""A Decimal has one text, whoever writes the event: the application, a statement on PostgreSQL itself, a trigger."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from sqla_events import Event, EventFilter, install_crud_hooks, triggers
from sqla_events.capture import within
from tests.capture.conftest import Stage

metadata = sa.MetaData()
sums = sa.Table(
    "sums", metadata, sa.Column("amount", sa.Numeric, primary_key=True, autoincrement=False), sa.Column("x", sa.Numeric), sa.Column("n", sa.Integer),
)  # fmt: skip
pairs = sa.Table(
    "pairs", metadata, sa.Column("a", sa.Numeric(12, 4), primary_key=True, autoincrement=False),
    sa.Column("b", sa.Integer, primary_key=True, autoincrement=False), sa.Column("n", sa.Integer),
)  # fmt: skip

AMOUNTS: list[tuple[Any, str]] = [
    (Decimal("0.0000001"), "0.0000001"),
    (Decimal("-0.00000012"), "-0.00000012"),
    (Decimal("0E-7"), "0"),
    (Decimal("-0.00"), "0"),
    (Decimal("1E+2"), "100"),
    (Decimal("1.50"), "1.5"),
    (Decimal("-120.00"), "-120"),
    (Decimal("1E+30"), "1" + "0" * 30),
    (5, "5"),
    (0.25, "0.25"),
    (2.5, "2.5"),
]
DRIVERS = ["sqlite", "sqlite+aiosqlite", "postgresql+psycopg", "postgresql+asyncpg"]
pytestmark = pytest.mark.filterwarnings("ignore:Dialect sqlite")


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statements write their own events, of few rows, too."""
    monkeypatch.setattr(within, "FEW", 0)


@pytest.fixture
def url(request: pytest.FixtureRequest) -> sa.URL:
    base = request.getfixturevalue("sqlite_url" if request.param.startswith("sqlite") else "postgres_url")
    engine = sa.create_engine(base)
    metadata.create_all(engine)
    engine.dispose()
    return sa.make_url(base).set(drivername=request.param)


def told(url: sa.URL, write: Callable[[sa.Connection], None]) -> list[tuple[str, str, Event]]:
    """Key, text of the payload, and event of what is written."""
    if url.get_dialect().is_async:
        asyncio.run(told_async(url, write))
    plain = url.set(drivername={"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}[url.get_backend_name()])
    engine = sa.create_engine(plain)
    broker = install_crud_hooks(engine, {})
    with engine.begin() as connection:
        if not url.get_dialect().is_async:
            write(connection)
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT key, CAST(payload AS TEXT) FROM events ORDER BY seq").all()
    events = broker.list(EventFilter(limit=1000))
    broker.uninstall()
    engine.dispose()
    return [(key, text, event) for (key, text), event in zip(rows, events, strict=True)]


async def told_async(url: sa.URL, write: Callable[[sa.Connection], None]) -> None:
    engine = create_async_engine(url)
    broker = install_crud_hooks(engine, {})
    async with engine.begin() as connection:
        await connection.run_sync(write)
    broker.uninstall()
    await engine.dispose()


def every_way(connection: sa.Connection) -> None:
    for amount, _ in AMOUNTS:
        connection.execute(sums.insert(), {"amount": amount, "x": amount, "n": 0})
        connection.execute(sums.update().where(sums.c.amount == sa.bindparam("old")), {"old": amount, "x": amount, "n": 1})
        connection.execute(sums.update().values(n=2))
        connection.execute(sums.update().values(n=3, x=sums.c.x * 1).returning(sums.c.n)).all()
        connection.execute(sums.delete())


@pytest.mark.parametrize("url", DRIVERS, indirect=True)
def test_one_text_for_a_key(url: sa.URL) -> None:
    """Equal numbers are one key, as they are in the database."""
    found = told(url, every_way)
    assert [key for key, _, _ in found] == [text for _, text in AMOUNTS for _ in range(5)]


@pytest.mark.parametrize("url", DRIVERS, indirect=True)
def test_values_in_plain_notation(url: sa.URL) -> None:
    """And equal to what was written."""
    found = told(url, every_way)
    assert not [text for _, text, _ in found if "E" in text]
    for number, (_, _, event) in enumerate(found):
        written = Decimal(str(AMOUNTS[number // 5][0]))
        values = [value for side in ("key", "before", "after") for name, value in (event.payload.get(side) or {}).items() if name != "n"]
        exact = url.get_backend_name() != "sqlite"
        assert [type(value) for value in values] == [Decimal] * (len(values) or 1)
        assert {value if exact else float(value) for value in values} == {written if exact else float(written)}


@pytest.mark.parametrize("url", DRIVERS, indirect=True)
def test_a_key_of_several_columns(url: sa.URL) -> None:
    """As one column's."""

    def write(connection: sa.Connection) -> None:
        connection.execute(pairs.insert(), {"a": Decimal("1E+2"), "b": 1, "n": 0})
        connection.execute(pairs.update().values(n=2))
        connection.execute(pairs.delete().returning(pairs.c.n)).all()

    assert [key for key, _, _ in told(url, write)] == ['["100",1]'] * 3


def test_as_triggers_have_it(stage: Stage) -> None:
    """Letter by letter in the key; on PostgreSQL in values, too, where the column keeps what it is given."""
    metadata.create_all(stage.engine)
    with stage.engine.begin() as connection:
        triggers.create(connection, sums)
        triggers.create(connection, pairs)
    stage.hook(on_gap="ignore")
    for amount, text in AMOUNTS:
        number = format(Decimal(str(amount)), "f")
        with stage.engine.begin() as connection:
            connection.execute(sums.insert(), {"amount": amount, "x": amount, "n": 0})
            connection.execute(pairs.insert(), {"a": 100, "b": 1, "n": 0})
            connection.exec_driver_sql("DELETE FROM sums")
            connection.exec_driver_sql("DELETE FROM pairs")
            connection.exec_driver_sql(f"INSERT INTO sums (amount, x, n) VALUES ({number}, {number}, 0)")
        with stage.engine.begin() as connection:
            connection.execute(sums.delete())
            found = connection.exec_driver_sql("SELECT key, CAST(payload AS TEXT) FROM events WHERE entity = 'sums' ORDER BY seq").all()
            assert [key for key, _ in found] == [text] * 4
            if stage.engine.dialect.name == "postgresql" and number != "-0.00":
                assert len({payload.replace('"before"', '"after"') for _, payload in found}) == 1
            found = connection.exec_driver_sql("SELECT key FROM events WHERE entity = 'pairs'").all()
            assert {key for (key,) in found} == {'["100",1]'}
            connection.exec_driver_sql("DELETE FROM events")


NUMBERS = ["1152921504606846976", "123456789.12345679", "99999999.99", "0.1", "-2.25", "1234567890123.25", "1000000000000000.5", "1e300"]


@pytest.mark.parametrize("number", NUMBERS)
def test_what_triggers_of_sqlite_say_is_the_number(sqlite_url: str, number: str) -> None:
    """As exactly as SQLite has it: in as many digits as that needs, which may be more than its usual sixteen."""
    engine = sa.create_engine(sqlite_url)
    metadata.create_all(engine)
    with engine.begin() as connection:
        triggers.create(connection, sums)
        connection.exec_driver_sql(f"INSERT INTO sums (amount, x, n) VALUES ({number}, {number}, 0)")
    broker = install_crud_hooks(engine, {})
    with engine.begin() as connection:
        connection.execute(sums.delete())
    come, gone = broker.list()
    assert float(come.after["x"]) == float(number)
    assert come.key == gone.key
    broker.uninstall()
    engine.dispose()

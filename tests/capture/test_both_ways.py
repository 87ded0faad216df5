"""PostgreSQL, with random values: events that a statement writes itself are those that Python makes of its rows, and a parameter
says what the database says.

``make capture-machine EXAMPLES=1000 ARGS=tests/capture/test_both_ways.py`` runs it for longer, with other examples each time.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
import ipaddress
import os
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import create_async_engine

from sqla_events import encoding
from sqla_events.capture import within
from sqla_events.capture.within import Writer
from tests.capture.model import Color, Shout
from tests.capture.test_within import Outcome, differing, outcome, same

LONG = "EXAMPLES" in os.environ
EXAMPLES = int(os.environ.get("EXAMPLES", "8"))
PHASES = (Phase.generate, Phase.shrink) if LONG else (Phase.generate,)
run_it = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=not LONG, database=None, phases=PHASES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)  # fmt: skip


class Odd(enum.Enum):
    plain = "p"
    quoted = "b%'\\"


class Boxed(sa.types.TypeDecorator[Any]):
    """Stored as JSON, in a box."""

    impl = postgresql.JSONB
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else {"box": value}


# Values -------------------------------------------------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
zones = st.sampled_from([dt.UTC, dt.timezone(dt.timedelta(hours=5, minutes=30)), dt.timezone(dt.timedelta(hours=-3))])
moments = st.datetimes(dt.datetime(1, 1, 5), dt.datetime(9999, 12, 25), timezones=zones)
numbers_of_json = st.floats(allow_nan=False, allow_infinity=False).map(lambda one: one + 0.0)  # jsonb has no -0.0
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | numbers_of_json | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=5,
)  # fmt: skip
decimals = st.decimals(allow_infinity=False, places=None, min_value=-(10**20), max_value=10**20) | st.just(Decimal("NaN"))

KINDS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "small": (sa.SmallInteger(), st.integers(-(2**15), 2**15 - 1)),
    "large": (sa.BigInteger(), st.integers(-(2**63), 2**63 - 1)),
    "word": (sa.CHAR(5), text.map(lambda one: one[:5])),
    'a"b%s:c': (sa.Text(), text),
    "ünï {0}": (sa.String(20), text),
    "old": (sa.Enum("a", "b%'", name="both_choice"), st.sampled_from(["a", "b%'"])),
    "new": (sa.Enum(Odd, values_callable=lambda kind: [one.value for one in kind], name="both_odd"), st.sampled_from(Odd)),
    "color": (sa.Enum(Color, native_enum=False), st.sampled_from(Color)),
    "yes": (sa.Boolean(), st.booleans()),
    "price": (sa.Numeric(), decimals),
    "cents": (sa.Numeric(8, 2), st.decimals(-99999, 99999, places=4)),
    "ratio": (sa.Float(), st.floats()),
    "single": (sa.REAL(), st.floats(width=32)),
    "day": (sa.Date(), st.dates()),
    "clock": (sa.Time(), st.times()),
    "made": (sa.DateTime(), st.datetimes()),
    "seen": (sa.DateTime(timezone=True), moments),
    "span": (sa.Interval(), st.timedeltas(dt.timedelta(-800_000), dt.timedelta(800_000))),
    "ref": (sa.Uuid(), st.uuids()),
    "blob": (sa.LargeBinary(), st.binary(max_size=8)),
    "doc": (postgresql.JSONB(), json_values | st.just(sa.null())),
    "raw": (sa.JSON(none_as_null=True), json_values | st.just(sa.JSON.NULL)),
    "loud": (Shout(), text),
    "boxed": (Boxed(), json_values),
    "secret": (sa.Text(), text),
    "hidden": (sa.Text(), text),
}
OTHERS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "numbers": (postgresql.ARRAY(sa.Integer), st.lists(st.integers(0, 9) | st.none(), max_size=3)),
    "host": (postgresql.INET(), st.sampled_from(["10.0.0.1", "10.0.0.0/8", "::1"])),
    "moment": (postgresql.TIMESTAMP(precision=0), st.datetimes(dt.datetime(1, 1, 5), dt.datetime(9999, 12, 25))),
}
"""Left to Python: the statement that shows them stays there as a whole."""

_INFO = {"secret": {"sqla_events": "redact"}, "hidden": {"sqla_events": "exclude"}}


def a_table(name: str, kinds: dict[str, Any], *keys: sa.Column[Any]) -> sa.Table:
    columns = (sa.Column(one, kind, info=_INFO.get(one, {})) for one, (kind, _) in kinds.items())
    return sa.Table(name, sa.MetaData(), *keys, *columns, sa.Column("twice", sa.Integer, sa.Computed("id * 2", persisted=True)))


TABLES = {
    "by number": a_table("both_number", KINDS, sa.Column("id", sa.Integer, primary_key=True)),
    "by pair": a_table(
        "both pair%", KINDS, sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.DateTime(timezone=True), primary_key=True),
    ),
    "by decimal": a_table(
        "both_decimal", KINDS, sa.Column("id", sa.Integer), sa.Column("d", sa.Numeric(12, 8), primary_key=True, autoincrement=False)
    ),
    "without": a_table("both_without", KINDS, sa.Column("id", sa.Integer)),
    "others": a_table("both_others", {**KINDS, **OTHERS}, sa.Column("id", sa.Integer, primary_key=True)),
}  # fmt: skip
DOMAINS = "CREATE DOMAIN word AS text; ALTER TABLE both_others ALTER loud TYPE word"


def values_of(table: sa.Table) -> dict[str, st.SearchStrategy[Any]]:
    return {name: values | st.none() for name, (_, values) in {**KINDS, **OTHERS}.items() if name in table.columns}


@st.composite
def rows(draw: Any, table: sa.Table, first: int = 1) -> list[dict[str, Any]]:
    found = []
    for number in range(first, first + draw(st.integers(1, 3))):
        row = {"id": number, **draw(st.fixed_dictionaries(values_of(table)))}
        if "at" in table.columns:
            row["at"] = draw(moments)
        if "d" in table.columns:
            row["d"] = Decimal(number) / 10 + draw(st.sampled_from([Decimal(0), Decimal("0.00000001")]))
        found.append(row)
    return found


Write = Callable[[sa.Connection], Any]


@st.composite
def statements(draw: Any, table: sa.Table) -> Write:
    """One of many ways to write the table."""
    verb = draw(st.sampled_from(["update", "update", "delete", "insert", "select"]))
    some = table.c.id <= draw(st.integers(0, 3))
    if verb == "delete":
        return lambda connection: connection.execute(table.delete().where(some))
    if verb == "insert":
        new = draw(rows(table, first=101))
        return lambda connection: connection.execute(table.insert().values(new))
    columns = [one for one in table.columns if one.computed is None]
    if verb == "select":
        moved = [one + 100 if one.name in ("id", "d") else one for one in columns]
        return lambda connection: connection.execute(table.insert().from_select(columns, sa.select(*moved).where(some)).inline())
    names = draw(st.lists(st.sampled_from(sorted(values_of(table))), min_size=1, max_size=8, unique=True))
    change = {table.c[name]: draw(st.just(table.c[name]) | values_of(table)[name]) for name in names}
    return lambda connection: connection.execute(table.update().where(some).values(change))


# Both ways ----------------------------------------------------------------------------------------------------------


class Both:
    """One connection of one driver, and two ways for a statement."""

    def __init__(self, url: str, driver: str) -> None:
        with (plain := sa.create_engine(url)).begin() as connection:
            for table in TABLES.values():
                table.metadata.create_all(connection)
            connection.exec_driver_sql(DOMAINS)
        plain.dispose()
        self.runner = asyncio.Runner() if driver == "asyncpg" else None
        target = sa.make_url(url).set(drivername=f"postgresql+{driver}")
        self.engine: Any = create_async_engine(target) if self.runner else sa.create_engine(target)
        self.connection: Any = self.runner.run(self._connected()) if self.runner else self.engine.connect()

    async def _connected(self) -> Any:
        return await self.engine.connect()

    def call(self, run: Callable[[sa.Connection], Any]) -> Any:
        return self.runner.run(self.connection.run_sync(run)) if self.runner else run(self.connection)

    def close(self) -> None:
        if self.runner:
            self.runner.run(self.connection.close())
            self.runner.run(self.engine.dispose())
            self.runner.close()
        else:
            self.connection.close()
            self.engine.dispose()

    def events(self, table: sa.Table, present: list[dict[str, Any]], write: Write, *, python: bool, **capture: Any) -> Outcome:
        def run(connection: sa.Connection) -> Outcome:
            if present:
                connection.execute(table.insert(), present)
            return outcome(connection, self.engine, write, **capture)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(within, "FEW", 0)
            if python:
                patch.setattr(Writer, "may", lambda *_: False)
            found: Outcome = self.call(run)
            return found


@pytest.fixture(params=["psycopg", "asyncpg"])
def both(postgres_url: str, request: pytest.FixtureRequest) -> Iterator[Both]:
    made = Both(postgres_url, request.param)
    yield made
    made.close()


@pytest.mark.parametrize("name", TABLES)
def test_statements_write_what_python_would(both: Both, name: str) -> None:
    """Payloads, keys, types and everything else of their events, and the number of rows that the caller is told."""
    table, seen = TABLES[name], []

    @run_it
    @given(
        present=rows(table), write=statements(table), old_values=st.sampled_from(["known", "always", "never"]),
        zone=st.sampled_from(["UTC", "Asia/Kolkata", "America/St_Johns"]), limit=st.sampled_from([None, None, 600]),
    )  # fmt: skip
    def check(present: Any, write: Write, old_values: str, zone: str, limit: int | None) -> None:
        options = {"old_values": old_values, "zone": zone, "max_payload_bytes": limit, "on_too_large": "truncate"}
        by_python, _, told = both.events(table, present, write, python=True, **options)
        by_itself, within_, same_told = both.events(table, present, write, python=False, **options)
        same(by_itself, by_python)
        assert told == same_told
        seen.append(within_)

    check()
    assert any(seen) or name != "by number"


@pytest.mark.parametrize("name", ["by number", "by decimal", "by pair", "others"])
def test_a_parameter_says_what_the_database_says(both: Both, name: str) -> None:
    """Rows that are inserted by their parameters, and by a statement whose rows come back."""
    table = TABLES[name]

    @run_it
    @given(new=rows(table))
    def check(new: Any) -> None:
        one_by_one = lambda connection: [connection.execute(table.insert(), row) for row in new][-1]  # noqa: E731
        told, _, _ = both.events(table, [], one_by_one, python=True)
        returned, _, _ = both.events(table, [], lambda connection: connection.execute(table.insert().values(new)), python=True)
        assert [one["key"] for one in told] == [one["key"] for one in returned]
        for one, other in zip(told, returned, strict=True):
            assert differing(seen(one), seen(other)) == []

    check()


def seen(event: dict[str, Any]) -> dict[str, str]:
    """The values as a consumer has them; how a time, a number or blanks are written does not matter."""
    lifted = encoding.lift({"payload": event["payload"]}, encoding.dumps({k: v for k, v in event["types"].items() if "metadata" not in k}))
    return {name: _alike(value) for name, value in lifted["payload"]["after"].items()}


def _alike(value: Any) -> str:
    if isinstance(value, dt.datetime) and value.tzinfo is not None:
        return str(value.astimezone(dt.UTC))
    if isinstance(value, Decimal) and value.is_finite():
        return format(value.normalize() + 0, "f")
    if isinstance(value, float) and value == 0:
        return "0.0"
    if isinstance(value, (dict, list, int, float)) and not isinstance(value, bool):
        return encoding.dumps(_sorted(value))
    if isinstance(value, (ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Interface)):
        value = str(value)
    return repr(value.rstrip(" ") if isinstance(value, str) else value)


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_sorted(one) for one in value]
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value

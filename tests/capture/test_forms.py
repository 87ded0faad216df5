"""The JSON of values: what their type alone tells is what the general way makes of them."""

from __future__ import annotations

import datetime as dt
import enum
import uuid
from decimal import Decimal
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql, sqlite

from sqla_events.capture.codec import TableCodec
from sqla_events.capture.column import SQL_NULL, ColumnCodec, Loaded


class Colour(enum.Enum):
    """Some member."""

    RED = "r"
    BLUE = "b"


class Doubled(sa.TypeDecorator[int]):
    """Twice as much in the database."""

    impl = sa.Integer
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: sa.Dialect) -> int | None:
        return None if value is None else 2 * value


offsets = st.integers(-23 * 60, 23 * 60).map(lambda minutes: dt.timezone(dt.timedelta(minutes=minutes)))
TYPES: list[tuple[sa.types.TypeEngine[Any], st.SearchStrategy[Any]]] = [
    (sa.Integer(), st.integers()),
    (sa.BigInteger(), st.booleans()),
    (sa.Boolean(), st.booleans()),
    (sa.String(), st.text(st.characters(exclude_categories=["Cs"]))),
    (sa.Numeric(10, 2), st.decimals(-(10**7), 10**7, places=2)),
    (sa.Numeric(), st.decimals(allow_nan=False)),
    (sa.Float(), st.floats()),
    (sa.Uuid(), st.uuids()),
    (sa.Date(), st.dates()),
    (sa.Time(), st.times()),
    (sa.DateTime(), st.datetimes()),
    (sa.DateTime(), st.datetimes(timezones=st.just(dt.UTC))),
    (sa.DateTime(timezone=True), st.datetimes(timezones=offsets)),
    (sa.LargeBinary(), st.binary()),
    (sa.Enum(Colour), st.sampled_from(Colour)),
    (sa.JSON(), st.lists(st.integers() | st.text("abc") | st.none())),
    (Doubled(), st.integers()),
]
NAMES = tuple(f"c{number}" for number in range(len(TYPES)))
DIALECTS = {"sqlite": sqlite.dialect(), "postgresql": postgresql.dialect()}

ROWS = st.fixed_dictionaries({name: strategy | st.none() for name, (_, strategy) in zip(NAMES, TYPES, strict=True)})


def codec_of(dialect: Any) -> TableCodec:
    columns = (sa.Column(name, kind) for name, (kind, _) in zip(NAMES, TYPES, strict=True))
    table = sa.Table("kinds", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), *columns)
    return TableCodec(table, dialect, ("id",), lambda _: False, lambda _: False, False)


def by_value(codec: TableCodec, values: dict[str, Any], bound: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """The general way, for each value."""
    types: dict[str, str] = {}
    shown = {}
    for key, value in values.items():
        column: ColumnCodec = codec.columns[key]
        shown[key] = codec._lowered(column, value, "after", types, bound)
    return shown, types


def as_json(codec: TableCodec, side: dict[str, Any]) -> Any:
    text = msgspec.json.encode(side)
    if codec.decimals and b"E" in text:
        payload = {"after": side}
        codec.write_out(payload)
        text = msgspec.json.encode(payload["after"])
    return text


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("bound", [True, False])
@given(values=ROWS)
def test_by_type_as_by_value(dialect: str, bound: bool, values: dict[str, Any]) -> None:
    """Whether bound or returned; the second time with what the first has found out."""
    codec = codec_of(DIALECTS[dialect])
    if not bound:
        values = {key: SQL_NULL if value is None and codec.columns[key].is_json else value for key, value in values.items()}
    for _ in range(2):
        types: dict[str, str] = {}
        given_values = values if bound else {key: Loaded(value) for key, value in values.items()}
        side = as_json(codec, codec.side(given_values, "after", types))
        expected, expected_types = by_value(codec, values, bound)
        if bound and expected["c11"]:  # of an aware time that is bound to a naive column, the encoder writes UTC as Z
            expected["c11"] = expected["c11"].replace("+00:00", "Z")
        assert msgspec.json.decode(side) == msgspec.json.decode(as_json(codec, expected))
        assert types == expected_types


def test_rows_of_other_types_have_forms_of_their_own() -> None:
    """What was found for one row is not taken for one whose values are of other types."""
    codec = codec_of(DIALECTS["sqlite"])
    for value, form in ((1, 1), (uuid.UUID(int=1), str(uuid.UUID(int=1))), (Decimal("1.5"), "1.5"), (True, True), (None, None)):
        assert codec.side({"c0": Loaded(value)}, "after", {}) == {"c0": form}
        assert msgspec.json.decode(msgspec.json.encode(codec.side({"c0": value}, "after", {}))) == {"c0": form}


def test_hidden_and_redacted_columns() -> None:
    """Neither is shown of rows that the database has returned."""
    table = sa.Table("people", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String),
                     sa.Column("pin", sa.Integer), sa.Column("ssn", sa.String))  # fmt: skip
    codec = TableCodec(table, DIALECTS["sqlite"], ("id",), lambda column: column.name == "pin", lambda column: column.name == "ssn", False)
    row = {"id": 1, "name": "Ada", "pin": 4711, "ssn": "078"}
    for _ in range(2):
        assert codec.side({key: Loaded(value) for key, value in row.items()}, "after", {}) == {"id": 1, "name": "Ada", "ssn": "[redacted]"}
        assert codec.side(row, "after", {}) == {"id": 1, "name": "Ada", "ssn": "[redacted]"}

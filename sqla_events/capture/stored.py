"""What a database stores of a value that is near its column's type, and what it makes of one in a key.

Drivers and databases take more than the type says: a member of an enumeration that is a string or a number, a datetime for
a date, a number with more decimal places than the column has. An event says what is stored then, whether a parameter told it or
the database; and one row has one key, whoever writes it: the events of a row keep their order by that.

Where only the database knows, as of a TIMESTAMP(0), it is asked (``narrows``).
"""

from __future__ import annotations

import datetime as dt
import math
import operator
import re
import uuid
import zoneinfo
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection, Dialect

from .. import encoding

Form = Callable[[Any], Any]


def narrows(kind: Any, dialect: Dialect) -> bool:
    """Whether the database keeps less of a value than it is given, or writes it in another way, and only itself knows what."""
    if dialect.name != "postgresql":
        return False
    if isinstance(kind, (sa.ARRAY, postgresql.DOMAIN)):
        return _narrows_inside(kind.item_type if isinstance(kind, sa.ARRAY) else kind.data_type, dialect)
    if isinstance(kind, sa.Interval):
        return kind.second_precision is not None
    if isinstance(kind, (postgresql.TIMESTAMP, postgresql.TIME, postgresql.INTERVAL)):
        return kind.precision is not None or getattr(kind, "fields", None) is not None
    if isinstance(kind, sa.Numeric) and not isinstance(kind, sa.Float):
        return not kind.asdecimal and kind.precision is not None
    single = isinstance(kind, sa.REAL) or (isinstance(kind, sa.Float) and kind.precision is not None and kind.precision <= SINGLE)
    return single or isinstance(kind, _CANONICAL)


def _narrows_inside(kind: Any, dialect: Dialect) -> bool:
    """The same of a type within another, where no decimal is rounded."""
    while isinstance(kind, sa.types.TypeDecorator) and not isinstance(kind, sa.Interval):
        kind = kind.impl_instance
    places = isinstance(kind, sa.Numeric) and not isinstance(kind, sa.Float) and kind.precision is not None
    return places or narrows(kind, dialect)


def replaces_null(column: sa.Column[Any], dialect: Dialect) -> bool:
    """Whether the database puts the default in the place of a NULL: SQLite's NOT NULL ON CONFLICT REPLACE."""
    said = column.dialect_options["sqlite"]["on_conflict_not_null"] if dialect.name == "sqlite" else None
    return str(said or "").upper() == "REPLACE"


def set_by_triggers(column: sa.Column[Any], dialect: Dialect) -> bool:
    """Whether the metadata says that the database sets a column, and no more: it may do so whatever is given."""
    said = (type(column.server_default), type(column.server_onupdate))
    return dialect.name == "postgresql" and sa.FetchedValue in said


def is_spelled(kind: Any, dialect: Dialect) -> bool:
    """Whether the database takes values for equal that are written in several ways, and keeps the way: ``Ann`` and ``ANN``."""
    if isinstance(kind, sa.String) and kind.collation is not None:
        return kind.collation.upper() not in ("BINARY", "C", "POSIX")
    spelled = (*_SPELLED, postgresql.ranges.AbstractRange, postgresql.ranges.AbstractMultiRange, sa.ARRAY)
    return dialect.name == "postgresql" and isinstance(kind, spelled)


_SPELLED = (postgresql.CITEXT, postgresql.INET, postgresql.CIDR, postgresql.MACADDR, postgresql.MACADDR8, postgresql.JSONB)

SINGLE = 24
"""Binary digits up to which PostgreSQL's FLOAT is a REAL."""

_CANONICAL = (
    postgresql.INT4RANGE, postgresql.INT8RANGE, postgresql.DATERANGE, postgresql.ranges.AbstractMultiRange,
    postgresql.TSVECTOR, postgresql.TSQUERY, postgresql.JSONPATH,
)  # fmt: skip


# Decimals -----------------------------------------------------------------------------------------------------------

_EXACT = Context(prec=2000)

SMALL = 6
"""Decimal places to which Python writes all of a number."""


class Rounder:
    """A decimal as a column of so many places has it. On SQLite such a column holds floats."""

    def __init__(self, scale: int, dialect: Dialect) -> None:
        self._scale = scale
        self.exponents = not 0 <= scale <= SMALL
        """Python writes some of its values with an exponent."""
        self.quantum = Decimal(1).scaleb(-scale)
        self._round = self._by_float if dialect.name == "sqlite" else self._by_digits

    def __call__(self, value: Decimal) -> Decimal:
        """The value with so many places; infinite ones and none as they are."""
        return value if value.same_quantum(self.quantum) or not value.is_finite() else self._round(value)

    def _by_digits(self, value: Decimal) -> Decimal:
        try:
            found = value.quantize(self.quantum, ROUND_HALF_UP, _EXACT)
            return found or found.copy_abs()  # there is no other zero in a database
        except InvalidOperation:  # beyond what any column holds
            return value

    def _by_float(self, value: Decimal) -> Decimal:
        return Decimal(f"{float(value):.{self._scale}f}")


def rounder(kind: Any, dialect: Dialect) -> Rounder | None:
    """Of a column with a fixed number of decimal places."""
    if not isinstance(kind, sa.Numeric) or isinstance(kind, sa.Float):
        return None
    if dialect.name == "sqlite":
        return Rounder(kind._effective_decimal_return_scale, dialect)
    return None if kind.precision is None else Rounder(kind.scale or 0, dialect)


# Near values --------------------------------------------------------------------------------------------------------


def near(kind: Any, expected: type | None, dialect: Dialect) -> Form:
    """What is stored of a value that is not exactly of the expected type: one of that type, or the value itself."""
    if isinstance(kind, (sa.Float, sa.Numeric)) and expected is not Decimal:
        return _near_float_sqlite if dialect.name == "sqlite" else _near_float
    if expected in (int, str) and dialect.name == "sqlite":
        return _near_int_sqlite if expected is int else _near_text_sqlite
    if expected is Decimal and dialect.driver == "asyncpg":
        return _near_decimal_exactly
    if expected is dt.datetime and getattr(kind, "timezone", False) and dialect.name != "sqlite":
        return _itself  # a day has another beginning in each time zone
    return _near_range if isinstance(kind, postgresql.ranges.AbstractRange) else _NEAR.get(expected, _itself)


def _itself(value: Any) -> Any:
    return value


def _near_text(value: Any) -> Any:
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if type(value) in (int, uuid.UUID, dt.date):
        return str(value)
    return encoding.decimal_text(value) if isinstance(value, Decimal) else value


def _near_text_sqlite(value: Any) -> Any:
    return str(int(value)) if isinstance(value, bool) else _near_text(value)


def _near_int(value: Any) -> Any:
    """PostgreSQL rounds doubles to even, and numerics away from zero."""
    if isinstance(value, float):
        return round(value) if math.isfinite(value) else value
    if isinstance(value, Decimal) and value.is_finite():
        return int(value.quantize(Decimal(1), ROUND_HALF_UP, _EXACT))
    return _near_index(value)


def _near_int_sqlite(value: Any) -> Any:
    if isinstance(value, str):
        return _number(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    return _near_index(value)


def _near_index(value: Any) -> Any:
    if isinstance(value, str):
        return _read(int, value)
    return int(operator.index(value)) if hasattr(value, "__index__") else value


def _number(text: str) -> Any:
    """What SQLite makes of text in a column of numbers."""
    if not _NUMBER.fullmatch(text):
        return str.__str__(text)
    number = float(text)
    if not number.is_integer() or len(text) > MOST_DIGITS:
        return number
    whole = int(number) if _FRACTION.search(text) else int(text)
    return whole if -(2**63) <= whole < 2**63 else number


_NUMBER = re.compile(r"[ \t-\r]*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?[ \t-\r]*")
_FRACTION = re.compile("[.eE]")

MOST_DIGITS = 1000
"""Of a number that is looked at closely: Python refuses to read some thousands."""


def _near_bool(value: Any) -> Any:
    return bool(value) if isinstance(value, int) else value


def _near_float(value: Any) -> Any:
    if isinstance(value, str):
        return _read(float, value)
    return float(value) if hasattr(value, "__float__") else value


def _read(parse: Callable[[str], Any], text: str) -> Any:
    """The value that a text is; the text where only the database can read it."""
    try:
        return parse(text)
    except (ValueError, InvalidOperation):
        return text


def _near_float_sqlite(value: Any) -> Any:
    """Which has no NaN."""
    found = _near_float(_number(value) if isinstance(value, str) else value)
    return None if isinstance(found, float) and math.isnan(found) else found


def _near_decimal(value: Any) -> Any:
    """A double in a numeric has the 15 digits that are sure."""
    return Decimal(f"{float(value):.15g}") if isinstance(value, float) else _near_number(value)


def _near_decimal_exactly(value: Any) -> Any:
    return Decimal(float(value)) if isinstance(value, float) else _near_number(value)


def _near_number(value: Any) -> Any:
    if isinstance(value, Decimal):
        return Decimal(value)
    if isinstance(value, str):
        return _read(Decimal, value)
    return Decimal(operator.index(value)) if hasattr(value, "__index__") else value


def _near_date(value: Any) -> Any:
    if isinstance(value, str):
        return _read(_date, value)
    return value.date() if isinstance(value, dt.datetime) and value.tzinfo is None else value


def _date(text: str) -> dt.date:
    return dt.datetime.strptime(text, "%Y-%m-%d").date()  # noqa: DTZ007 - a day has no zone


def _near_datetime(value: Any) -> Any:
    return dt.datetime(value.year, value.month, value.day) if type(value) is dt.date else value  # noqa: DTZ001 - as it is stored


def _near_uuid(value: Any) -> Any:
    return _read(uuid.UUID, value) if isinstance(value, str) else value


def _near_range(value: Any) -> Any:
    """All ranges without anything in them are one."""
    if not isinstance(value, postgresql.Range) or value.lower is None or value.lower != value.upper or value.bounds == "[]":
        return value
    return postgresql.Range(empty=True)


_NEAR: dict[type | None, Form] = {
    str: _near_text,
    int: _near_int,
    bool: _near_bool,
    Decimal: _near_decimal,
    dt.date: _near_date,
    dt.datetime: _near_datetime,
    uuid.UUID: _near_uuid,
}


# Keys ---------------------------------------------------------------------------------------------------------------


def in_key(kind: Any, dialect: Dialect) -> Form | None:
    """What a value is in the text of a key; None: what it is elsewhere."""
    postgres = dialect.name == "postgresql"
    if isinstance(kind, (sa.CHAR, sa.NCHAR)) and kind.length and postgres:
        length = kind.length
        return lambda value: value.ljust(length) if isinstance(value, str) else value
    if isinstance(kind, sa.Uuid) and not kind.as_uuid:
        return lambda value: str(_near_uuid(value))
    if isinstance(kind, (sa.DateTime, sa.Time)):
        return _utc if postgres else _naive
    return None


def _utc(value: Any) -> Any:
    """One moment has as many texts as there are offsets."""
    if not isinstance(value, dt.datetime) or value.tzinfo is None:
        return value
    try:
        return value.astimezone(dt.UTC)
    except OverflowError:  # the last hours of Python's time
        return value


def _naive(value: Any) -> Any:
    """SQLite keeps no offset."""
    return value.replace(tzinfo=None) if isinstance(value, (dt.datetime, dt.time)) else value


def is_moment(kind: Any, dialect: Dialect) -> bool:
    """Whether a column has moments, also where a time without a zone is bound: a ``timestamptz``."""
    return dialect.name == "postgresql" and isinstance(kind, sa.DateTime) and kind.timezone


def moment(value: dt.datetime, connection: Connection) -> dt.datetime:
    """Which one such a time is: asyncpg takes it for one of this process, PostgreSQL for one of the session's zone."""
    info = getattr(connection.connection.driver_connection, "info", None)
    try:
        if connection.dialect.driver == "asyncpg":
            return value.astimezone()
        zone = zoneinfo.ZoneInfo("" if info is None else info.parameter_status("TimeZone"))
    except (ValueError, OverflowError, OSError, zoneinfo.ZoneInfoNotFoundError):  # a year that is none, '<+03>-03'
        return value
    times = [value.replace(tzinfo=zone, fold=fold) for fold in (0, 1)]
    return max(times, key=dt.datetime.timestamp)  # as PostgreSQL takes a time that is there twice, or is left out

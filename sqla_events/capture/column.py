"""Values of one column as JSON.

A value stands in an event at the level of its column's SQL type: what a TypeDecorator hands to its implementation, not
what the application sees. So an encrypted column's event holds ciphertext, and every value has a JSON form. What comes
back from the driver (RETURNING) is brought to the same level by the implementation type's result processor.
"""

from __future__ import annotations

import datetime as dt
import enum
import json
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.types import PickleType, TypeDecorator, TypeEngine

from .. import encoding
from .stored import in_key, narrows, near, replaces_null, rounder, set_by_triggers

REDACTED = "[redacted]"

Form = Callable[[Any], Any]

_EXACT: dict[type, tuple[str | None, Form | None]] = {
    str: (None, None),
    int: (None, None),
    bool: (None, None),
    Decimal: ("decimal", encoding.decimal_text),
    uuid.UUID: ("uuid", str),
    dt.date: ("date", dt.date.isoformat),
    dt.time: ("time", dt.time.isoformat),
    dt.datetime: ("datetime", dt.datetime.isoformat),
    dt.timedelta: ("timedelta", encoding.duration),
    bytes: ("bytes", encoding.base64_text),
}


_AS_IS = frozenset({str, int, bool, Decimal, uuid.UUID, dt.date, dt.time, dt.datetime, dt.timedelta, bytes})

_LOADED_AS_IS = _AS_IS - {Decimal, dt.time, dt.datetime}
"""A column that is declared without a time zone may have one in the database, and the encoder writes UTC as Z."""


class _Nothing:
    pass


class ColumnCodec:
    """One column: its usual Python type with a constant form and code, and the general way for everything else."""

    def __init__(self, column: sa.Column[Any], dialect: Dialect) -> None:
        self.name = str(column.name)  # not SQLAlchemy's quoted_name
        self.column = column
        self.bind, kind = _binder(column.type, dialect)
        self.kind = kind
        self.is_json = isinstance(kind, sa.JSON)
        self.dumps: Callable[[Any], str | bytes] = getattr(dialect, "_json_serializer", None) or json.dumps
        self.as_text = self.is_json and dialect.name == "postgresql"
        """What comes back from the database is asked for as text: drivers make None of a JSON null and of NULL."""
        self._impl = kind.dialect_impl(dialect)
        self._dialect = dialect
        self._loaders: dict[Any, Form] = {}
        self.enum = kind.enum_class if isinstance(kind, sa.Enum) else None
        self.members = isinstance(kind, sa.ARRAY) and isinstance(kind.item_type, sa.Enum) and kind.item_type.enum_class is not None
        """It has arrays of an enum's members, of whatever makes enums."""
        self.rounder = rounder(kind, dialect)
        self.expected, self.code, self.form = self._usual()
        self.near = near(kind, self.expected, dialect)
        self.in_key = in_key(kind, dialect)
        self.narrows = narrows(kind, dialect) or replaces_null(column, dialect) or set_by_triggers(column, dialect)
        """Only the database knows what it stores of a value."""
        exact = self.expected in _AS_IS and not getattr(kind, "timezone", False)  # the encoder rounds offsets to minutes
        self.plain = self.expected if self.bind is None and exact else _Nothing
        """Values of exactly this type (UUIDs of any) go into the JSON as they are: the encoder's form is ours."""
        loaded = self.expected is Decimal is self.plain or self.expected in _LOADED_AS_IS
        self.plain_loaded = self.expected if loaded else _Nothing
        """The same of what the database has returned."""
        self.none = self.bind is None and not self.is_json
        """None is NULL, and null."""
        natural = self.expected in (str, int) and self.enum is None and not isinstance(kind, sa.Enum)
        self.plain_key = self.bind is None and natural and self.in_key is None
        """Text and whole numbers are their own text in a key."""
        self.null = None if self.none else Loaded(SQL_NULL if self.is_json else None)
        self.redacted = False
        self.keyed = _one_number(self, dialect) if self.code == "decimal" else None
        """What makes one text of equal values, for the text of a key."""

    def form_of(self, value: Any, bound: bool) -> Form | None:
        """What makes JSON of every value that is of this one's type, and bound like it or returned; None if that is not all.

        UUIDs of whatever class go in as they are: asyncpg has one of its own.
        """
        if value is None:
            return as_it_is if (self.none if bound else not self.is_json) else None
        kind, plain = type(value), self.plain if bound else self.plain_loaded
        if kind is plain or (plain is uuid.UUID and isinstance(value, uuid.UUID)):
            return as_it_is
        changed = bound and (self.bind is not None or kind is Decimal)
        return None if kind is not self.expected or changed or self.redacted else self.form

    def redact(self) -> None:
        """Let no value of this column out."""
        self.redacted, self.plain, self.plain_loaded = True, _Nothing, _Nothing

    def _usual(self) -> tuple[type | None, str | None, Form | None]:
        if self.enum is not None:
            return self.enum, encoding.enum_code(self.enum), lambda member: member.name
        if self.is_json:
            return None, None, None
        try:
            expected = self.kind.python_type
        except NotImplementedError:
            return None, None, None
        code, form = _EXACT.get(expected, (None, None))
        return (expected, code, form) if expected in _EXACT else (None, None, None)

    def lower(self, value: Any, pointer: str, types: encoding.Types) -> Any:
        """The JSON form of a value at the level of the SQL type; ``types`` gets its code unless it is the usual one."""
        if self.is_json:
            return self._json(value, pointer, types)
        if value is None:
            return None
        if type(value) is self.expected:
            return value if self.form is None else self.form(value)
        return self._unusual(value, pointer, types)

    def _unusual(self, value: Any, pointer: str, types: encoding.Types) -> Any:
        if self.enum is not None and isinstance(value, str):
            member = self.kind._object_value_for_elem(value)  # type: ignore[attr-defined]
            return member.name if isinstance(member, enum.Enum) else value
        if self.expected is Decimal and isinstance(value, (int, float)) and not isinstance(value, bool):
            return encoding.decimal_text(Decimal(value if isinstance(value, int) else float.__repr__(value)))
        if self.expected is bytes and isinstance(value, (bytearray, memoryview)):
            return encoding.base64_text(value)
        found: encoding.Types = {}
        lowered = encoding.lower(_named(value) if self.members else value, pointer, found)
        if self.code is not None and not found:
            found[pointer] = ""  # natural here, although the column's constant code says otherwise
        if found != {pointer: self.code}:  # of a subclass, as asyncpg's UUIDs are, the constant code says it
            types.update(found)
        return lowered

    def stored(self, value: Any) -> Any:
        """What the database stores of a value that is bound."""
        return self.settled(value if self.bind is None else self.bind(value))

    def settled(self, value: Any) -> Any:
        """The same of a value at the level of the SQL type."""
        if type(value) is not self.expected:
            value = self.near(value)
        return self.rounder(value) if self.rounder is not None and type(value) is Decimal else value

    def _json(self, value: Any, pointer: str, types: encoding.Types) -> Any:
        if value is sa.JSON.NULL or (value is None and not getattr(self.kind, "none_as_null", False)):
            types[pointer] = "jsonnull"
            return None
        if value is None or isinstance(value, sa.sql.elements.Null):  # a parameter that JSON takes for NULL
            return None
        text = str(value) if type(value) is JsonText else self.dumps(value)
        return _strict(text if isinstance(text, str) else text.decode(), pointer, types)

    def unbinder(self) -> Form | None:
        """What makes of a parameter, as the driver gets it, the value that the database stores; None if nothing does.

        A TypeDecorator may bind each time another value (a ciphertext): it must not be asked twice.
        """
        if self.bind is None or self.is_json:
            return None
        if self._impl.bind_processor(self._dialect) is None:
            return self.settled
        if self._dialect.name != "sqlite":
            return None
        load = self.loader(None)
        return lambda raw: self.settled(load(raw))

    def loader(self, code: Any) -> Form:
        """What brings a value that the driver returned with this type code to the level of the SQL type."""
        try:
            return self._loaders[code]
        except KeyError:
            loader = self._loaders[code] = self._loader(self._impl.result_processor(self._dialect, code))
            return loader

    def _loader(self, load: Form | None) -> Form:
        null = SQL_NULL if self.is_json else None
        if self.as_text:
            return _json_text
        if load is None and self._dialect.name == "sqlite":  # whose RETURNING may tell 2 of a stored 2.0, and 2.0 of a stored 2
            if isinstance(self.kind, sa.Float):
                return lambda raw: float(raw) if type(raw) is int else raw
            if isinstance(self.kind, sa.Integer) and any(map(_is_float, self.column.table.columns)):
                return lambda raw: int(raw) if type(raw) is float and raw.is_integer() else raw
        if load is None:
            return as_it_is if null is None else lambda raw: null if raw is None else raw
        if self.is_json:
            return lambda raw: SQL_NULL if raw is None else sa.JSON.NULL if (value := load(raw)) is None else value
        return lambda raw: None if raw is None else load(raw)


def _named(value: Any) -> Any:
    """Members of an enum that is not one of Python's own (aenum's) by their names."""
    if isinstance(value, (list, tuple)):
        return [_named(one) for one in value]
    return value if isinstance(value, enum.Enum) else getattr(value, "name", value)


def _is_float(column: sa.Column[Any]) -> bool:
    return isinstance(getattr(column.type, "impl", column.type), sa.Float)


def _one_number(codec: ColumnCodec, dialect: Dialect) -> Callable[[str], str]:
    """Equal numbers have one text, with as many digits as they need.

    SQLite has a double, of which SQLAlchemy makes a Decimal with as many places as the column has.
    """
    if dialect.name != "sqlite":
        return shortest

    def double(text: str) -> str:
        try:
            number = round(float(text), decimal_places(codec))
        except ValueError:  # no number, but what stands for a value without a form
            return text
        whole = number.is_integer() and abs(number) < 2**63  # which SQLite stores as one
        return shortest(encoding.decimal_text(Decimal(int(number) if whole else repr(number))))

    return double


def decimal_places(codec: ColumnCodec) -> int:
    """How many of them SQLAlchemy makes out of a double."""
    return int(getattr(codec.kind, "_effective_decimal_return_scale", 10))


def shortest(number: str) -> str:
    """A decimal number as text, without what does not change it."""
    text = number.rstrip("0").rstrip(".") if "." in number else number
    return "0" if text == "-0" else text


_SUSPICIOUS = re.compile(r"NaN|Infinity|\\u[dD]|[eE][+-]?\d{3}|\d{200}")


def _strict(text: str, pointer: str, types: encoding.Types) -> Any:
    """The text itself, unless no reader takes it: what the serializer makes of NaN, numbers beyond a float, half a character."""
    if _SUSPICIOUS.search(text):
        try:
            msgspec.json.decode(text)
        except msgspec.DecodeError:
            return encoding.lower(json.loads(text), pointer, types)
    return msgspec.Raw(text.encode())


class Loaded(msgspec.Struct, eq=False, gc=False):
    """A value that came from the database: at the level of the SQL type already, where others are as the caller gave them."""

    value: Any


def load_rows(keys: Sequence[str], loads: Sequence[Form], rows: Iterable[Sequence[Any]]) -> Iterator[dict[str, Loaded]]:
    """Rows of the driver by column key, each value brought to the level of its SQL type."""
    needed = [(place, load) for place, load in enumerate(loads) if load is not as_it_is]
    for row in rows:
        values = [*row]
        for place, load in needed:
            values[place] = load(values[place])
        yield dict(zip(keys, map(Loaded, values), strict=True))


def as_it_is(value: Any) -> Any:
    """A value that the driver returns at the level of its SQL type."""
    return value


class JsonText(str):
    """A JSON value as the text that the database has."""

    __slots__ = ()


def _json_text(raw: str | None) -> Any:
    if raw is None:
        return SQL_NULL
    return sa.JSON.NULL if raw.strip() == "null" else JsonText(raw)


class _SqlNull:
    pass


SQL_NULL = _SqlNull()
"""NULL in a JSON column, where None would mean a JSON null."""


def _binder(kind: TypeEngine[Any], dialect: Dialect) -> tuple[Form | None, TypeEngine[Any]]:
    """What brings a bound value to the level of the SQL type, and that type."""
    steps: list[Form] = []
    kind = _of_dialect(kind, dialect)
    while isinstance(kind, TypeDecorator):
        if isinstance(kind, PickleType):
            return _chain([*steps, _pickled(kind)]), sa.LargeBinary()
        if isinstance(kind, sa.Interval):
            return _chain(steps), sa.Interval(kind.native, kind.second_precision, kind.day_precision)
        if type(kind).process_bind_param is not TypeDecorator.process_bind_param:
            steps.append(_processed(kind, dialect))
        own = type(kind).load_dialect_impl is not TypeDecorator.load_dialect_impl
        kind = _of_dialect(kind.load_dialect_impl(dialect) if own else kind.impl_instance, dialect)
    return _chain(steps), kind


def _of_dialect(kind: TypeEngine[Any], dialect: Dialect) -> TypeEngine[Any]:
    return kind._variant_mapping.get(dialect.name, kind)


def _pickled(kind: PickleType) -> Form:
    return lambda value: None if value is None else kind.pickler.dumps(value, kind.protocol)


def _processed(kind: TypeDecorator[Any], dialect: Dialect) -> Form:
    return lambda value: kind.process_bind_param(value, dialect)


def _chain(steps: list[Form]) -> Form | None:
    if not steps:
        return None
    if len(steps) == 1:
        return steps[0]

    def run(value: Any) -> Any:
        for step in steps:
            value = step(value)
        return value

    return run

"""Values of one table's columns as JSON, and the JSON of an event's payload.

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
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.types import PickleType, TypeDecorator, TypeEngine

from .. import encoding
from ..errors import CaptureError, ConfigError, EventError
from .kept import ByIdentity

REDACTED = "[redacted]"
UNENCODABLE = "[unencodable]"

MAX_KINDS = 1000

Form = Callable[[Any], Any]

_EXACT: dict[type, tuple[str | None, Form | None]] = {
    str: (None, None),
    int: (None, None),
    bool: (None, None),
    Decimal: ("decimal", str),
    uuid.UUID: ("uuid", str),
    dt.date: ("date", dt.date.isoformat),
    dt.time: ("time", dt.time.isoformat),
    dt.datetime: ("datetime", dt.datetime.isoformat),
    dt.timedelta: ("timedelta", encoding.duration),
    bytes: ("bytes", encoding.base64_text),
}


_AS_IS = frozenset({str, int, bool, Decimal, uuid.UUID, dt.date, dt.time, dt.datetime, dt.timedelta, bytes})


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
        self.dumps: Callable[[Any], str] = getattr(dialect, "_json_serializer", None) or json.dumps
        self.as_text = self.is_json and dialect.name == "postgresql"
        """What comes back from the database is asked for as text: drivers make None of a JSON null and of NULL."""
        self._impl = kind.dialect_impl(dialect)
        self._dialect = dialect
        self._loaders: dict[Any, Form] = {}
        self.enum = kind.enum_class if isinstance(kind, sa.Enum) else None
        self.expected, self.code, self.form = self._usual()
        exact = self.expected in _AS_IS and not getattr(kind, "timezone", False)  # the encoder rounds offsets to minutes
        self.plain = self.expected if self.bind is None and exact else _Nothing
        """Values of exactly this type go into the JSON as they are: the encoder's form is ours."""
        self.none = self.bind is None and not self.is_json
        """None is NULL, and null."""
        self.null = None if self.none else Loaded(SQL_NULL if self.is_json else None)
        self.redacted = False

    def redact(self) -> None:
        """Let no value of this column out."""
        self.redacted, self.plain = True, _Nothing

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
            return str(value)
        if self.expected is bytes and isinstance(value, (bytearray, memoryview)):
            return encoding.base64_text(value)
        found: encoding.Types = {}
        lowered = encoding.lower(value, pointer, found)
        if self.code is not None and not found:
            found[pointer] = ""  # natural here, although the column's constant code says otherwise
        types.update(found)
        return lowered

    def _json(self, value: Any, pointer: str, types: encoding.Types) -> Any:
        if value is sa.JSON.NULL or (value is None and not getattr(self.kind, "none_as_null", False)):
            types[pointer] = "jsonnull"
            return None
        if value is None:
            return None
        return _strict(str(value) if type(value) is JsonText else self.dumps(value), pointer, types)

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
        if load is None and isinstance(self.kind, sa.Float):  # SQLite's RETURNING tells 2 of a stored 2.0
            return lambda raw: float(raw) if type(raw) is int else raw
        if load is None:
            return lambda raw: null if raw is None else raw
        return lambda raw: null if raw is None else load(raw)


_SUSPICIOUS = re.compile(r"NaN|Infinity|\\u[dD]|[eE][+-]?\d{3}|\d{200}")


def _strict(text: str, pointer: str, types: encoding.Types) -> Any:
    """The text itself, unless no reader takes it: what the serializer makes of NaN, numbers beyond a float, half a character."""
    if _SUSPICIOUS.search(text):
        try:
            msgspec.json.decode(text)
        except msgspec.DecodeError:
            return encoding.lower(json.loads(text), pointer, types)
    return msgspec.Raw(text.encode())


class Loaded:
    """A value that came from the database: at the level of the SQL type already, where others are as the caller gave them."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


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
    kind = kind._variant_mapping.get(dialect.name, kind)
    while isinstance(kind, TypeDecorator):
        if isinstance(kind, PickleType):
            return _chain([*steps, _pickled(kind)]), sa.LargeBinary()
        if isinstance(kind, sa.Interval):
            return _chain(steps), sa.Interval()
        if type(kind).process_bind_param is not TypeDecorator.process_bind_param:
            steps.append(_processed(kind, dialect))
        own = type(kind).load_dialect_impl is not TypeDecorator.load_dialect_impl
        kind = kind.load_dialect_impl(dialect) if own else kind.impl_instance
    return _chain(steps), kind


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


def _version(table: sa.Table) -> int:
    version = table.info.get("event_version", 1)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ConfigError(f"info['event_version'] of table {table.fullname} is {version!r}; it must be a whole number from 1 on")
    return version


Stored = frozenset[tuple[str, str | None]]
"""Columns' names, each with the type that PostgreSQL stores; see within._LOOK."""


class TableCodec:
    """All columns of a table that events may show."""

    def __init__(
        self,
        table: sa.Table,
        dialect: Dialect,
        key: tuple[str, ...],
        hidden: Callable[[sa.Column[Any]], bool],
        redacted: Callable[[sa.Column[Any]], bool],
        placeholder: bool,
        operations: frozenset[str] = frozenset(("create", "update", "delete", "read")),
    ) -> None:
        self.table = table
        self.operations = operations
        self.version = _version(table)
        self.columns = {column.key: ColumnCodec(column, dialect) for column in table.columns if not hidden(column)}
        for codec in self.columns.values():
            if redacted(codec.column):
                codec.redact()
        self.nulls = {key: codec.null for key, codec in self.columns.items() if not codec.none}
        """NULL in columns where a None that is bound may be something else."""
        self.key = key
        self.all_keys = tuple(column.key for column in table.columns if column.key in self.columns or column.key in key)
        """What is wanted from the database of a row."""
        self.key_codecs = {name: self.columns.get(name) or ColumnCodec(table.columns[name], dialect) for name in key}
        self.triggered = _triggered(table, dialect)
        """Keys of columns that triggers set, where RETURNING does not tell."""
        self._dialect = dialect
        self._kinds: dict[str, TypeEngine[Any]] = {}
        self._plain_key = all(codec.bind is None for codec in self.key_codecs.values())
        self._names: dict[Any, tuple[str, ...]] = {}
        """Of keys and the types of their values, where each value goes into the JSON as it is: the columns' names, none
        where these are the keys."""
        self.programs: ByIdentity[Any] = ByIdentity()
        """By compiled statement: plan.Program."""
        self.frames: ByIdentity[dict[Stored, Any]] = ByIdentity()
        """By compiled statement, and by what is stored: how it writes its events itself, within.Frame."""
        self.stored: dict[str | None, Stored] = {}
        """By schema. Alike ones are the same: there may be thousands of schemas."""
        self.placeholder = placeholder
        self.cascades: dict[str, str] = {}
        """What the database itself changes when a row goes, for events that say so: table -> action of its foreign key."""
        self.reaches: frozenset[str] = frozenset()
        """Verbs of statements that may change rows of other captured tables through foreign keys."""
        self.codes = {
            f"/payload/*/{encoding.escape(one.name)}": one.code
            for one in self.columns.values()
            if one.code is not None and not one.redacted
        }
        self.usual_types = encoding.dumps(self.codes) if self.codes else None
        """The sidecar's text."""

    def writes(self, shape: Any) -> bool:
        """Whether events are wanted of what a statement may write, or cause."""
        return (
            shape.verb in self.operations or (shape.upsert and "update" in self.operations) or shape.verb in self.reaches
        )

    def kind(self, key: str) -> TypeEngine[Any]:
        """The SQL type of a column, seen or hidden: the level of an event's values."""
        if key not in self._kinds:
            known = self.columns.get(key) or self.key_codecs.get(key)
            self._kinds[key] = (known or ColumnCodec(self.table.columns[key], self._dialect)).kind
        return self._kinds[key]

    def level(self, key: str, value: Any) -> Any:
        """A value of the primary key at the level of the SQL type, wherever it came from."""
        if type(value) is Loaded:
            return value.value
        bind = self.key_codecs[key].bind
        return value if bind is None else bind(value)

    def side(self, values: dict[str, Any], where: str, types: encoding.Types) -> dict[str, Any]:
        """Column name -> what the JSON encoder takes. A Loaded value is at the level of the SQL type, others are as bound.

        May be ``values`` itself. Most rows of a table look alike: what was found for one holds for all with values of the
        same types.
        """
        kinds = (*values, *map(type, values.values()))
        names = self._names.get(kinds)
        if names is not None:
            return dict(zip(names, values.values(), strict=True)) if names else values
        lowered, columns, plain = {}, self.columns, True
        for key, value in values.items():
            codec = columns.get(key)
            if codec is not None and (type(value) is codec.plain or (value is None and codec.none)):
                lowered[codec.name] = value
                continue
            plain = False
            if codec is not None:
                lowered[codec.name] = self._special(codec, value, where, types)
        if plain and len(self._names) < MAX_KINDS:
            self._names[kinds] = () if list(lowered) == list(values) else tuple(lowered)
        return lowered

    def _special(self, codec: ColumnCodec, value: Any, where: str, types: encoding.Types) -> Any:
        bound = type(value) is not Loaded
        value = value if bound else value.value
        if codec.redacted:
            return None if value is None or value is SQL_NULL else REDACTED
        return self._lowered(codec, value, where, types, bound)

    def blame(self, payload: dict[str, Any]) -> None:
        """Find the column whose value the encoder refuses, and raise, or put a placeholder in its place."""
        for where in payload.keys() & {"key", "before", "after"}:
            payload[where] = {name: self._encodable(name, value) for name, value in payload[where].items()}

    def _encodable(self, name: str, value: Any) -> Any:
        try:
            encoding.dumps(value)
        except (EventError, TypeError, ValueError) as error:
            return self._refused(name, value, error)
        return value

    def _refused(self, name: str, value: Any, error: Exception) -> str:
        kind = type(value)
        if self.placeholder:
            return f"{UNENCODABLE} {kind.__qualname__}"
        raise CaptureError(
            f"{self.table.fullname}.{name} has a {kind.__module__}.{kind.__qualname__} that cannot be put into an event: {error}"
        ) from error

    def _lowered(self, codec: ColumnCodec, value: Any, where: str, types: encoding.Types, bound: bool) -> Any:
        if value is SQL_NULL:
            return None
        try:
            if bound and codec.bind is not None:
                value = codec.bind(value)
            return codec.lower(value, f"/payload/{where}/{encoding.escape(codec.name)}", types)
        except (EventError, TypeError, ValueError) as error:
            return self._refused(codec.name, value, error)

    def types(self, special: encoding.Types) -> str | None:
        """The sidecar's text where some values are not of their columns' usual type."""
        codes = dict(self.codes)
        for pointer in special:
            codes.pop(f"/payload/*/{pointer.split('/')[3]}", None)
        return encoding.dumps({**codes, **{pointer: code for pointer, code in special.items() if code}})

    def key_text(self, values: Mapping[str, Any]) -> str | None:
        """The primary key as text: one column as it is, several as a JSON array; ``*`` for a table without one."""
        if len(self.key) == 1:
            value = values.get(self.key[0])
            return str(value) if type(value) in (int, str) and self._plain_key else self._key_form(self.key[0], value)
        if not self.key:
            return "*"
        forms = [self._key_value(name, values.get(name)) for name in self.key]
        return None if any(form is None for form in forms) else encoding.dumps(forms)

    def _key_form(self, name: str, value: Any) -> str | None:
        form = self._key_value(name, value)
        return None if form is None else bytes(form).decode() if type(form) is msgspec.Raw else str(form)

    def _key_value(self, name: str, value: Any) -> Any:
        codec = self.key_codecs[name]
        bound = type(value) is not Loaded
        form = self._lowered(codec, value if bound else value.value, "key", {}, bound)
        return _sorted(form) if type(form) is msgspec.Raw else form


def _sorted(form: msgspec.Raw) -> msgspec.Raw:
    """JSON as a key: the same whoever wrote it, the application or jsonb."""
    return msgspec.Raw(json.dumps(json.loads(bytes(form)), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def _triggered(table: sa.Table, dialect: Dialect) -> dict[str, bool]:
    """Keys of columns that triggers set; True: on UPDATE too.

    On SQLite, where what is returned of a row is how it was before its triggers ran; so such a table has
    ``implicit_returning=False``, and of these columns the metadata says no more than that the database sets them.
    """
    plain = sa.FetchedValue
    return {
        column.key: type(column.server_onupdate) is plain
        for column in (table.columns if dialect.name == "sqlite" and not table.implicit_returning else ())
        if plain in (type(column.server_default), type(column.server_onupdate))
    }

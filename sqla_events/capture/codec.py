"""Values of one table's columns as JSON, and the JSON of an event's payload; ``column`` has those of one column."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.types import TypeEngine

from .. import encoding
from ..errors import CaptureError, ConfigError, EventError
from .column import REDACTED, SQL_NULL, ColumnCodec, Form, Loaded, as_it_is
from .kept import ByIdentity
from .replacing import Replacing
from .stored import Rounder, is_moment, is_spelled, moment

UNENCODABLE = "[unencodable]"

MAX_KINDS = 1000

SIDES = frozenset({"key", "before", "after"})
"""Where a payload has values of columns."""

Chosen = Callable[[sa.Column[Any]], bool]
"""Whether something holds for a column."""

Stored = frozenset[tuple[str, str | None]]
"""Columns' names, each with the type that PostgreSQL stores; see within._LOOK."""


class Recipe(msgspec.Struct, frozen=True):
    """How rows of one kind become JSON, where not every value of theirs goes in as it is."""

    names: tuple[str | None, ...]
    """Of the columns, in the order of the values; None of what is not shown."""
    forms: tuple[tuple[str, str, Form], ...]
    """Key and name of columns whose values have another form, and what makes it."""
    special: tuple[tuple[str, ColumnCodec], ...]
    """By key, those where the type does not tell the form."""


class TableCodec:
    """All columns of a table that events may show."""

    def __init__(
        self,
        table: sa.Table,
        dialect: Dialect,
        key: tuple[str, ...],
        hidden: Chosen,
        redacted: Chosen,
        placeholder: bool,
        operations: frozenset[str] = frozenset(("create", "update", "delete", "read")),
    ) -> None:
        self.table = table
        self.operations = operations
        self.version = _version(table)
        self.apart = False
        """Statements on this table must not be put into another: PostgreSQL has refused one."""
        self.placeholder = placeholder
        self.columns = _columns(table, dialect, hidden, redacted)
        self.nulls = {key: codec.null for key, codec in self.columns.items() if not codec.none}
        """NULL in columns where a None that is bound may be something else."""
        self.key = key
        self.all_keys = tuple(column.key for column in table.columns if column.key in self.columns or column.key in key)
        """What is wanted from the database of a row."""
        self.key_codecs = {name: self.columns.get(name) or ColumnCodec(table.columns[name], dialect) for name in key}
        self.triggered = _triggered(table, dialect)
        """Keys of columns that triggers set, where RETURNING does not tell."""
        self.replacing = Replacing(table, dialect)
        self.spelled = any(is_spelled(codec.kind, dialect) for codec in self.key_codecs.values())
        """Only the database knows how the key of a row is written that a statement names."""
        self.dialect = dialect
        self.zoned = self._zoned()
        """Keys of columns of moments, where the key has one: the row would have several keys."""
        self._kinds: dict[str, TypeEngine[Any]] = {}
        self.plain_key = all(codec.plain_key for codec in self.key_codecs.values())
        self.sole, self.sole_type = self._natural_key()
        """The one column of a key, and the type of the values with which it is its own JSON object."""
        self._texted, self._texted_type = self._text_key()
        """The one column of a key whose values of this type are its text; empty where they are not."""
        self._rounded = [(key, one.rounder) for key, one in self.columns.items() if one.rounder is not None and one.plain is Decimal]
        self._names: dict[Any, tuple[tuple[str, ...], tuple[tuple[str, Rounder], ...]]] = {}
        """Of keys and the types of their values, where each value goes into the JSON as it is: the columns' names, none
        where these are the keys; and what has to be rounded first."""
        self._recipes: dict[Any, Recipe] = {}
        """The same of others, and of Loaded values."""
        self.programs: ByIdentity[Any] = ByIdentity()
        """By compiled statement: plan.Program."""
        self.frames: ByIdentity[dict[Stored, Any]] = ByIdentity()
        """By compiled statement, and by what is stored: how it writes its events itself, frame.Frame."""
        self.stored: dict[str | None, Stored] = {}
        """By schema. Alike ones are the same: there may be thousands of schemas."""
        self.cascades: dict[str, str] = {}
        """What the database itself changes when a row goes, for events that say so: table -> action of its foreign key."""
        self.followers: frozenset[sa.Table] = frozenset()
        """Tables whose rows it may change then, where no events tell of it."""
        self.reaches: frozenset[str] = frozenset()
        """Verbs of statements that may change rows of other captured tables through foreign keys."""
        self.codes = _codes(self.columns.values())
        self.usual_types = encoding.dumps(self.codes) if self.codes else None
        """The sidecar's text."""
        self.decimals = any(one.plain is Decimal and (one.rounder is None or one.rounder.exponents) for one in self.columns.values())
        """Some go into the JSON as they are: the encoder's form is ours where it has no exponent."""

    def writes(self, shape: Any) -> bool:
        """Whether events are wanted of what a statement may write, or cause."""
        return (
            shape.verb in self.operations or (shape.upsert and "update" in self.operations) or shape.verb in self.reaches
        )

    def _natural_key(self) -> tuple[str, type | None]:
        """Of a key that is one column, and with a value of this type its own JSON object; no value is of no type."""
        name = self.key[0] if len(self.key) == 1 else ""
        codec = self.columns.get(name)
        return name, codec.plain if codec is not None and codec.plain_key and codec.name == name else None

    def _zoned(self) -> tuple[str, ...]:
        columns = {**self.columns, **self.key_codecs}
        found = tuple(key for key, codec in columns.items() if is_moment(codec.kind, self.dialect))
        return found if not self.key_codecs.keys().isdisjoint(found) else ()

    def moments(self, values: dict[str, Any], connection: Connection) -> dict[str, Any]:
        """The same row, or its key, with the moment that each time is which has been bound without a zone."""
        for key in values.keys() & self.zoned:
            level = self.level(key, values[key])
            if isinstance(level, dt.datetime) and level.tzinfo is None:
                values = {**values, key: Loaded(moment(level, connection))}
        return values

    def _text_key(self) -> tuple[str, type | None]:
        """Text that is bound to a number is none: the database may write it in another way (007)."""
        name = self.key[0] if len(self.key) == 1 and self.plain_key else ""
        return name, self.key_codecs[name].expected if name else None

    def kind(self, key: str) -> TypeEngine[Any]:
        """The SQL type of a column, seen or hidden: the level of an event's values."""
        if key not in self._kinds:
            known = self.columns.get(key) or self.key_codecs.get(key)
            self._kinds[key] = (known or ColumnCodec(self.table.columns[key], self.dialect)).kind
        return self._kinds[key]

    def narrows(self, key: str) -> bool:
        """Whether only the database knows what it stores of a value of this column."""
        codec = self.columns.get(key)
        return codec is not None and codec.narrows

    def level(self, key: str, value: Any) -> Any:
        """A value at the level of the SQL type, wherever it came from."""
        if type(value) is Loaded:
            return value.value
        bind = (self.key_codecs.get(key) or self.columns[key]).bind
        return value if bind is None else bind(value)

    def side(self, values: dict[str, Any], where: str, types: encoding.Types) -> dict[str, Any]:
        """Column name -> what the JSON encoder takes. A Loaded value is at the level of the SQL type, others are as bound.

        May be ``values`` itself. Most rows of a table look alike: what was found for one holds for all with values of the
        same types.
        """
        kinds = (*values, *map(type, values.values()))
        known = self._names.get(kinds)
        if known is not None:
            names, rounded = known
            if rounded:
                values = _rounded(values, rounded)
            return dict(zip(names, values.values(), strict=True)) if names else values
        values = _rounded(values, self._rounded)
        if kinds.count(Loaded) == len(values):
            return self._mixed({key: value.value for key, value in values.items()}, where, types, bound=False)
        return self._mixed(values, where, types, bound=True)

    def _mixed(self, values: dict[str, Any], where: str, types: encoding.Types, *, bound: bool) -> dict[str, Any]:
        kinds = (bound, *values, *map(type, values.values()))
        recipe = self._recipes.get(kinds) or self._recipe(kinds, values, bound)
        lowered: dict[Any, Any] = dict(zip(recipe.names, values.values(), strict=True))
        for key, name, form in recipe.forms:
            lowered[name] = form(values[key])
        for key, codec in recipe.special:
            lowered[codec.name] = self._special(codec, values[key], where, types, bound)
        lowered.pop(None, None)
        return lowered

    def _recipe(self, kinds: tuple[Any, ...], values: dict[str, Any], bound: bool) -> Recipe:
        shown = {key: self.columns.get(key) for key in values}
        names = tuple(None if codec is None else codec.name for codec in shown.values())
        forms = [(key, codec, codec.form_of(values[key], bound)) for key, codec in shown.items() if codec is not None]
        recipe = Recipe(
            names,
            tuple((key, codec.name, form) for key, codec, form in forms if form not in (None, as_it_is)),
            tuple((key, codec) for key, codec, form in forms if form is None),
        )
        if len(self._recipes) < MAX_KINDS:
            self._recipes[kinds] = recipe
            if bound and None not in names and not (recipe.forms or recipe.special):
                rounded = tuple((key, one) for key, one in self._rounded if type(values.get(key)) is Decimal)
                self._names[kinds[1:]] = () if list(names) == list(values) else tuple(map(str, names)), rounded
        return recipe

    def shown_key(self, key: dict[str, Any], types: encoding.Types) -> dict[str, Any]:
        """The same of a key, where it is not of the kind that is its own JSON object."""
        value = key.get(self.sole)
        if type(value) is Loaded and type(value.value) is self.sole_type:
            return {self.sole: value.value}
        return self.side(key, "key", types)

    def _special(self, codec: ColumnCodec, value: Any, where: str, types: encoding.Types, bound: bool) -> Any:
        if type(value) is Loaded:
            value, bound = value.value, False
        if codec.redacted:
            return None if value is None or value is SQL_NULL else REDACTED
        return self._lowered(codec, value, where, types, bound)

    def write_out(self, payload: dict[str, Any]) -> None:
        """Put the text of every Decimal in its place."""
        for where in payload.keys() & SIDES:
            payload[where] = {
                name: encoding.decimal_text(value) if type(value) is Decimal else value for name, value in payload[where].items()
            }

    def blame(self, payload: dict[str, Any]) -> None:
        """Find the column whose value the encoder refuses, and raise, or put a placeholder in its place."""
        for where in payload.keys() & SIDES:
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
            if bound:
                value = codec.stored(value)
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
        value = values.get(self._texted)
        if type(value) is self._texted_type:
            return str(value)
        if len(self.key) == 1:
            value = values.get(self.key[0])
            if type(value) is Loaded and type(value.value) is self._texted_type:
                return str(value.value)
            return self._key_form(self.key[0], value)
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
        if not bound:
            value = value.value
        if codec.in_key is not None and value is not None:
            value, bound = codec.in_key(codec.stored(value) if bound else value), False
        form = self._lowered(codec, value, "key", {}, bound)
        if codec.keyed is not None and type(form) is str:
            return codec.keyed(form)
        return _sorted(form) if type(form) is msgspec.Raw else form


def _rounded(values: dict[str, Any], rounders: Iterable[tuple[str, Rounder]]) -> dict[str, Any]:
    for key, rounder in rounders:
        value = values.get(key)
        if type(value) is Decimal and not value.same_quantum(rounder.quantum):
            values = {**values, key: rounder(value)}
    return values


def _version(table: sa.Table) -> int:
    version = table.info.get("event_version", 1)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ConfigError(f"info['event_version'] of table {table.fullname} is {version!r}; it must be a whole number from 1 on")
    return version


def _columns(table: sa.Table, dialect: Dialect, hidden: Chosen, redacted: Chosen) -> dict[str, ColumnCodec]:
    found = {column.key: ColumnCodec(column, dialect) for column in table.columns if not hidden(column)}
    for codec in found.values():
        if redacted(codec.column):
            codec.redact()
    return found


def _codes(columns: Iterable[ColumnCodec]) -> encoding.Types:
    """The sidecar of values of the columns' usual types."""
    shown = [one for one in columns if one.code is not None and not one.redacted]
    return {f"/payload/*/{encoding.escape(one.name)}": str(one.code) for one in shown}


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

"""What the triggers of one table are made from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Dialect

from .. import encoding
from ..capture.choice import columns
from ..capture.codec import TableCodec
from ..capture.column import ColumnCodec
from ..capture.forms import Form, Parts, form_of, key_form, literal, member, object_of, special_types
from ..capture.mapped import key_columns
from ..capture.marks import PREFIX
from ..capture.settings import SCHEMA
from ..errors import ConfigError
from ..event import type_of
from ..schema import Names
from ..settings import Rule


@dataclass(frozen=True)
class Options:
    """What else the triggers of a table depend on."""

    names: Names
    exclude_columns: tuple[str, ...] = ()
    redact_columns: tuple[str, ...] = ()
    default_schema: str = "public"

    def __post_init__(self) -> None:
        Rule(SCHEMA).read(self.default_schema, "default_schema")


class Spec:
    """One table's triggers, before they are SQL of a dialect.

    :raises ConfigError: if a column of the key cannot be part of an event's key.
    """

    def __init__(self, table: sa.Table, dialect: Dialect, options: Options) -> None:
        self.table = table
        self.names = options.names
        self.schema = str(table.schema or options.default_schema)
        self.entity = str(table.name)
        hidden = columns(options.exclude_columns, "exclude", options.default_schema)
        redacted = columns(options.redact_columns, "redact", options.default_schema)
        codec = TableCodec(table, dialect, key_columns(table), lambda one: hidden(one) or self.is_unseen(one), redacted, placeholder=False)
        self.version = codec.version
        self.forms = [form_of(column, dialect) for column in codec.columns.values()]
        self.key = [str(table.columns[name].name) for name in codec.key]
        self._key_forms = [key_form(ColumnCodec(table.columns[name], dialect), dialect) for name in codec.key]
        self.shown_key = [form for form in self.forms if form.name in self.key]

    def is_unseen(self, column: sa.Column[Any]) -> bool:
        """Whether triggers cannot read a column."""
        return False

    # Names -------------------------------------------------------------------------------------------------------

    def quote(self, name: str) -> str:
        """Always quoted: a name is what it is."""
        return '"' + name.replace('"', '""') + '"'

    @property
    def target(self) -> str:
        """The table, with its schema if it has one."""
        return self.qualified(self.entity)

    def qualified(self, name: str) -> str:
        """A name in the table's schema."""
        return (f"{self.quote(str(self.table.schema))}." if self.table.schema else "") + self.quote(name)

    def type(self, verb: str) -> str:
        """The type of the events, as a literal."""
        return literal(type_of(self.schema, self.entity, verb))

    # Parts of an event -------------------------------------------------------------------------------------------

    def value(self, row: str, name: str) -> str:
        """One column of a row."""
        return f"{row}.{self.quote(name)}"

    def whole(self, row: str, forms: Sequence[Form] | None = None) -> str:
        """A row as a JSON object, or a part of it."""
        return object_of(self._parts(row, forms))

    def _parts(self, row: str, forms: Sequence[Form] | None = None) -> Parts:
        return [(form, self.value(row, form.name)) for form in (self.forms if forms is None else forms)]

    def changed(self, row: str, differs: dict[str, str]) -> str:
        """The columns of a row that differ, as a JSON object; ``differs`` says in SQL whether."""
        parts = [
            f"CASE WHEN {differs[form.name]} THEN {literal(member(form, ','))} || {form.json(self.value(row, form.name))} ELSE '' END"
            for form in self.forms
        ]
        return f"'{{' || substr({' || '.join(parts)}, 2) || '}}'"

    def key_object(self, row: str) -> str:
        """The key as a JSON object."""
        return self.whole(row, self.shown_key)

    def key_text(self, row: str) -> str:
        """The key as capture writes it: a value as it is, several as a JSON array."""
        if not self.key:
            return "'*'"
        forms = [form.json(self.value(row, form.name)) for form in self._key_forms]
        if len(forms) > 1:
            return "'[' || " + " || ',' || ".join(forms) + " || ']'"
        return self.unquoted(forms[0])

    def unquoted(self, form: str) -> str:
        """The text in a JSON string; a number as it stands; Python's word for true."""
        raise NotImplementedError

    def types(self, rows: dict[str, str]) -> str | None:
        """The sidecar: what holds for all rows, and what for this one; ``rows`` are the sides of the payload."""
        constant = ",".join(f"{encoding.dumps(pointer)}:{encoding.dumps(code)}" for form in self.forms for pointer, code in form.pairs())
        parts = [literal("," + constant)] if constant else []
        parts += special_types({side: self._parts(row) for side, row in rows.items()})
        return " || ".join(parts) or "''"


def identifier(name: str, what: str, limit: int = 63) -> str:
    """``sqla_events_users_insert``, short enough for PostgreSQL whatever the table is called."""
    made = f"{PREFIX}{name}_{what}" if what else f"{PREFIX}{name}"
    if len(made.encode()) <= limit:
        return made
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{PREFIX}{digest}_{what}" if what else f"{PREFIX}{digest}"


def refuse(table: sa.Table) -> None:
    """:raises ConfigError: for a table without columns: nothing could be written of it."""
    if not table.columns:
        raise ConfigError(f"table {table.fullname!r} has no columns; give create_event_trigger a table that has them")

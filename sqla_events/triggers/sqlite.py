"""Triggers on SQLite: one for each kind of write, called for each row."""

from __future__ import annotations

from collections.abc import Iterator

from .. import encoding
from ..capture.forms import literal
from ..capture.marks import TOLD
from .postgresql import COLUMNS
from .spec import Spec, identifier

_ID = (
    "printf('%012x', CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)) || '7' || lower(substr(hex(randomblob(2)), 2)) || "
    "substr('89ab', (random() & 3) + 1, 1) || lower(substr(hex(randomblob(8)), 2))"
)
"""A UUID of version 7 as 32 hexadecimal digits."""

OPERATIONS = {"insert": "create", "update": "update", "delete": "delete"}


class SqliteSpec(Spec):
    """The statements."""

    def unquoted(self, form: str) -> str:
        """See there."""
        return f"CASE {form} WHEN 'true' THEN 'True' WHEN 'false' THEN 'False' ELSE json_extract({form}, '$') END"

    @property
    def guard(self) -> str:
        """The table in which capture says which statement it writes itself, and who is writing."""
        return self.names.qualified(self.names.guard)

    def create(self) -> Iterator[str]:
        """The statements that make the triggers, in place of those that there are."""
        yield f"CREATE TABLE IF NOT EXISTS {self.guard} (captured TEXT, {', '.join(f'{name} TEXT' for name in TOLD)})"
        yield f"INSERT INTO {self.guard} (captured) SELECT NULL WHERE NOT EXISTS (SELECT 1 FROM {self.guard})"
        for event, verb in OPERATIONS.items():
            name = self.quote(identifier(self.entity, event))
            yield f"DROP TRIGGER IF EXISTS {name}"
            yield self._trigger(name, event, verb)

    def drop(self) -> Iterator[str]:
        """The statements that remove them."""
        for event in OPERATIONS:
            yield f"DROP TRIGGER IF EXISTS {self.quote(identifier(self.entity, event))}"

    def _trigger(self, name: str, event: str, verb: str) -> str:
        differs = {
            form.name: f"{self.value('OLD', form.name)} IS NOT {self.value('NEW', form.name)} COLLATE BINARY" for form in self.forms
        }
        condition = f"(SELECT captured FROM {self.guard}) IS NOT {literal(self.entity)}"
        if verb == "update":
            condition += f" AND ({' OR '.join(differs.values()) or '0'})"
        record = encoding.dumps([str(column.name) for column in self.table.columns]).replace("*/", "*\\/")
        return f"""
CREATE TRIGGER {name} AFTER {event.upper()} ON {self.quote(self.entity)} WHEN {condition}
BEGIN
    /* sqla_events {record} */
    {self._insert(verb, differs)};
END"""

    def _insert(self, verb: str, differs: dict[str, str]) -> str:
        old, new = "OLD", "NEW"
        if verb == "create":
            row, rows, sides = new, {"after": new}, f""" || ',"after":' || {self.whole(new)}"""
        elif verb == "delete":
            row, rows, sides = old, {"before": old}, f""" || ',"before":' || {self.whole(old)}"""
        else:
            before = self.changed(old, differs) if self.key else self.whole(old)
            row, rows = old, {"before": old, "after": new}
            sides = f""" || ',"before":' || {before} || ',"after":' || {self.changed(new, differs)}"""
        payload = f"""'{{"key":' || {self.key_object(row)}{sides} || '}}'"""
        types = f"'{{' || substr({self.types(rows)} || coalesce(',' || g.types, ''), 2) || '}}'"
        values = [
            _ID, "'database'", self.type(verb), literal(self.schema), literal(self.entity), literal(verb), self.key_text(row), payload, types,
            "g.metadata", "g.user_id", "g.session_id", "g.instance_id", str(self.version),
        ]  # fmt: skip
        names = ", ".join(f'"{name}"' for name in COLUMNS)
        events = self.names.qualified(self.names.events)
        return f"INSERT INTO {events} ({names}) SELECT {', '.join(values)} FROM (SELECT 1) LEFT JOIN {self.guard} AS g"

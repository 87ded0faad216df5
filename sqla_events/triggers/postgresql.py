"""Triggers on PostgreSQL: one function a table, called once a statement with the rows that it changed.

Why once a statement: a trigger for each row costs a call of PL/pgSQL a row; transition tables are read by one INSERT.
An UPDATE's old and new rows are paired by their position, in which PostgreSQL stores both as it goes from row to row.

The function runs with its owner's rights, so that a program needs no right on the log, on a search path and with formats
of its own, so that no session's settings change what an event says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from ..capture.forms import UUID7, literal, unquoted
from ..capture.marks import comment_of
from .spec import Spec, identifier

_FORMATS = "SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO' SET extra_float_digits = '1'"

_SETTINGS = {"user_id": "user_id", "session_id": "session_id", "instance_id": "instance_id"}

_LOG, _TABLE = "@sqla_events:log@", "@sqla_events:table@"


def _found(relation: str) -> str:
    """SQL for a relation's name with its schema."""
    return (
        "(SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace "
        f"WHERE c.oid = {literal(relation)}::regclass)"
    )


TRIGGERS = {
    "insert": "AFTER INSERT ON {table} REFERENCING NEW TABLE AS new_rows",
    "update": "AFTER UPDATE ON {table} REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows",
    "delete": "AFTER DELETE ON {table} REFERENCING OLD TABLE AS old_rows",
    "truncate": "BEFORE TRUNCATE ON {table}",
}


class PostgresqlSpec(Spec):
    """The statements."""

    def unquoted(self, form: str) -> str:
        """See there."""
        return unquoted(form)

    def is_unseen(self, column: sa.Column[Any]) -> bool:
        """Transition tables have no values of virtual columns, which SQLAlchemy 2.1 makes on PostgreSQL 18 where nothing else is said."""
        if column.computed is None:
            return False
        persisted = column.computed.persisted
        return persisted is False or (persisted is None and not sa.__version__.startswith("2.0."))

    @property
    def function(self) -> str:
        """The function's name, in the table's schema."""
        return self.qualified(identifier(self.entity, ""))

    def create(self) -> Iterator[str]:
        """The statements that make the triggers, in place of those that there are."""
        yield self._function()
        for name, clauses in TRIGGERS.items():
            trigger = self.quote(f"sqla_events_{name}")
            yield f"DROP TRIGGER IF EXISTS {trigger} ON {self.target}"
            yield (
                f"CREATE TRIGGER {trigger} {clauses.format(table=self.target)} FOR EACH STATEMENT EXECUTE FUNCTION {self.function}()"
            )
        yield self._record()

    def drop(self) -> Iterator[str]:
        """The statements that remove them."""
        for name in TRIGGERS:
            yield f"DROP TRIGGER IF EXISTS {self.quote(f'sqla_events_{name}')} ON {self.target}"
        yield f"DROP FUNCTION IF EXISTS {self.function}()"

    def _record(self) -> str:
        """What the table looks like now, read by the database itself, for the check whether it has changed since."""
        return f"""
DO $sqla_events$ BEGIN EXECUTE 'COMMENT ON FUNCTION ' || {literal(self.function)} || '() IS ' || quote_literal('sqla_events ' || (
    SELECT json_object_agg(attname, format_type(atttypid, atttypmod) ORDER BY attnum)::text FROM pg_attribute
    WHERE attrelid = {literal(self.target)}::regclass AND attnum > 0 AND NOT attisdropped
)); END $sqla_events$"""

    def _function(self) -> str:
        """Made with the schemas in which log and table are found now: the function's own search path has neither."""
        log = self.names.qualified(self.names.events)
        return f"""
DO $sqla_events_make$ BEGIN EXECUTE replace(replace({literal(self._definition())}, '{_LOG}', {_found(log)}), '{_TABLE}', {_found(self.target)});
END $sqla_events_make$"""

    def _definition(self) -> str:
        mark = literal(comment_of(self.entity))
        return f"""
CREATE OR REPLACE FUNCTION {self.function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER {_FORMATS} AS $sqla_events$
BEGIN
    IF pg_trigger_depth() = 1 AND position({mark} IN current_query()) > 0 THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'INSERT' THEN
        {self._insert("create", {"after": "n"}, "new_rows AS n")};
    ELSIF TG_OP = 'UPDATE' THEN
        {self._update()};
    ELSIF TG_OP = 'DELETE' THEN
        {self._insert("delete", {"before": "o"}, "old_rows AS o")};
    ELSE
        {self._insert("delete", {"before": "o"}, f"{_TABLE} AS o")};
    END IF;
    RETURN NULL;
END $sqla_events$"""

    def _insert(self, verb: str, rows: dict[str, str], source: str) -> str:
        ((side, row),) = rows.items()
        payload = f"""'{{"key":' || {self.key_object(row)} || ',"{side}":' || {self.whole(row)} || '}}'"""
        return self._into(verb, row, payload, rows, source)

    def _update(self) -> str:
        differs = {form.name: f"record_image_ne(ROW({self.value('o', form.name)}), ROW({self.value('n', form.name)}))" for form in self.forms}
        before = self.changed("o", differs) if self.key else self.whole("o")
        payload = f"""'{{"key":' || {self.key_object("o")} || ',"before":' || {before} || ',"after":' || {self.changed("n", differs)} || '}}'"""
        place = '"sqla_events place"'
        source = (
            f"(SELECT *, row_number() OVER () AS {place} FROM old_rows) AS o JOIN (SELECT *, row_number() OVER () AS {place} FROM new_rows) AS n"
            f" USING ({place}) WHERE {' OR '.join(differs.values()) or 'false'} ORDER BY {place}"
        )
        return self._into("update", "o", payload, {"before": "o", "after": "n"}, source)

    def _into(self, verb: str, row: str, payload: str, rows: dict[str, str], source: str) -> str:
        told = [f"nullif(current_setting('sqla_events.{name}', true), '')" for name in _SETTINGS.values()]
        types = f"{self.types(rows)} || coalesce(',' || nullif(current_setting('sqla_events.types', true), ''), '')"
        values = [
            UUID7, "'database'", self.type(verb), literal(self.schema), literal(self.entity), literal(verb), self.key_text(row), f"({payload})::json",
            f"('{{' || substr({types}, 2) || '}}')::json", "nullif(current_setting('sqla_events.metadata', true), '')::json", *told, str(self.version),
        ]  # fmt: skip
        names = ", ".join(f'"{name}"' for name in COLUMNS)
        return f"INSERT INTO {_LOG} ({names}) SELECT {', '.join(values)} FROM {source}"


COLUMNS = (
    "id", "source", "type", "schema", "entity", "operation", "key", "payload", "types", "metadata", *_SETTINGS, "schema_version",
)  # fmt: skip

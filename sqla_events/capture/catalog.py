"""What PostgreSQL itself says of a captured table, and of the log when it refuses: for statements that write their events."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy.engine import Connection

from ..errors import CaptureError
from ..schema import Names
from . import pipeline
from .codec import Stored
from .forms import literal
from .kept import ByIdentity
from .plan import Plan


class Catalog:
    """Looks a table up once, and again where it may have changed."""

    def __init__(self, names: Names) -> None:
        self.log = names.qualified(names.events)
        """Of the log."""
        self._schema, self._name = names.schema, names.events
        name = re.escape(names.events)
        self._refused = re.compile(rf'relation "(?:[^"]*\.)?{name}"|(?:table|sequence) "?{name}(?:_seq_seq)?\b')
        """What PostgreSQL says of the log itself, and not of something else that is called alike."""

    def stored(self, connection: Connection, plan: Plan) -> Stored | None:
        """What the database stores in each column of the table; nothing of one that cannot be written in a WITH.

        None in a transaction that has failed: the statement will say so.
        """
        known, schema = plan.codec.stored, plan.shape.table.schema
        if plan.translate is not None:
            schema = plan.translate.get(schema, schema)
        if schema in known:
            return known[schema]
        cursor = connection.connection.cursor()
        try:
            cursor.execute(_LOOK.format(table=_named("c", schema, plan.table.name), log=_named("log", self._schema, self._name)))
            pipeline.settle(cursor, connection.dialect)
            found = frozenset(tuple(row) for row in cursor.fetchall())
            known[schema] = next((one for one in list(known.values()) if one == found), found)
            return known[schema]
        except connection.dialect.loaded_dbapi.Error:
            return None
        finally:
            cursor.close()

    def failed(self, plan: Plan, context: Any, sql: str, parameters: Any) -> None:
        """A statement that was to write its events has failed: its error shows what the caller has written.

        :param sql: the statement as it was without, with its parameters.
        :raises CaptureError: if it is the log that refuses.
        """
        error, shown = context.original_exception, context.sqlalchemy_exception
        if shown is not None:
            shown.statement, shown.params = sql, parameters
        context.statement, context.parameters = sql, parameters  # for listeners that come after ours
        code = str(getattr(error, "sqlstate", ""))
        if code.startswith(("42", "0A")):  # perhaps a column's type has changed, or the table has a rule: look again
            plan.codec.frames = ByIdentity()
            plan.codec.stored.clear()
        if code.startswith(("42", "23514")) and self._refused.search(str(error)) and plan.table.name != self._name:
            raise CaptureError(
                f"events could not be written to {self.log}: {error}; "
                "if the table is missing or outdated, run: sqla-events migrate URL"
            ) from error


def _named(relation: str, schema: str | None, name: str) -> str:
    """That a pg_class is what a statement means by the name.

    Not by ``regclass``: a role that may not look into the schema would get its error from us, and a transaction that has failed.
    """
    there = f"pg_catalog.pg_table_is_visible({relation}.oid)"
    if schema is not None:
        there = f"{relation}.relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = {literal(schema)})"
    return f"{relation}.relname = {literal(name)} AND {there}"


_LOOK = """SELECT a.attname, CASE t.typtype WHEN 'e' THEN 'enum' WHEN 'b' THEN t.typname END
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
WHERE {table} AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND NOT c.relhasrules
AND a.attnum > 0 AND NOT a.attisdropped AND (t.typtype = 'e' OR t.typnamespace = 'pg_catalog'::regnamespace)
AND EXISTS (SELECT FROM pg_catalog.pg_class AS log WHERE {log}
AND pg_catalog.has_schema_privilege(log.relnamespace, 'USAGE') AND pg_catalog.has_table_privilege(log.oid, 'INSERT')
AND log.relkind IN ('r', 'p') AND NOT log.relhasrules
AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger AS b WHERE b.tgrelid = log.oid AND b.tgtype & 3 = 3))"""
"""Nothing of a log with a rule or a trigger BEFORE each row: what these take elsewhere is not in the command tag."""

"""Whether tables are still as they were when their triggers were made."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..capture.marks import look

_FUNCTIONS = sa.text("""
SELECT n.nspname, c.relname, obj_description(t.tgfoid, 'pg_proc'), (
    SELECT json_object_agg(attname, format_type(atttypid, atttypmod) ORDER BY attnum)::text FROM pg_attribute
    WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped)
FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE t.tgname = 'sqla_events_insert' ORDER BY 1, 2""")

_TRIGGERS = sa.text("SELECT tbl_name, sql FROM sqlite_master WHERE type = 'trigger' AND sql LIKE '%/* sqla_events [%' AND name LIKE '%insert' ORDER BY 1")

_RECORD = re.compile(r"/\* sqla_events (\[.*?\]) \*/", re.DOTALL)


def installed(connection: Connection) -> list[str]:
    """Names of the tables that have event triggers, in order."""
    return sorted(look(connection.connection.cursor(), connection.dialect.name))


def drift(connection: Connection) -> list[str]:
    """What is wrong with the event triggers of a database, a sentence for each table; empty: nothing.

    A column that came after the trigger is missing in its events; one that is gone makes writes fail.
    """
    find = _on_postgresql if connection.dialect.name == "postgresql" else _on_sqlite
    return [_sentence(*found) for found in find(connection) if found[1] != found[2]]


def _on_postgresql(connection: Connection) -> Iterator[tuple[str, dict[str, str], dict[str, str]]]:
    for schema, table, comment, now in connection.execute(_FUNCTIONS):
        recorded = json.loads(comment.removeprefix("sqla_events ")) if comment else {}
        yield f"{schema}.{table}", recorded, json.loads(now)


def _on_sqlite(connection: Connection) -> Iterator[tuple[str, dict[str, str], dict[str, str]]]:
    for table, sql in connection.execute(_TRIGGERS):
        match = _RECORD.search(sql)
        recorded = json.loads(match[1]) if match else []
        now = [row[1] for row in connection.exec_driver_sql(f'PRAGMA table_info("{table.replace(chr(34), chr(34) * 2)}")')]
        yield table, dict.fromkeys(recorded, ""), dict.fromkeys(now, "")


def _sentence(table: str, recorded: dict[str, str], now: dict[str, str]) -> str:
    changes = [f"{name} was added" for name in now if name not in recorded]
    changes += [f"{name} was removed" for name in recorded if name not in now]
    changes += [f"{name} was {recorded[name]} and is {now[name]}" for name in now if name in recorded and recorded[name] != now[name]]
    return f"table {table} has changed since its event trigger was made: {'; '.join(changes)}; make it again with create_event_trigger"

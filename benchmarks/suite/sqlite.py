"""SQLite: the log is a temporary table, a copy is a database in memory."""

from __future__ import annotations

import copy as copying
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.engine import make_url
from sqlalchemy.pool import StaticPool

from sqla_events.event import Event
from sqla_events.schema import Names

from . import log
from .proof import CopyEngine, Name

LOG = Names(events="suite_log")


class SQLite:
    """See :class:`proof.Database`."""

    names = LOG

    def prepare(self, raw: Any) -> None:
        cursor = raw.cursor()
        cursor.execute(f"CREATE TEMP TABLE IF NOT EXISTS suite_log (seq INTEGER PRIMARY KEY, {log.columns(schema_version='integer')})")
        cursor.close()

    def trouble(self, raw: Any) -> str | None:
        try:
            _all(raw, "SELECT 1")
        except sqlite3.Error as error:
            return str(error)
        return None

    def written(self, raw: Any) -> None:
        """A transaction that writes is the only one, and sees no other's commits."""

    def last(self, raw: Any) -> int:
        return int(_all(raw, "SELECT coalesce(max(seq), 0) FROM suite_log")[0][0])

    def events(self, raw: Any, since: int) -> list[Event]:
        return log.decoded(_all(raw, f"SELECT {log.READ} FROM suite_log WHERE seq > {since} ORDER BY seq"))

    def contents(self, raw: Any) -> dict[Name, Counter[Any]]:
        return {(None if schema in ("main", "temp") else schema, name): Counter(_all(raw, f'SELECT * FROM "{schema}".{_quoted(name)}'))
                for schema, name in _tables(raw)}  # fmt: skip

    @contextmanager
    def copy(self, raw: Any, dialect: Any, tables: dict[Name, Counter[Any]]) -> Iterator[Any]:
        copy = sqlite3.connect(":memory:")
        dialect = copying.copy(dialect)
        engine = CopyEngine(StaticPool(lambda: copy), dialect, make_url("sqlite://"))
        names = {}
        where = {(None if schema in ("main", "temp") else schema, name): schema for schema, name in _tables(raw)}
        for number, (name, rows) in enumerate(tables.items()):
            names[name] = f"c{number}"
            columns = _all(raw, f'PRAGMA "{where[name]}".table_xinfo({_quoted(name[1])})')
            copy.execute(f"CREATE TABLE c{number} ({', '.join(f'{_quoted(one[1])} {_kind(one[2])}' for one in columns)})")
            copy.executemany(f"INSERT INTO c{number} VALUES ({', '.join('?' * len(columns))})", rows.elements())
        try:
            with engine.connect() as connection:
                yield connection, lambda name: (None, names[name]), lambda name: Counter(_all(copy, f"SELECT * FROM {names[name]}"))
        finally:
            copy.close()


def _kind(declared: str) -> str:
    """The declared type without what is no type: of a generated column SQLite tells ``INTEGER GENERATED ALWAYS``."""
    return declared.upper().replace("GENERATED ALWAYS", "")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _all(raw: Any, sql: str) -> list[Any]:
    cursor = raw.cursor()
    cursor.row_factory = None
    try:
        rows = cursor.execute(sql).fetchall()
        return rows if sql.startswith("PRAGMA") or "suite_log" in sql else [_Row(row) for row in rows]
    finally:
        cursor.close()


class _Row(tuple[Any, ...]):
    """A row that is equal to another only if all values have the same storage class: 1 is not 1.0.

    Of a moment SQLite itself writes ``12:00:00`` and SQLAlchemy ``12:00:00.000000``: the same value of the column's type.
    """

    __slots__ = ()

    def _form(self) -> str:
        return repr([one.removesuffix(".000000") if isinstance(one, str) else one for one in self])

    def __hash__(self) -> int:
        return hash(self._form())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Row) and self._form() == other._form()


def _tables(raw: Any) -> list[tuple[str, str]]:
    """(schema, name) of every table but ours; a temporary one hides another of its name, as it does for statements."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for _, schema, _ in _all(raw, "PRAGMA database_list"):
        master = "sqlite_temp_master" if schema == "temp" else f'"{schema}".sqlite_master'
        for (name,) in _all(raw, f"SELECT name FROM {master} WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"):
            shown = "main" if schema == "temp" else schema
            if name != LOG.events and (schema == "temp" or (shown, name) not in found):
                found[shown, name] = (schema, name)
    return list(found.values())

"""PostgreSQL (psycopg): the log is a table of a schema of its own, a copy is made under a savepoint of the very transaction.

The log is no temporary table, because a transaction that has touched one cannot be prepared for two-phase commit.
"""

from __future__ import annotations

import copy as copying
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy.engine import make_url
from sqlalchemy.pool import StaticPool

from sqla_events.event import Event
from sqla_events.schema import Names

from . import log
from .log import DEFAULT_SCHEMA
from .proof import CopyEngine, Name

LOG = Names(events="suite_log", schema="suite")

_TABLES = f"""
SELECT CASE WHEN n.nspname = '{DEFAULT_SCHEMA}' OR n.oid = pg_my_temp_schema() THEN NULL ELSE n.nspname END AS schema, c.relname AS name,
       c.oid::regclass::text AS qualified
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'suite')
  AND (n.nspname NOT LIKE 'pg\\_temp\\_%' OR n.oid = pg_my_temp_schema())
ORDER BY c.relpersistence = 't'
"""
_WRITTEN = f"""
SELECT schema, name FROM ({_TABLES}) AS tables WHERE qualified::regclass IN (
  SELECT coalesce(pg_partition_root(relation), relation) FROM pg_locks
  WHERE pid = pg_backend_pid() AND mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'))
"""


class PostgreSQL:
    """See :class:`proof.Database`."""

    names = LOG

    def prepare(self, raw: Any) -> None:
        if _all(raw, "SELECT to_regclass('suite.suite_log')")[0][0] is None:
            kinds = {"id": "uuid", "payload": "json", "types": "json", "metadata": "json", "schema_version": "integer"}
            _all(raw, "CREATE SCHEMA IF NOT EXISTS suite")
            _all(raw, f"CREATE TABLE IF NOT EXISTS suite.suite_log (seq bigserial PRIMARY KEY, {log.columns(**kinds)}, "
                      "created_at timestamptz NOT NULL DEFAULT now(), pid integer NOT NULL DEFAULT pg_backend_pid())")  # fmt: skip
        raw.commit()

    def trouble(self, raw: Any) -> str | None:
        if raw.closed:
            return "the connection is closed"
        if raw.autocommit:
            return "the connection is in autocommit"
        status = raw.info.transaction_status
        return None if status in (TransactionStatus.IDLE, TransactionStatus.INTRANS) else f"the transaction is {status.name}"

    def written(self, raw: Any) -> set[Name] | None:
        """A transaction sees what others have committed since it began, and holds a lock on each table that it has written itself."""
        if raw.info.transaction_status == TransactionStatus.IDLE:
            return None
        return set(_all(raw, _WRITTEN))

    def last(self, raw: Any) -> int:
        return int(_all(raw, "SELECT coalesce(max(seq), 0) FROM suite.suite_log")[0][0])

    def events(self, raw: Any, since: int) -> list[Event]:
        columns = re.sub("(payload|metadata|types)", r"\1::text", log.READ)
        return log.decoded(
            _all(raw, f"SELECT {columns} FROM suite.suite_log WHERE seq > {since} AND pid = pg_backend_pid() ORDER BY seq")
        )

    def contents(self, raw: Any) -> dict[Name, Counter[Any]]:
        tables = _all(raw, _TABLES)
        found: dict[Name, Counter[Any]] = {(schema, name): Counter() for schema, name, _ in tables}
        if tables:
            selects = (f"SELECT {number}, t::text FROM {full} t" for number, (*_, full) in enumerate(tables))
            for number, row in _all(raw, " UNION ALL ".join(selects)):
                schema, name, _ = tables[number]
                found[schema, name][row] += 1
        return found

    @contextmanager
    def copy(self, raw: Any, dialect: Any, tables: dict[Name, Counter[Any]]) -> Iterator[Any]:
        dialect = copying.copy(dialect)
        dialect.do_rollback = dialect.do_commit = lambda _: None  # it is the transaction of the test
        engine = CopyEngine(StaticPool(lambda: raw, reset_on_return=None), dialect, make_url("postgresql+psycopg://"))
        full = {(schema, name): text for schema, name, text in _all(raw, _TABLES)}
        names = {name: f"suite_copy_{number}" for number, name in enumerate(tables)}
        _all(raw, "SAVEPOINT suite_copy")
        threshold, raw.prepare_threshold = raw.prepare_threshold, None  # the copies of the next check have other columns
        try:
            for name, rows in tables.items():
                _all(raw, f"CREATE TABLE suite.{names[name]} (LIKE {full[name]})")
                _all(raw, f"INSERT INTO suite.{names[name]} SELECT (x::suite.{names[name]}).* FROM unnest(%s::text[]) x", [list(rows.elements())])
            with engine.connect() as connection:
                yield connection, lambda name: ("suite", names[name]), lambda name: _rows(raw, names[name])
        finally:
            raw.prepare_threshold = threshold
            _all(raw, "ROLLBACK TO SAVEPOINT suite_copy")
            _all(raw, "RELEASE SAVEPOINT suite_copy")


def _rows(raw: Any, name: str) -> Counter[Any]:
    return Counter(row for (row,) in _all(raw, f"SELECT t::text FROM suite.{name} t"))


def _all(raw: Any, sql: str, parameters: Any = None) -> list[Any]:
    with psycopg.Cursor(raw) as cursor:
        cursor.row_factory = psycopg.rows.tuple_row
        cursor.execute(sql if parameters else sql.encode(), parameters)
        return cursor.fetchall() if cursor.description else []

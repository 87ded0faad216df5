"""What capture and event triggers say to each other, so that each write is captured once (why so: triggers/__init__.py)."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Any
from weakref import WeakSet

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from .. import context, encoding
from ..schema import Names
from .buffer import buffer_of, wake
from .plan import Plan

PREFIX = "sqla_events_"

TOLD = ("user_id", "session_id", "instance_id", "metadata", "types")
"""What capture tells triggers about who is writing: settings of PostgreSQL, columns of SQLite's guard."""

_LOOK = {
    "postgresql": "SELECT c.relname FROM pg_catalog.pg_trigger AS t JOIN pg_catalog.pg_class AS c ON c.oid = t.tgrelid "
    "WHERE t.tgname = 'sqla_events_insert' AND t.tgenabled <> 'D'",
    "sqlite": "SELECT tbl_name FROM sqlite_master WHERE type = 'trigger' AND sql LIKE '%/* sqla_events [%'",
}


_SWITCHED = re.compile(r"able\s+(?:always\s+|replica\s+)?trigger\s+(?:all|user)\b")
"""ALTER TABLE … DISABLE TRIGGER ALL, and the like, in lower case."""


@lru_cache(maxsize=4096)
def comment_of(table: str) -> str:
    """The mark of a statement whose rows of a table capture writes. A digest: no name can close the comment."""
    return f"/*sqla_events:{hashlib.sha256(table.encode()).hexdigest()[:16]}*/"


def look(cursor: Any, dialect: str) -> frozenset[str]:
    """Names of the tables that have event triggers."""
    try:
        cursor.execute(_LOOK[dialect])
        return frozenset(row[0] for row in cursor.fetchall())
    finally:
        cursor.close()


class Marks:
    """One engine's knowledge of event triggers, and how it speaks to them."""

    def __init__(self, engine: Engine, names: Names, instance_id: str) -> None:
        self._engine = engine
        self._guard = names.qualified(names.guard)
        self._sqlite = engine.dialect.name == "sqlite"
        self._instance_id = instance_id
        self._making: WeakSet[Any] = WeakSet()
        """Transactions that may have made or dropped triggers."""
        self.changing = 0
        """Whether every write has to look for triggers before it."""
        self.known: frozenset[str] = frozenset()
        """Tables with triggers. Empty: nothing of this costs anything."""

    def listen(self) -> None:
        """Hook in."""
        self.changing = 1  # of connections that are there already, the first that writes looks
        event.listen(self._engine, "connect", self._connect)

    def unlisten(self) -> None:
        """Unhook."""
        event.remove(self._engine, "connect", self._connect)

    def _connect(self, dbapi_connection: Any, record: Any) -> None:
        """A new connection: look which tables have triggers, or where it cannot do that yet, before a write."""
        try:
            self.known = look(dbapi_connection.cursor(), self._engine.dialect.name)
        except self._engine.dialect.loaded_dbapi.Error:
            self.changing = max(self.changing, 1)
        dbapi_connection.rollback()

    def noticed(self, connection: Connection, sql: str) -> None:
        """Text or DDL is executed: it may make, drop or disable triggers. Then every write looks until its transaction ends, and one
        after.
        """
        lower = sql.lower()
        if "trigger" in lower and (PREFIX in lower or _SWITCHED.search(lower)):
            self._making.add(connection.get_transaction())
            self.changing = 2
            wake(connection)

    def ended(self, connection: Connection) -> None:
        """A transaction is over."""
        if (transaction := connection.get_transaction()) is not None:
            self._making.discard(transaction)
        if self.changing == 2 and not self._making:
            self.changing = 1

    def look_again(self, connection: Connection) -> None:
        """Before a write, as triggers have been made or dropped through this engine."""
        self.known = look(connection.connection.cursor(), connection.dialect.name)
        if self.changing == 1:
            self.changing = 0

    # Statements that capture writes ------------------------------------------------------------------------------

    def mark(self, connection: Connection, plan: Plan, sql: str) -> str:
        """The statement, of which the table's trigger is told that capture writes its rows."""
        table = str(plan.table.name)
        if table not in self.known or plan.blind or plan.verb not in plan.codec.operations:
            return sql
        if self._sqlite:
            self._set(connection, "captured = ?", (table,))
            buffer_of(connection).guarded = True
            return sql
        return sql + ("\n" if "--" in sql else " ") + comment_of(table)

    def done(self, connection: Connection) -> None:
        """The statement has run, or failed."""
        buffer = buffer_of(connection)
        if buffer.guarded:
            buffer.guarded = False
            self._set(connection, ", ".join(f"{name} = NULL" for name in ("captured", *TOLD)), ())

    def _set(self, connection: Connection, what: str, values: tuple[Any, ...]) -> None:
        cursor = connection.connection.cursor()
        cursor.execute(f"UPDATE {self._guard} SET {what}", values)
        cursor.close()

    def sees(self, table: sa.Table, cause: Plan) -> bool:
        """Whether a trigger writes what foreign keys made of a captured statement in a table. Not in its own: both databases
        run the actions of foreign keys as part of the statement, which is marked.
        """
        return str(table.name) in self.known and table.name != cause.table.name

    # Statements that triggers write ------------------------------------------------------------------------------

    def tell(self, connection: Connection, table: str) -> bool:
        """Text writes to a table: if it has a trigger, tell that who is writing; False if it has none. SQLite's names have no case."""
        if table not in self.known and not (self._sqlite and table.lower() in {name.lower() for name in self.known}):
            return False
        about, buffer = context.current(), buffer_of(connection)
        if about != context.About() or buffer.told:
            values = _told(about, self._instance_id)
            if self._sqlite:
                self._set(connection, ", ".join(f"{name} = ?" for name in TOLD), tuple(one or None for one in values))
                buffer.guarded = True
            else:
                settings = zip(TOLD, values, strict=True)
                connection.execute(sa.select(*(sa.func.set_config(f"sqla_events.{name}", value, True) for name, value in settings)))
                buffer.told = True
        return True


def _told(about: context.About, instance_id: str) -> tuple[str, ...]:
    special: encoding.Types = {}
    metadata = encoding.dumps(encoding.lower(about.metadata, "/metadata", special)) if about.metadata else ""
    user_id = "" if about.user_id is None else str(about.user_id)
    return user_id, about.session_id or "", instance_id, metadata, encoding.dumps(special)[1:-1]

"""Replay equivalence of one database connection, checked before every COMMIT and ROLLBACK and at the end of each test.

Before the first write of a transaction the contents of all tables are read over the same driver connection. At a check
the events since then are applied to a copy of that, and every table must be equal, row for row. So uncommitted work,
savepoints and flushes that were rolled back are checked too. An event of an update or a deletion that finds no row is a
difference as well.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from sqla_events.errors import EventError
from sqla_events.event import Event
from sqla_events.testing.replay import apply_event, contradiction, plain_table

from .log import DEFAULT_SCHEMA
from .renamed import as_written

Name = tuple[str | None, str]
"""Schema, or None for the connection's own, and name of a table."""


class Database(Protocol):
    """What a proof needs of one kind of database. ``raw`` is the driver's connection."""

    def prepare(self, raw: Any) -> None:
        """Make the log, in a transaction of its own."""

    def contents(self, raw: Any) -> dict[Name, Counter[Any]]:
        """The rows of all tables, in a form that can be compared and put into a copy."""

    def written(self, raw: Any) -> set[Name] | None:
        """The tables that its open transaction can have changed; None where that may be each."""

    def last(self, raw: Any) -> int:
        """The number of the newest event."""

    def events(self, raw: Any, since: int) -> list[Event]:
        """The events behind that number, oldest first."""

    def copy(self, raw: Any, dialect: Any, tables: dict[Name, Counter[Any]]) -> Any:
        """A context manager: (connection to copies of these tables, what renames a table, what reads a copy)."""

    def trouble(self, raw: Any) -> str | None:
        """Why nothing can be asked over the connection now; None where it can."""


class CopyEngine(Engine):
    """An engine that is not hooked itself."""


@dataclass
class Report:
    """What the checks of one test have found."""

    checks: int = 0
    rows: int = 0
    events: int = 0
    differences: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    behind_gaps: list[str] = field(default_factory=list)
    """Differences of tables that a reported gap had written."""
    unchecked: list[str] = field(default_factory=list)


_READS = re.compile(
    r"\s*(?:SELECT|PRAGMA|EXPLAIN|SHOW|VALUES|SET|SAVEPOINT|RELEASE|ROLLBACK\s+TO|BEGIN|COMMIT|ROLLBACK|END|PREPARE)\b", re.IGNORECASE
)
_CHANGES = re.compile(r"\b(?:INSERT|UPDATE|DELETE|nextval|setval)\b", re.IGNORECASE)


def writes(sql: str, context: Any) -> bool:
    """Whether a statement may change a table."""
    if context is not None and (context.isinsert or context.isupdate or context.isdelete or context.isddl):
        return True
    return not _READS.match(sql) or bool(_CHANGES.search(sql))


class Proof:
    """What is known about one driver connection."""

    def __init__(self, database: Database, raw: Any) -> None:
        self.database = database
        self.raw = raw
        self.connections: WeakKeyDictionary[Connection, Any] = WeakKeyDictionary()
        """And the capture that each of them writes by."""
        self.tables: dict[Name, sa.Table] = {}
        """The Table that last wrote, by name: what types the events' values have."""
        self.gaps: set[str] = set()
        self._before: dict[Name, Counter[Any]] | None = None
        self._since = 0

    def before_write(self) -> None:
        """Take note of how things are, unless that is known."""
        if self._before is None and self.database.trouble(self.raw) is None:
            self._before, self._since = self.database.contents(self.raw), self.database.last(self.raw)

    def forget(self) -> None:
        """The transaction is over."""
        self._before = None
        self.gaps.clear()

    def check(self, report: Report, mutate: Callable[[list[Event]], list[Event]]) -> None:
        """Compare, if anything was written."""
        if self._before is None:
            return
        if trouble := self.database.trouble(self.raw):
            report.unchecked.append(trouble)
            return
        written = self.database.written(self.raw)
        for connection, capture in list(self.connections.items()):
            if not connection.closed and not connection.invalidated and connection.connection.dbapi_connection is self.raw:
                capture.drain(connection)
        after = self.database.contents(self.raw)
        events = [as_written(event) for event in mutate(self.database.events(self.raw, self._since))]
        report.checks += 1
        report.rows += sum(rows.total() for rows in after.values())
        report.events += len(events)
        found = self._differences(after, events, written)
        for name, text in found:
            (report.behind_gaps if name[1].lower() in self.gaps else report.differences).append(text)

    def _differences(self, after: dict[Name, Counter[Any]], events: list[Event], written: set[Name] | None) -> list[tuple[Name, str]]:
        assert self._before is not None
        named = {name_of(event) for event in events}
        changed = {name for name, rows in after.items() if rows != self._before.get(name, Counter())}
        touched = named | (changed if written is None else changed & written)
        concerned = {name: self._before.get(name, Counter()) for name in touched if name in after}
        found = [(name, f"{name}: events of a table that is not there") for name in named - after.keys()]
        if not concerned:
            return found
        dialect = next(iter(self.connections)).dialect
        with self.database.copy(self.raw, dialect, concerned) as (connection, place, rows_of):
            found += self._apply(connection, place, events, concerned)
            for name in () if any(": event " not in text for _, text in found) else concerned:
                here, there = after[name], rows_of(name)
                found += [(name, f"{name}: only in the database: {row}") for row in list((here - there).elements())[:5]]
                found += [(name, f"{name}: only in the copy: {row}") for row in list((there - here).elements())[:5]]
        return found

    def _apply(self, connection: Any, place: Any, events: list[Event], concerned: Any) -> list[tuple[Name, str]]:
        found, plain = [], {}
        for event in events:
            name = name_of(event)
            if name not in concerned:
                continue
            try:
                if name not in plain:
                    plain[name] = self._plain(name, connection.dialect, *place(name))
                if wrong := contradiction(connection, plain[name], event):
                    found.append((name, f"{name}: {wrong}"))
                apply_event(connection, plain[name], event)
            except EventError as error:
                found.append((name, f"{name}: {error}"))
            except (sa.exc.SQLAlchemyError, LookupError, TypeError, ValueError) as error:
                found.append((name, f"{name}: {type(error).__name__}: {error} of {event.operation} {event.payload}"))
                break  # on PostgreSQL nothing more can be asked
        return found

    def _plain(self, name: Name, dialect: Any, schema: str | None, copy_name: str) -> sa.Table:
        return plain_table(self.tables[name], dialect, name=copy_name, schema=schema)


def name_of(event: Event) -> Name:
    """The name of the table that an event is about."""
    return None if event.schema == DEFAULT_SCHEMA else event.schema, event.entity or ""

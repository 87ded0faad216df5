"""What one Connection has captured and not written yet.

It belongs to the Connection, not to the session, the thread or ``Connection.info`` (which two Connections of a StaticPool
share): a savepoint, a rollback and a failed flush then concern exactly what they undo.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any
from weakref import ref

import msgspec
from sqlalchemy.engine import Connection

from ..errors import CaptureError
from . import commits
from .outbox import Captured

ATTRIBUTE = "_sqla_events_buffer"


class Written(msgspec.Struct, eq=False):
    """The events of a transaction, in the table or on their way: how many of each type, and which ids are asked for.

    So a transaction of a million rows keeps a few numbers.
    """

    counts: dict[str, int] = {}
    ids: list[tuple[Any, str]] = []
    """(id, type) of those whose handlers somebody waits for."""
    lost: bool = False
    """A write is done, and what should become of it in the log has failed: the transaction must not commit."""

    def add(self, event_type: str, event_id: Any = None, count: int = 1) -> None:
        """One more, or as many as a statement has written itself; with its id where somebody waits for it."""
        if count:
            self.counts[event_type] = self.counts.get(event_type, 0) + count
        if event_id is not None:
            self.ids.append((event_id, event_type))

    def add_event(self, event: Captured, *, with_id: bool) -> None:
        """One that capture has made."""
        event_type = event[4].type
        self.counts[event_type] = self.counts.get(event_type, 0) + 1
        if with_id:
            self.ids.append((uuid.UUID(event[0]), event_type))

    def add_all(self, events: Sequence[Captured], *, with_ids: bool) -> None:
        """What one statement wrote."""
        counts = self.counts
        for one in events:
            event_type = one[4].type
            counts[event_type] = counts.get(event_type, 0) + 1
        if with_ids:
            self.ids += [(uuid.UUID(one[0]), one[4].type) for one in events]

    def copy(self) -> Written:
        """As it is now: for a savepoint."""
        return Written(dict(self.counts), list(self.ids), self.lost)


Posted = dict[tuple[str | None, str], dict[str | None, dict[str, Any] | None]]
"""Columns of rows, by the schema and name (in lower case) of their table, and by the text of their key; None of a row of
which nobody knows here what it is."""

MOST_STATES = 20_000
"""Objects that a transaction remembers before it looks for those that turned out not to have changed."""

MOST_POSTED = 10_000
"""Rows of a table of which it is remembered what was written to them; a bulk method may write millions."""


def _copy(posted: Posted) -> Posted:
    return {place: rows.copy() for place, rows in posted.items()}


def _place(table: Any) -> tuple[str | None, str]:
    return table.schema, str(table.name).lower()


def _none() -> None:
    """What a reference to nothing tells."""


class Buffer(msgspec.Struct, eq=False):
    """Rows for the outbox in the order of their writes, and the statements that run now."""

    rows: list[tuple[Any, ...]] = []
    plans: list[Any] = []
    states: dict[Any, Any] = {}
    """What the session knows of rows that are about to be written, by table and key: ORM states."""
    leaving: dict[Any, Any] = {}
    """The same of rows that are about to be deleted."""
    most_states: int = MOST_STATES
    posted: Posted = {}
    """What was written to rows without taking note of it in their objects, by the unit of work, or by the database."""
    astray: set[str] = set()
    """Names, in lower case, of tables whose rows were written past their objects, and nobody knows which: of old values only
    ``posted`` tells.
    """
    transaction: Any = _none
    """What tells the transaction that these are of, as long as it lives."""
    proxied: Any = None
    """The proxy of the driver's connection whose transaction all of this is of: a Connection has another one when its own was lost."""
    written: Written = msgspec.field(default_factory=Written)
    marks: dict[str, tuple[Written, Posted, set[str]]] = {}
    """What was written when a savepoint was made, and what was ``posted`` and ``astray``."""
    after: Any = None
    """What waits to be told how the COMMIT went, where somebody waits for handlers."""
    checked: bool = False
    """The connection is not in AUTOCOMMIT."""
    guarded: bool = False
    """SQLite's guard says something that holds for the statement that runs."""
    told: bool = False
    """Triggers have been told in this transaction who is writing."""
    executed: Any = None
    """What is to be called with the result of the statement that was planned last: of the capture that planned it, since engines
    that share a dialect may be captured each in its own way.
    """

    def plan_of(self, context: Any) -> Any:
        """The plan of the execution that runs; None if it has none."""
        plans = self.plans
        return plans[-1] if plans and plans[-1].context is context else None

    @property
    def lost(self) -> bool:
        """Whether something is written that has no event: an error came in between, a listener's too, and was caught."""
        return self.written.lost or (bool(self.plans) and any(getattr(plan, "ran", False) for plan in self.plans))

    @property
    def unwritten(self) -> bool:
        """Whether a COMMIT now would be one without events."""
        return bool(self.rows or self.plans or self.written.lost)

    def clear(self) -> None:
        """Forget everything: the transaction is over."""
        self.rows.clear()
        self.plans.clear()
        self.states.clear()
        self.leaving.clear()
        self.posted.clear()
        self.astray.clear()
        if self.written.counts or self.written.lost:
            self.written = Written()  # whoever was told of a COMMIT has the old one
        self.marks.clear()
        self.guarded = self.told = self.checked = False

    def renew(self, connection: Connection) -> None:
        """What is in here was lost with the driver's connection."""
        self.clear()
        self.proxied = connection._dbapi_connection

    def states_of(self, connection: Connection, name: str = "states") -> dict[Any, Any]:
        """What is remembered in this transaction: ``states``, or those that are ``leaving``. Nobody tells when one ends that has
        written nothing.
        """
        transaction = connection._transaction
        if self.transaction() is not transaction:
            self.states.clear()
            self.leaving.clear()
            self.posted.clear()
            self.astray.clear()
            self.transaction = _none if transaction is None else ref(transaction)
        states: dict[Any, Any] = getattr(self, name)
        return states

    def drop_leftovers(self) -> None:
        """Keep the objects that are about to be updated or deleted still: a flush may have as many."""
        self.states = {place: state for place, state in self.states.items() if state.committed_state}
        self.leaving = {place: state for place, state in self.leaving.items() if not state._deleted}
        self.most_states = max(2 * len(self.states), 2 * len(self.leaving), MOST_STATES)

    def stray(self, table: Any) -> None:
        """Rows of a table are written past their objects, whose Table may be another one of this name."""
        self.stray_named(str(table.name))

    def stray_named(self, name: str) -> None:
        """The same, of tables of this name, in whichever case: SQLite's names have none."""
        name = name.lower()
        self.astray.add(name)
        for place in [one for one in self.posted if one[1] == name]:
            del self.posted[place]

    def is_astray(self, table: Any) -> bool:
        """Whether rows of a table may have been written past their objects."""
        return bool(self.astray) and str(table.name).lower() in self.astray

    def posted_of(self, table: Any) -> dict[str | None, dict[str, Any] | None]:
        """What is posted of a table's rows, by key."""
        return self.posted.get(_place(table), {})

    def doubt(self, table: Any) -> None:
        """A statement that objects have taken note of may have changed rows of which they do not know what they were."""
        if (place := _place(table)) in self.posted:
            self.posted[place] = dict.fromkeys(self.posted[place])

    def post(self, table: Any, key: str | None, values: dict[str, Any]) -> None:
        """Columns of a row of which no object takes note."""
        rows = self.posted.setdefault(_place(table), {})
        if len(rows) < MOST_POSTED or key in rows:
            rows[key] = values
        else:
            self.astray.add(str(table.name).lower())

    def mark(self, savepoint: str) -> None:
        """A savepoint is made."""
        self.marks[savepoint] = self.written.copy(), _copy(self.posted), self.astray.copy()

    def back_to(self, savepoint: str) -> None:
        """All that came after it is undone."""
        self.rows.clear()
        self.plans.clear()
        written, posted, astray = self.marks.get(savepoint) or (Written(), {}, {name for _, name in self.posted})
        self.written, self.posted, self.astray = written.copy(), _copy(posted), astray.copy()

    def begin(self, connection: Connection, commit: commits.Commit) -> None:
        """A transaction is about to write: what its first write needs.

        :param commit: is to be called before its COMMIT.
        :raises CaptureError: if every statement commits by itself: the event could be lost or lie.
        """
        if self.proxied is not connection._dbapi_connection:
            self.renew(connection)
        if self.transaction() is not connection._transaction:
            self.states_of(connection)
        if self.checked:
            return
        if _commits_each(connection):
            raise CaptureError(
                "the connection is in AUTOCOMMIT, where a write and its event cannot commit together; "
                "write in a transaction, or exclude the table from capture"
            )
        self.checked = True
        commits.before(connection, commit, self)


def _commits_each(connection: Connection) -> bool:
    """Whether the driver commits every statement: it may have been told so without SQLAlchemy."""
    proxied: Any = connection._dbapi_connection
    raw = proxied.dbapi_connection
    if connection.dialect.name == "sqlite" and raw.isolation_level is None:  # whose BEGIN is somebody's own, if there is one
        return not getattr(proxied.driver_connection, "in_transaction", True)
    return getattr(raw, "autocommit", False) is True  # sqlite3 has a third answer


def wake(connection: Connection) -> None:
    """Let a Connection dispatch its engine's events from now on: see ``quiet``."""
    connection._has_events = True


def held(connection: Connection) -> Buffer | None:
    """The buffer of a connection, if it has one. Written out where each call counts."""
    buffer: Buffer | None = connection.__dict__.get(ATTRIBUTE)
    return buffer


def buffer_of(connection: Connection) -> Buffer:
    """The buffer of a connection's transaction, made on first use."""
    buffer: Buffer | None = connection.__dict__.get(ATTRIBUTE)
    if buffer is None:
        transaction = connection._transaction
        buffer = connection.__dict__[ATTRIBUTE] = Buffer(
            proxied=connection._dbapi_connection, transaction=_none if transaction is None else ref(transaction)
        )
    elif buffer.proxied is not connection._dbapi_connection:
        buffer.renew(connection)
    return buffer

"""Capture: every write of an engine becomes rows of the outbox, on the connection and in the transaction of the write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import cache, partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session
from sqlalchemy.pool import SingletonThreadPool, StaticPool

from ..bridge import refuse_autocommit
from ..errors import CaptureError
from ..schema import Tables
from ..signals import Gap, Signals, logger
from . import commits, declared, outbox
from .buffer import ATTRIBUTE, Buffer, Written, buffer_of, held, wake
from .captured import Captured
from .carried import Carrier
from .catalog import Catalog
from .flushed import forget_tables
from .listener import Listener
from .make import Maker
from .marks import Marks
from .plan import Plan, Row, Shape
from .quiet import quietly
from .rows import forget_attributes, known_values
from .settings import CaptureSettings
from .within import Writer

After = Callable[[bool], None]
Committing = Callable[[Written], After]
"""Called right before COMMIT with the transaction's events; what it returns is called when it went well
(True), or did not (False)."""

DRAIN_AT = 1000

FAILED_TRANSACTION = "25P02"
"""SQLSTATE of what comes after a statement that has failed."""

_committed: ContextVar[tuple[After, ...]] = ContextVar("sqla_events_committed", default=())


class Capture:
    """The hooks on one engine."""

    def __init__(
        self,
        engine: Engine | AsyncEngine,
        settings: CaptureSettings,
        tables: Tables,
        instance_id: str,
        committing: Committing,
        signals: Signals,
        wants_ids: bool = False,
    ) -> None:
        self._engine = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
        self._settings = settings
        self._tables = tables
        self._committing = committing
        self._signals = signals
        self._wants_ids = wants_ids
        self._captured = Captured(settings, self._engine.dialect, tables.names)
        self._maker = Maker(settings, instance_id)
        self._marks = Marks(self._engine, tables.names, instance_id)
        on_gap = None if settings.on_gap == "ignore" else self._gap
        self._listener = Listener(
            self._engine, self._captured.codec_of, self._emit, on_gap, self._transaction_text, settings.old_values,
            self._captured.cascades, self._marks, *self._writers(), self._commit, not wants_ids,
        )  # fmt: skip
        # Two Connections may share one of the driver's, and the COMMIT of one is that of both: nothing may wait.
        self._drain_at = 1 if isinstance(self._engine.pool, (StaticPool, SingletonThreadPool)) else DRAIN_AT
        self._installed = False
        self._checkin = partial(_finish)  # one of our own: listeners are told apart by their function
        self._reset = partial(commits.abandoned)

    # Hooks -------------------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Hook in; doing it again changes nothing."""
        if self._installed:
            return
        refuse_autocommit(self._engine)
        self._forget()
        with quietly(self._engine):
            self._listen()
        commits.watch(self._engine.dialect)
        declared.watch(self)
        if self._wants_ids:
            _listen_to_sessions()
        self._installed = True

    def _listen(self) -> None:
        self._listener.listen()
        self._marks.listen()
        for name in _TRANSACTION:
            event.listen(self._engine, name, getattr(self, f"_on_{name}"))
        for target, name, function in self._around:
            event.listen(target, name, function)

    def uninstall(self) -> None:
        """Take every hook off again."""
        if not self._installed:
            return
        self._marks.unlisten()
        self._listener.unlisten()
        for name in _TRANSACTION:
            event.remove(self._engine, name, getattr(self, f"_on_{name}"))
        for target, name, function in self._around:
            event.remove(target, name, function)
        declared.unwatch(self)
        self._forget()  # which mapped classes have what: they may be gone before this is used again
        self._installed = False

    @property
    def _around(self) -> list[tuple[Any, str, Any]]:
        hooks: list[tuple[Any, str, Any]] = [(self._engine, "checkin", self._checkin)] if self._wants_ids else []
        if commits.commits_on_return(self._engine):
            hooks.append((self._engine, "reset", self._reset))
        if self._settings.enable_read:
            hooks.append((Session, "loaded_as_persistent", self._read))
        return hooks

    # Transactions ------------------------------------------------------------------------------------------------

    def _on_commit(self, connection: Connection) -> None:
        after = self._commit(connection)
        if after is not None:
            commits.after(connection, after)

    def _commit(self, connection: Connection) -> After | None:
        """Write what waits; returns who is to be told when it is committed."""
        if self._marks.changing:
            self._marks.ended(connection)
        buffer: Buffer | None = connection.__dict__.get(ATTRIBUTE)
        if buffer is None or buffer.proxied is not connection._dbapi_connection:
            return None
        try:
            if buffer.written.lost or buffer.plans:
                self._refuse_loss(buffer)
            if buffer.rows:
                self._drain(connection, buffer)
        except BaseException as error:
            if getattr(error.__cause__, "sqlstate", None) == FAILED_TRANSACTION:  # PostgreSQL makes a ROLLBACK of its COMMIT
                buffer.clear()
                return None
            # SQLAlchemy takes a transaction whose commit hook raised for over and gives its connection back as it is:
            # the next one to get it would commit our half.
            buffer.clear()
            commits.undo(connection)
            raise
        after = self._committing(buffer.written) if buffer.written.counts else None
        if not self._wants_ids:
            del connection.__dict__[ATTRIBUTE]
            return after
        buffer.clear()
        if after is not None:  # who waits for handlers does so when all that the session writes is committed
            buffer.after = after
            _committed.set((*_committed.get(), after))
        return None

    def _refuse_loss(self, buffer: Buffer) -> None:
        if buffer.lost:
            raise CaptureError(
                "a write of this transaction has no event, because of an earlier error: it cannot be committed; "
                "roll it back, or back to a savepoint before that write"
            )

    def _on_prepare_twophase(self, connection: Connection, xid: Any) -> None:
        self._refuse_loss(buffer_of(connection))
        self._drain(connection, buffer_of(connection))

    def _on_commit_twophase(self, connection: Connection, xid: Any, is_prepared: bool) -> None:
        self._on_commit(connection)

    def _on_rollback(self, connection: Connection) -> None:
        if self._marks.changing:
            self._marks.ended(connection)
        buffer = held(connection)
        if buffer is None:
            return
        buffer.clear()
        failed, buffer.after = buffer.after, None
        if failed in (waiting := _committed.get()):  # the COMMIT itself failed
            _committed.set(tuple(other for other in waiting if other is not failed))
            failed(False)

    def _on_rollback_twophase(self, connection: Connection, xid: Any, is_prepared: bool) -> None:
        self._on_rollback(connection)

    def _on_savepoint(self, connection: Connection, name: str | None) -> None:
        buffer = buffer_of(connection)
        self._drain(connection, buffer)
        if name is None:  # SQLAlchemy names it after this, by the next number
            name = f"sa_savepoint_{connection._Connection__savepoint_seq + 1}"  # type: ignore[attr-defined]
        buffer.mark(name)

    def _on_release_savepoint(self, connection: Connection, name: str, _: Any) -> None:
        """pysqlite's transaction begins with the first write: a savepoint before that is the transaction, and RELEASE its COMMIT."""
        if connection.dialect.name == "sqlite" and (buffer := held(connection)) is not None:
            self._drain(connection, buffer)

    def _on_rollback_savepoint(self, connection: Connection, name: str, _: Any) -> None:
        buffer_of(connection).back_to(name)

    def _transaction_text(self, connection: Connection, word: str, name: str | None) -> None:
        """Somebody writes SAVEPOINT or COMMIT, or has written ROLLBACK as text: what is captured must be on the right side of it."""
        buffer = buffer_of(connection)
        if word == "savepoint" and name is not None:
            self._on_savepoint(connection, name)
        elif word == "rollback_savepoint" and name is not None:
            self._on_rollback_savepoint(connection, name, None)
        elif word == "rollback":
            buffer.clear()
        elif word == "release_savepoint" and name is not None:
            self._on_release_savepoint(connection, name, None)
        else:
            self._drain(connection, buffer)

    # Events ------------------------------------------------------------------------------------------------------

    def note(self, connection: Connection, event_id: Any, event_type: str) -> None:
        """An event was published by hand in this connection's transaction."""
        wake(connection)
        buffer_of(connection).written.add(event_type, event_id if self._wants_ids else None)

    def _drain(self, connection: Connection, buffer: Buffer) -> None:
        if not buffer.rows:
            return
        rows, buffer.rows = buffer.rows, []
        try:
            outbox.write(connection, self._tables, rows)
        except BaseException:
            buffer.written.lost = True
            raise

    def drain(self, connection: Connection) -> None:
        """Write what is captured and not written yet, so that what follows comes after it in the log."""
        self._drain(connection, buffer_of(connection))

    def _emit(self, connection: Connection, buffer: Buffer, plan: Plan, rows: Sequence[Row]) -> None:
        if len(rows) == 1:
            event = self._maker.event(connection, plan, rows[0])
            if event is None:
                return
            buffer.rows.append(event)
            buffer.written.add_event(event, with_id=self._wants_ids)
        else:
            events = self._maker.events(connection, plan, rows)
            buffer.rows += events
            buffer.written.add_all(events, with_ids=self._wants_ids)
        full = len(buffer.rows) >= self._drain_at or ((self._marks.known or buffer.plans) and self._now(buffer, plan))
        if full and plan.shape.verb != "read":  # a result is being fetched: its connection is busy
            self._drain(connection, buffer)

    def _now(self, buffer: Buffer, plan: Plan) -> bool:
        """Whether what is captured must be in the log before something that writes its events itself: the table's trigger,
        or a statement around this one.
        """
        return plan.table.name in self._marks.known or any(
            getattr(outer, "within", None) or getattr(outer, "carry", None) for outer in buffer.plans if outer is not plan
        )

    def _gap(self, schema: str | None, table: str, statement: str, reason: str) -> None:
        """A write that cannot be seen into; those to tables that are not captured, and to Alembic's, are nobody's loss."""
        if table == "alembic_version" or not self._captured.is_named(schema, table):
            return
        self._signals.emit(Gap(statement[:1000], reason, table))
        message = f"{reason} writes to {table!r} and is not captured: {statement[:200]}"
        if self._settings.on_gap == "raise":
            raise CaptureError(
                f"{message}; write it with insert(), update() or delete(), make an event trigger for the table, "
                "or set capture.on_gap to 'warn' or 'ignore'"
            )
        logger.warning("%s", message)

    def _read(self, session: Session, instance: Any) -> None:
        """An entity was loaded: one event for each of its captured tables, written when the transaction commits."""
        state = sa.inspect(instance)
        if session.get_bind(state.mapper).engine.pool is not self._engine.pool:
            return
        connection = session.connection(bind_arguments={"mapper": state.mapper})
        for table in state.mapper.tables:
            codec = self._captured.codec_of(table)
            if codec is not None and "read" in codec.operations:
                shape = Shape(table, "read", None, given=False, upsert=False, sorted=False)
                plan = Plan(None, shape, codec, many=False, want_old=False)
                values = known_values(state, table)
                key = {name: values[name] for name in codec.key if name in values}
                wake(connection)
                self._emit(connection, buffer_of(connection), plan, [Row(key, after=values)])

    # What is captured --------------------------------------------------------------------------------------------

    def declared(self, part: Any, table: sa.Table) -> None:
        """A table has a further column, or refers to another one."""
        if self._captured.knows(part, table):
            self._forget()

    def _forget(self) -> None:
        """Look at every table anew."""
        self._captured.forget()
        self._listener.forget()
        forget_attributes()
        forget_tables()

    def _writers(self) -> tuple[Writer | None, Carrier | None]:
        """What lets statements on PostgreSQL write their events themselves: of many rows, of one."""
        s = self._settings
        if self._engine.dialect.name != "postgresql" or not s.carry:
            return None, None
        catalog = Catalog(self._tables.names)
        writer = Writer(catalog, s.max_payload_bytes, s.old_values, self._maker.shared, self.drain)
        return None if self._wants_ids else writer, Carrier(catalog, self._maker.event, self._wants_ids, s.max_payload_bytes is not None)


_TRANSACTION = (
    "commit", "rollback", "savepoint", "release_savepoint", "rollback_savepoint",
    "prepare_twophase", "commit_twophase", "rollback_twophase",
)  # fmt: skip


@cache
def _listen_to_sessions() -> None:
    """Once and for good: SQLAlchemy does not stand listeners on a class that come and go while other threads commit."""
    event.listen(Session, "after_commit", _finish)


def _finish(*_: Any) -> None:
    """A session has committed, or a connection is given back: whatever has committed in this thread or task is told so."""
    waiting = _committed.get()
    if waiting:
        _committed.set(())
        for after in waiting:
            after(True)

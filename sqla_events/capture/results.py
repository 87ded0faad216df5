"""What becomes of statements that have run: rows, from what came back and what else is known, for which events are made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain, compress
from typing import Any

from sqlalchemy.engine import Connection

from ..errors import CaptureError
from . import ctes, gaps, pipeline, quiet, ride, within
from .buffer import ATTRIBUTE, Buffer, buffer_of
from .carried import Carrier
from .cascades import Cascades
from .evaluated import alike
from .marks import Marks
from .plan import Plan, Row, moves
from .preparing import Preparation
from .rows import (
    deleted,
    deleted_row,
    dropped,
    inserted,
    inserted_one,
    matched,
    post_caused,
    post_synchronized,
    sets_of,
    updated,
    updated_row,
    whole_rows,
)
from .select import gone, portions, refresh, still_there, went_in

PORTION = 1000
"""Rows that are events in Python at the same time."""

Emit = Callable[[Connection, Buffer, Plan, Sequence[Row]], None]


class Results:
    """Takes the results of one engine's statements."""

    def __init__(
        self,
        emit: Emit,
        on_text: gaps.OnText,
        cascades: Cascades | None,
        marks: Marks,
        writer: within.Writer | None,
        carrier: Carrier | None,
        preparing: Preparation,
    ) -> None:
        self._emit = emit
        self._on_text = on_text
        self._cascades = cascades
        self._marks = marks
        self._writer = writer
        self._carrier = carrier
        self._preparing = preparing

    def after(
        self, connection: Connection, dbapi_cursor: Any, sql: str, parameters: Any, context: Any, executemany: bool
    ) -> None:
        """It has been executed."""
        buffer: Buffer | None = connection.__dict__.get(ATTRIBUTE)
        if buffer is None:
            return
        if buffer.guarded:
            self._marks.done(connection)
        plans = buffer.plans
        plan = plans[-1] if plans else None
        if plan is None or plan.context is not context:
            self._after_other(connection, dbapi_cursor, sql, context)
            return
        if type(plan) is Plan and not (plan.ride or plan.within):  # nothing comes back that is ours
            rows = dbapi_cursor.rowcount
            if rows < 0 and plan.shape.verb != "create":
                pipeline.settle(dbapi_cursor, connection.dialect)
                rows = dbapi_cursor.rowcount
            if plan.carry is not None and self._carrier is not None:
                self._carrier.ran(buffer, plan, rows)
                plans.pop()  # of it there is nothing more to find out
            elif plan.sole and dbapi_cursor.description is None:  # or the driver may not have counted yet
                plans.pop()
                if rows:
                    self._matched(connection, buffer, plan, context)
            else:
                plan.ran, plan.rows = True, rows
            return
        pipeline.settle(dbapi_cursor, connection.dialect)
        try:
            self._take_off(connection, buffer, plan, dbapi_cursor, context)
        except BaseException:
            buffer.written.lost = True
            raise

    def _matched(self, connection: Connection, buffer: Buffer, plan: Plan, context: Any) -> None:
        """One row was updated or deleted."""
        try:
            given = sets_of(plan, context)[0]
            row = updated_row(plan, buffer, given) if plan.shape.verb == "update" else deleted_row(plan, buffer, given)
            self._emit(connection, buffer, plan, (row,))
        except BaseException:
            buffer.written.lost = True
            raise

    def _after_other(self, connection: Connection, dbapi_cursor: Any, sql: str, context: Any) -> None:
        if context is None or context.compiled is None or context.is_text:
            gaps.told_after(connection, sql, self._on_text)
        elif context.execution_options.get(pipeline.WAITS):
            pipeline.settle(dbapi_cursor, connection.dialect)

    def _take_off(self, connection: Connection, buffer: Buffer, plan: Any, dbapi_cursor: Any, context: Any) -> None:
        if isinstance(plan, ctes.Caught):
            found, dbapi_cursor = ctes.take_off(buffer.plans.pop(), dbapi_cursor)
            for one, rows in found:
                self._tell(connection, buffer, one, whole_rows(one, rows))
            plan = buffer.plan_of(context)
        if plan is None:
            return
        if (plan.ride or plan.within) and not plan.own:
            take_off = within.take_off if plan.within else ride.take_off
            came = 0
            for rows in take_off(plan, dbapi_cursor, context):
                came += len(rows)
                self.came_back(connection, buffer, plan, rows)
            if plan.within:
                if plan.verb == "update" and not (plan.shape.synchronized and alike(plan.codec, context)):
                    buffer.stray(plan.table)
                elif plan.verb != "create":
                    buffer.doubt(plan.table)
                buffer.written.add(plan.within.type, count=plan.carried)
            if plan.frame:
                plan.frame.rows = came + plan.carried
        plan.ran, plan.rows = True, getattr(dbapi_cursor, "rowcount", -1)

    def came_back(self, connection: Connection, buffer: Buffer, plan: Plan, rows: list[dict[str, Any]]) -> None:
        if not plan.whole or (plan.before is not None and moves(plan)):
            plan.rode += rows
        elif plan.reached is None:
            self._tell(connection, buffer, plan, whole_rows(plan, rows))
        else:
            plan.reached.held += whole_rows(plan, rows)

    def executed(self, connection: Connection, buffer: Buffer, context: Any) -> None:
        """An execution has all that the database answered; called by its context, or after it: see ``quiet``."""
        plan = buffer.plans[-1]
        if plan.context is context:
            buffer.plans.pop()
            if plan.carry is None:
                self._done(connection, buffer, plan, context)

    def _done(self, connection: Connection, buffer: Buffer, plan: Plan, context: Any) -> None:
        try:
            rows = self._written(connection, buffer, plan, context)
            if plan.reached is not None:
                self._cascaded(connection, buffer, plan, [*plan.reached.held, *rows])
            elif plan.many or plan.whole or plan.codec.triggered:
                self._tell(connection, buffer, plan, rows)
            elif rows:
                self._emit(connection, buffer, plan, tuple(rows))
        except BaseException:
            buffer.written.lost = True
            raise

    def _written(self, connection: Connection, buffer: Buffer, plan: Plan, context: Any) -> Iterable[Row]:
        """The rows that were written."""
        if plan.own and not plan.done and (plan.whole or plan.ride or (plan.shape.verb != "create" and context.rowcount < 0)):
            raise CaptureError(
                f"a do_executemany listener has executed a statement on {plan.table.fullname}, and nothing tells which rows it has "
                "written; let it leave such statements to SQLAlchemy, or exclude the table from capture"
            )
        if plan.whole:
            return self._whole(connection, plan)
        if plan.blind:
            buffer.stray(plan.table)
            return ()
        if plan.shape.verb == "create":
            if dropped(plan, context):
                plan.counts = went_in(connection, plan, context.compiled_parameters)
            return inserted(plan, context) if plan.many else inserted_one(plan, context)
        sets = matched(plan, context)
        if sets is None:
            there = still_there(connection, plan, context.compiled_parameters, context.rowcount)
            sets = [*compress(sets_of(plan, context), there)]
        if plan.foretold is not None:
            return plan.foretold if sets else ()
        return updated(plan, buffer, sets) if plan.shape.verb == "update" else deleted(plan, buffer, sets)

    def moved(self, connection: Connection, buffer: Buffer, plan: Plan) -> None:
        """One set of many has moved rows to other keys, and the next is to run."""
        rows = self._whole(connection, plan)
        if plan.reached is None:
            self._tell(connection, buffer, plan, rows)
        else:
            plan.reached.held += rows

    def _whole(self, connection: Connection, plan: Plan) -> list[Row]:
        rows, plan.rode = plan.rode, []
        if not rows:
            return []
        if plan.before is not None and moves(plan) and len(rows) < len(plan.before):
            if not plan.codec.key:
                self._preparing.missed(plan, "an UPDATE that has left some of its rows as they were")
                return []
            plan.before = [*gone(connection, plan, rows)]
        return whole_rows(plan, rows)

    def _tell(self, connection: Connection, buffer: Buffer, plan: Plan, rows: Iterable[Row]) -> None:
        """A portion at a time: of a statement with a million sets of parameters, no million rows are made at once."""
        for some in portions(rows, PORTION):
            if plan.codec.triggered and plan.shape.verb != "delete":
                refresh(connection, plan, some)
            if plan.shape.synchronized:
                post_synchronized(plan, buffer, some)
            self._emit(connection, buffer, plan, some)

    def _cascaded(self, connection: Connection, buffer: Buffer, plan: Plan, rows: list[Row]) -> None:
        """What a statement wrote and what the database changed with it, in an order that foreign keys allow on a replay."""
        assert self._cascades is not None
        caused = self._cascades.changed(connection, plan, plan.reached, rows, self._preparing.missed) if rows else ()
        own = ((plan, rows),)
        for one, of_one in chain(caused, own) if plan.verb == "delete" else chain(own, caused):
            if one is plan:
                self._tell(connection, buffer, one, of_one)
                continue
            post_caused(one, buffer, of_one)
            if not self._marks.sees(one.table, plan):
                self._emit(connection, buffer, one, of_one)

    def failed(self, context: Any) -> None:
        """A statement failed. SQLite keeps what its earlier sets of parameters wrote, unless the caller rolls back."""
        connection, execution = context.connection, context.execution_context
        if connection is None or execution is None:
            return
        _hide_ride(context, execution)
        quiet.failed(execution)
        buffer = buffer_of(connection)
        if buffer.guarded:
            self._marks.done(connection)
        of_driver = isinstance(context.original_exception, connection.dialect.loaded_dbapi.Error)
        self._give_up(connection, buffer, context, of_driver)
        if of_driver and connection.dialect.name == "sqlite" and _rolled_back(connection, buffer):
            buffer.clear()

    def _give_up(self, connection: Connection, buffer: Buffer, context: Any, of_driver: bool) -> None:
        """The plans of an execution that has failed."""
        execution = context.execution_context
        if buffer.written.counts and gaps.may_have_rolled_back(context.statement, execution, of_driver):
            buffer.written.lost = True
        while (plan := buffer.plan_of(execution)) is not None:
            buffer.plans.pop()
            carry = getattr(plan, "carry", None)
            if carry is not None and self._carrier is not None:
                self._carrier.failed(plan, context)
            if self._writer is not None and getattr(plan, "within", None):
                self._writer.failed(plan, context)
            if not of_driver and _has_run(execution.cursor):
                # a listener's error, after the statement
                if carry is not None and self._carrier is not None:
                    self._carrier.ran(buffer, plan, execution.cursor.rowcount)
                else:
                    buffer.written.lost = True
            if type(plan) is Plan and connection.dialect.name == "sqlite":
                self._left(connection, buffer, plan, execution)

    def _left(self, connection: Connection, buffer: Buffer, plan: Plan, execution: Any) -> None:
        """What SQLite keeps of a statement that has failed."""
        if plan.codec.replacing.keeps(plan) or (plan.ran and plan.counts is None and not plan.whole):
            buffer.written.lost = True  # rows of FAIL, or of the batches before
        elif plan.counts is not None:
            self._done(connection, buffer, plan, execution)


def _hide_ride(context: Any, execution: Any) -> None:
    """An error, and whoever listens to errors after us, shows what the caller has written, without what was to ride along."""
    sent, written = quiet.sent(execution)
    shown = context.statement
    if sent == written or shown is None:
        return
    # A listener may have added something; of long ones SQLAlchemy has a type that shows their ends.
    context.statement = type(shown)(shown.replace(sent, written))
    if getattr(context.sqlalchemy_exception, "statement", None) is not None:
        context.sqlalchemy_exception.statement = context.statement


def _rolled_back(connection: Connection, buffer: Buffer) -> bool:
    """Whether SQLite has undone a transaction that had written something: ON CONFLICT ROLLBACK, a full disk."""
    proxied: Any = connection._dbapi_connection
    wrote = not all(kind.endswith(".read") for kind in buffer.written.counts)
    return wrote and not getattr(getattr(proxied, "driver_connection", None), "in_transaction", True)


def _has_run(dbapi_cursor: Any) -> bool:
    """Whether a statement has been executed that may have written something."""
    return dbapi_cursor is not None and (dbapi_cursor.rowcount > 0 or dbapi_cursor.description is not None)

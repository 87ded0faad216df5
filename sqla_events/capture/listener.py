"""The listeners on one engine: which statement writes what, and what its rows were and are.

Every write that SQLAlchemy makes passes ``before_cursor_execute`` of the engine and has a result, whoever asked for it; so
they are the base of truth (mapper events alone miss association rows, bulk methods, set-based statements). Mapper events
lend only what no statement knows: the objects behind a flush, for their old values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any
from weakref import ref

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.sql.elements import ReleaseSavepointClause, RollbackToSavepointClause, SavepointClause

from . import commits, ctes, flushed, gaps, many, pipeline, quiet, ride, within
from .buffer import ATTRIBUTE, Buffer, buffer_of, held, wake
from .carried import Carrier, carrying
from .cascades import Cascades
from .codec import TableCodec
from .kept import ByIdentity
from .marks import Marks
from .plan import Plan, Program, Row, Shape, program, shape_of
from .preparing import Preparation
from .rows import deleted, dropped, inserted, inserted_one, matched, updated, whole_rows
from .select import portions, present_rows, refresh, still_there, went_in

KNOWN = "_sqla_events_known"

PORTION = 1000
"""Rows that are events in Python at the same time."""

Emit = Callable[[Connection, Buffer, Plan, Sequence[Row]], None]


class Listener:
    """Turns one engine's writes into rows, in the order in which they are made."""

    def __init__(
        self,
        engine: Engine,
        codec_of: Callable[[sa.Table], TableCodec | None],
        emit: Emit,
        on_gap: gaps.OnGap | None,
        on_text: Callable[[Connection, str, str | None], None],
        old_values: str,
        cascades: Cascades | None,
        marks: Marks,
        writer: within.Writer | None,
        carrier: Carrier | None,
        commit: commits.Commit,
        alone: bool,
    ) -> None:
        """:param commit: is called before a transaction commits that has written something.
        :param alone: whether statements may be told without events, if nobody else listens.
        """
        self._engine = engine
        self._commit = commit
        self._alone = alone
        self._codec_of = codec_of
        self._emit = emit
        self._on_gap = on_gap
        self._on_text = on_text
        self._always = old_values == "always"
        self._cascades = cascades
        self._marks = marks
        self._writer = writer
        self._carrier = carrier
        self._preparing = Preparation(on_gap, cascades, marks, writer, carrier)
        self._targets: ByIdentity[tuple[Shape, TableCodec] | None] = ByIdentity()
        """By statement: what it writes, and the codec of its table; None of one that is not captured."""
        self._knowledge = object()
        """A sign on what compiled statements keep."""
        self._listening: list[tuple[Any, str, Any]] = []

    def listen(self) -> None:
        """Hook in."""
        if self._alone:
            quiet.attach(self._engine, self)
        self._add(self._engine, "before_cursor_execute", self._before_cursor, retval=True)
        self._add(self._engine, "do_executemany", self._execute_many)
        self._add(self._engine, "after_cursor_execute", self._after_cursor)
        if not quiet.possible():
            self._add(self._engine, "after_execute", self._after_execute)
        self._add(self._engine, "handle_error", self._on_error)
        flushed.listen(self._engine.dialect)

    def _add(self, target: Any, name: str, function: Any, **options: Any) -> None:
        event.listen(target, name, function, **options)
        self._listening.append((target, name, function))

    def unlisten(self) -> None:
        """Unhook; nothing stays behind."""
        quiet.detach(self._engine, self)
        for target, name, function in self._listening:
            event.remove(target, name, function)
        self._listening.clear()
        if flushed.unlisten(self._engine.dialect):
            quiet.unwatch(self._engine.dialect)
            commits.unwatch(self._engine.dialect)

    def forget(self) -> None:
        """What statements write is to be found out anew."""
        self._targets = ByIdentity()
        self._knowledge = object()

    # Before ------------------------------------------------------------------------------------------------------

    def _before_cursor(self, connection: Connection, dbapi_cursor: Any, sql: str, parameters: Any, context: Any, executemany: bool) -> Any:
        if quiet.told(context):
            return sql, parameters
        wake(connection)  # for a statement that was prepared before the hooks came
        return self.before(connection, dbapi_cursor, sql, parameters, context, executemany)

    def before(
        self, connection: Connection, dbapi_cursor: Any, sql: str, parameters: Any, context: Any, executemany: bool
    ) -> tuple[str, Any]:
        """Something is about to be executed."""
        compiled: Any = None if context is None else context.compiled
        if compiled is None or context.is_text:
            self._marks.noticed(connection, sql)
            self._transaction(connection, sql, "savepoint", "commit")
        elif context.current_parameters is not None:
            return sql, parameters  # a sequence or an SQL default of what is to run, asked for beforehand
        if self._marks.changing:
            self._marks.look_again(connection)
        if context is None or not (context.isinsert or context.isupdate or context.isdelete):
            return self._before_other(connection, sql, context), parameters
        plan = self._plan_for(connection, context)
        if plan is not None:
            sql, parameters = self._preparing.prepared(connection, plan, sql, parameters, context, executemany)
        if compiled.ctes:
            sql = self._with_ctes(connection, plan, sql, context)
            if plan is not None:
                ctes.begin(connection)
        if plan is not None and self._marks.known:
            sql = self._marks.mark(connection, plan, sql)
        return sql, parameters

    def _transaction(self, connection: Connection, sql: str, *words: str) -> None:
        word = gaps.transaction_word(sql)
        if word is not None and word[0] in words:
            self._on_text(connection, *word)

    def _before_other(self, connection: Connection, sql: str, context: Any) -> str:
        """What is no INSERT, UPDATE or DELETE of SQLAlchemy's may write all the same."""
        if context is not None and context.isddl:
            self._marks.noticed(connection, sql)
        if quiet.told(context) and context.compiled is not None and (word := _SAVEPOINTS.get(type(context.compiled.statement))):
            self._on_text(connection, word, context.compiled.statement.ident)
        if context is not None and getattr(context.compiled, "ctes", None):
            return self._with_ctes(connection, None, sql, context)
        if gaps.writes(sql) and (on_gap := self._on_unseen(connection)) is not None:
            gaps.look(on_gap, sql, context)
        return sql

    def _on_unseen(self, connection: Connection) -> gaps.OnGap | None:
        return partial(self._unseen, connection) if self._marks.known else self._on_gap

    def _unseen(self, connection: Connection, schema: str | None, table: str, sql: str, reason: str) -> None:
        """A write that capture cannot see into, where there are triggers."""
        if not self._marks.tell(connection, table) and self._on_gap is not None:
            self._on_gap(schema, table, sql, reason)

    def _with_ctes(self, connection: Connection, outer: Plan | None, sql: str, context: Any) -> str:
        caught = ctes.catch(context, sql, outer, partial(self._planned_cte, connection))
        if (on_gap := self._on_unseen(connection)) is not None:
            gaps.look(on_gap, sql, context, () if caught is None else caught.plans)
        if caught is None:
            return sql
        buffer_of(connection).plan(caught, self.executed)
        return caught.sql

    def _planned_cte(self, connection: Connection, element: Any) -> Plan | None:
        target = self._targets.get(element, self._target)
        if target is None or target[0].table.name in self._marks.known:  # its trigger writes the events
            return None
        buffer_of(connection).begin(connection, self._commit)
        return Plan(element, *target, many=False, want_old=self._always)

    def _target(self, element: Any) -> tuple[Shape, TableCodec] | None:
        shape = shape_of(element)
        codec = None if shape is None else self._codec_of(shape.table)
        if shape is None or codec is None:
            return None
        shape = codec.replacing.shape(shape)
        return (shape, codec) if codec.writes(shape) else None

    def _plan_for(self, connection: Connection, context: Any) -> Plan | None:
        """The plan of the execution that runs; known already where it comes to the cursor once more, with more rows."""
        buffer, compiled = connection.__dict__.get(ATTRIBUTE), context.compiled
        plan: Plan | None = buffer.plan_of(context) if buffer is not None and buffer.plans else None
        if plan is not None:
            return plan
        element = context.invoked_statement
        known = compiled.__dict__.get(KNOWN)
        if known is None or known[0] is not self._knowledge or known[1]() is not element:
            known = self._find_out(element, compiled)
        if known is None:
            return None
        if buffer is None:
            buffer = buffer_of(connection)
        buffer.begin(connection, self._commit)
        _, _, shape, codec, told = known
        plan = Plan(element, shape, codec, len(context.compiled_parameters) > 1, self._always, context, told)
        if (shape.replaces or codec.replacing.columns) and codec.replacing.removes(plan):
            self._preparing.missed(plan, "a statement that removes the rows that are in its way (REPLACE)")
        buffer.plan(plan, self.executed)
        return plan

    def _find_out(self, element: Any, compiled: Any) -> tuple[Any, ...] | None:
        """What a compiled statement writes, to be kept with it for its next execution."""
        target = self._targets.get(element, self._target)
        if target is None:
            return None
        told = target[1].programs.get(compiled, self._program, *target)
        known = compiled.__dict__[KNOWN] = (self._knowledge, ref(element), *target, told)
        return known

    def _program(self, compiled: Any, shape: Shape, codec: TableCodec) -> Program:
        told = program(compiled, shape, codec)
        return told if self._carrier is None else carrying(told, compiled, shape, codec)

    # While -------------------------------------------------------------------------------------------------------

    def _execute_many(self, dbapi_cursor: Any, sql: str, parameters: Any, context: Any) -> bool | None:
        plan = buffer_of(context.root_connection).plan_of(context)
        if plan is None or not plan.own:
            return None
        if plan.look_before:
            self._execute_each(plan, dbapi_cursor, sql, parameters, context)
        else:
            many.run(plan, dbapi_cursor, sql, parameters, context)
        return True

    def _execute_each(self, plan: Plan, dbapi_cursor: Any, sql: str, parameters: Any, context: Any) -> None:
        """Many sets of an UPDATE whose rows have to be read before it: one after the other."""
        connection, done = context.root_connection, 0
        buffer = buffer_of(connection)
        for given, raw in zip(context.compiled_parameters, parameters, strict=True):
            plan.before = present_rows(connection, plan, context, given)
            context.dialect.do_execute(dbapi_cursor, sql, raw, context)
            pipeline.settle(dbapi_cursor, context.dialect)
            try:
                for rows in ride.take_off(plan, dbapi_cursor, context):
                    done += len(rows)
                    self._came_back(connection, buffer, plan, rows)
            except BaseException:
                buffer.written.lost = True
                raise
        context._rowcount = done

    # After -------------------------------------------------------------------------------------------------------

    def _after_cursor(self, connection: Connection, dbapi_cursor: Any, sql: str, parameters: Any, context: Any, executemany: bool) -> None:
        if not quiet.told(context):
            self.after(connection, dbapi_cursor, sql, parameters, context, executemany)

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
        plan = plans[-1] if plans and plans[-1].context is context else None
        if plan is None:
            self._after_other(connection, dbapi_cursor, sql, context)
            return
        if type(plan) is Plan and not (plan.ride or plan.within):  # nothing comes back that is ours
            rows = dbapi_cursor.rowcount
            if rows < 0 and plan.shape.verb != "create":
                pipeline.settle(dbapi_cursor, connection.dialect)
                rows = dbapi_cursor.rowcount
            if plan.carry is None:
                plan.ran, plan.rows = True, rows
            elif self._carrier is not None:
                self._carrier.ran(buffer, plan, rows)
                plans.pop()  # of it there is nothing more to find out
            return
        pipeline.settle(dbapi_cursor, connection.dialect)
        try:
            self._take_off(connection, buffer, plan, dbapi_cursor, context)
        except BaseException:
            buffer.written.lost = True
            raise

    def _after_other(self, connection: Connection, dbapi_cursor: Any, sql: str, context: Any) -> None:
        if context is None or context.compiled is None or context.is_text:
            self._transaction(connection, sql, *gaps.BACK)
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
                self._came_back(connection, buffer, plan, rows)
            if plan.within:
                buffer.written.add(plan.within.type, count=plan.carried)
            if plan.frame:
                plan.frame.rows = came + plan.carried
        plan.ran, plan.rows = True, getattr(dbapi_cursor, "rowcount", -1)

    def _came_back(self, connection: Connection, buffer: Buffer, plan: Plan, rows: list[dict[str, Any]]) -> None:
        if not plan.whole:
            plan.rode += rows
        elif plan.reached is None:
            self._tell(connection, buffer, plan, whole_rows(plan, rows))
        else:
            plan.reached.held += whole_rows(plan, rows)

    def _after_execute(
        self, connection: Connection, element: Any, multi: Any, single: Any, options: Mapping[str, Any], result: Any
    ) -> None:
        buffer = held(connection)
        if buffer is not None and buffer.plans:
            self.executed(connection, buffer, getattr(result, "context", None))

    def executed(self, connection: Connection, buffer: Buffer, context: Any) -> None:
        """An execution has all that the database answered; called by its context, or after it: see ``quiet``."""
        plan = buffer.plans[-1]
        if plan.context is context:
            buffer.plans.pop()
            if plan.carry is None:
                self._done(connection, buffer, plan, context)

    def _done(self, connection: Connection, buffer: Buffer, plan: Plan, context: Any) -> None:
        try:
            self._written(connection, buffer, plan, context)
        except BaseException:
            buffer.written.lost = True
            raise

    def _written(self, connection: Connection, buffer: Buffer, plan: Plan, context: Any) -> None:
        rows: Iterable[Row] = ()
        verb = plan.shape.verb
        if plan.whole:
            rows = whole_rows(plan, plan.rode) if plan.rode else ()
        elif plan.blind:
            return
        elif verb == "create":
            if dropped(plan, context):
                plan.counts = went_in(connection, plan, context.compiled_parameters)
            rows = inserted(plan, context) if plan.many else inserted_one(plan, context)
        else:
            sets = matched(plan, context)
            if sets is None:
                sets = still_there(connection, plan, context.compiled_parameters)
            if plan.foretold is not None:
                rows = plan.foretold if sets else ()
            else:
                rows = updated(plan, buffer, sets) if verb == "update" else deleted(plan, buffer, sets)
        if plan.reached is not None:
            self._cascaded(connection, buffer, plan, [*plan.reached.held, *rows])
        elif plan.many or plan.whole or plan.codec.triggered:
            self._tell(connection, buffer, plan, rows)
        else:
            self._emit(connection, buffer, plan, tuple(rows))

    def _tell(self, connection: Connection, buffer: Buffer, plan: Plan, rows: Iterable[Row]) -> None:
        """A portion at a time: of a statement with a million sets of parameters, no million rows are made at once."""
        for some in portions(rows, PORTION):
            if plan.codec.triggered and plan.shape.verb != "delete":
                refresh(connection, plan, some)
            self._emit(connection, buffer, plan, some)

    def _cascaded(self, connection: Connection, buffer: Buffer, plan: Plan, rows: list[Row]) -> None:
        """What a statement wrote and what the database changed with it, in an order that foreign keys allow on a replay."""
        assert self._cascades is not None
        caused = self._cascades.changed(connection, plan, plan.reached, rows, self._preparing.missed) if rows else ()
        own = ((plan, rows),)
        for one, of_one in chain(caused, own) if plan.verb == "delete" else chain(own, caused):
            if one is plan:
                self._tell(connection, buffer, one, of_one)
            elif not self._marks.sees(one.table, plan):
                self._emit(connection, buffer, one, of_one)

    def _on_error(self, context: Any) -> None:
        """A statement failed. SQLite keeps what its earlier sets of parameters wrote, unless the caller rolls back."""
        connection, execution = context.connection, context.execution_context
        if connection is None or execution is None:
            return
        quiet.failed(execution)
        buffer = buffer_of(connection)
        if buffer.guarded:
            self._marks.done(connection)
        of_driver = isinstance(context.original_exception, connection.dialect.loaded_dbapi.Error)
        if not of_driver and buffer.written.counts and gaps.rolls_back(context.statement, execution):
            buffer.written.lost = True  # a listener's error: nobody knows whether it has run
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
            if plan.counts is not None and connection.dialect.name == "sqlite":
                self._done(connection, buffer, plan, execution)


_SAVEPOINTS: dict[Any, str] = {
    SavepointClause: "savepoint",
    RollbackToSavepointClause: "rollback_savepoint",
    ReleaseSavepointClause: "release_savepoint",
}
"""What is executed where an event of that name would be dispatched."""


def _has_run(dbapi_cursor: Any) -> bool:
    """Whether a statement has been executed that may have written something."""
    return dbapi_cursor is not None and (dbapi_cursor.rowcount > 0 or dbapi_cursor.description is not None)

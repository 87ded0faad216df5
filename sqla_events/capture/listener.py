"""The listeners on one engine: which statement writes what. What its rows were and are, ``results`` finds out.

Every write that SQLAlchemy makes passes ``before_cursor_execute`` of the engine and has a result, whoever asked for it; so
they are the base of truth (mapper events alone miss association rows, bulk methods, set-based statements). Mapper events
lend only what no statement knows: the objects behind a flush, for their old values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
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
from .evaluated import alike
from .kept import ByIdentity
from .mapped import of_post_update
from .marks import Marks
from .plan import (
    Plan,
    Program,
    Shape,
    as_compiled,
    of_flush,
    program,
    shape_of,
    synchronization,
    table_of,
    unwrapped,
)
from .preparing import Preparation
from .results import Emit, Results
from .select import present_rows

KNOWN = "_sqla_events_known"


class Listener:
    """Turns one engine's writes into rows, in the order in which they are made."""

    def __init__(
        self,
        engine: Engine,
        codec_of: Callable[[sa.Table], TableCodec | None],
        emit: Emit,
        on_gap: gaps.OnGap | None,
        on_text: gaps.OnText,
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
        self._on_gap = on_gap
        self._on_text = on_text
        self._always = old_values == "always"
        self._marks = marks
        self._carrier = carrier
        self._preparing = Preparation(on_gap, cascades, marks, writer, carrier)
        self._results = Results(emit, on_text, cascades, marks, writer, carrier, self._preparing)
        self.after = self._results.after
        """It has been executed."""
        self._executed = self._results.executed
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
        self._add(self._engine, "handle_error", self._results.failed)
        flushed.listen(self._engine.dialect)

    def _add(self, target: Any, name: str, function: Any, **options: Any) -> None:
        event.listen(target, name, function, **options)
        self._listening.append((target, name, function))

    def unlisten(self) -> None:
        """Unhook. Only the dialect tells of COMMIT still: transactions on their way have events to write."""
        quiet.detach(self._engine, self)
        for target, name, function in self._listening:
            event.remove(target, name, function)
        self._listening.clear()
        if flushed.unlisten(self._engine.dialect):
            quiet.unwatch(self._engine.dialect)

    def forget(self) -> None:
        """What statements write is to be found out anew."""
        self._targets = ByIdentity()
        self._knowledge = object()

    # Before ------------------------------------------------------------------------------------------------------

    def _before_cursor(self, connection: Connection, dbapi_cursor: Any, sql: str, parameters: Any, context: Any, executemany: bool) -> Any:
        if quiet.told(context):
            return sql, parameters
        wake(connection)  # for a statement that was prepared before the hooks came
        try:
            sent, parameters = self.before(connection, dbapi_cursor, sql, parameters, context, executemany)
        except BaseException as error:  # SQLAlchemy 2.0 leaves it to its listeners
            commits.broken_off(connection, error)
            raise
        if context is not None:
            context.__dict__[quiet.SENT] = sent, sql
        return sent, parameters

    def before(
        self, connection: Connection, dbapi_cursor: Any, sql: str, parameters: Any, context: Any, executemany: bool
    ) -> tuple[str, Any]:
        """Something is about to be executed."""
        compiled: Any = None if context is None else context.compiled
        marks, known = self._marks, None if compiled is None else compiled.__dict__.get(KNOWN)
        if known is None and (compiled is None or context.is_text):
            marks.noticed(connection, sql)
            gaps.told_before(connection, sql, self._on_text)
        elif context.current_parameters is not None:
            return sql, parameters  # a sequence or an SQL default of what is to run, asked for beforehand
        if marks.changing:
            marks.look_again(connection)
        if known is None and not (context is not None and (context.isinsert or context.isupdate or context.isdelete)):
            return self._before_other(connection, sql, context), parameters
        plan = self._plan_for(connection, context, compiled, known)
        if plan is not None:
            sql, parameters = self._preparing.prepared(connection, plan, sql, parameters, context, executemany)
        if compiled.ctes:
            sql = self._with_ctes(connection, plan, sql, context)
            if plan is not None:
                ctes.begin(connection)
        if marks.known and plan is not None:
            sql = marks.mark(connection, plan, sql)
        return sql, parameters

    def _before_other(self, connection: Connection, sql: str, context: Any) -> str:
        """What is no INSERT, UPDATE or DELETE of SQLAlchemy's may write all the same."""
        if context is not None and context.isddl:
            self._marks.noticed(connection, sql)
        if quiet.told(context) and context.compiled is not None and (word := _SAVEPOINTS.get(type(context.compiled.statement))):
            self._on_text(connection, word, context.compiled.statement.ident)
        if context is not None and getattr(context.compiled, "ctes", None):
            return self._with_ctes(connection, None, sql, context)
        for schema, name, reason in gaps.writes(sql, connection.dialect.name):
            buffer_of(connection).stray_named(name)
            if (on_gap := self._on_unseen(connection)) is not None:
                on_gap(schema, name, sql, reason)
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
        buffer = buffer_of(connection)
        buffer.executed = self._executed
        buffer.plans.append(caught)
        return caught.sql

    def _planned_cte(self, connection: Connection, element: Any) -> Plan | None:
        target = self._targets.get(element, self._target)
        if target is None or target[0].table.name in self._marks.known:  # its trigger writes the events
            return None
        buffer = buffer_of(connection)
        buffer.begin(connection, self._commit)
        buffer.stray(target[0].table)
        return Plan(element, *target, many=False, want_old=self._always)

    def _target(self, element: Any) -> tuple[Shape, TableCodec] | None:
        shape = shape_of(element)
        codec = None if shape is None else self._codec_of(shape.table)
        if shape is None or codec is None:
            return None
        shape = codec.replacing.shape(shape)
        return (shape, codec) if codec.writes(shape) else None

    def _plan_for(self, connection: Connection, context: Any, compiled: Any, known: Any) -> Plan | None:
        """The plan of the execution that runs; there already where it comes to the cursor once more, with more rows.

        :param known: what was found out of the compiled statement.
        """
        buffer: Buffer | None = connection.__dict__.get(ATTRIBUTE)
        if buffer is not None and buffer.plans:
            there: Plan | None = buffer.plan_of(context)
            if there is not None:
                return there
        element = context.invoked_statement
        if known is None or known[0] is not self._knowledge or known[1]() is not element:
            known = self._find_out(element, compiled, of_flush(context))
        if known is None:
            if (on_gap := self._on_unseen(connection)) is not None:
                gaps.look_at_target(on_gap, element, compiled.string)
            self._unwanted(connection, element, context)
            return None
        if buffer is None:
            buffer = buffer_of(connection)
        buffer.begin(connection, self._commit)
        _, _, shape, codec, told = known
        if not shape.in_flush and (shape.verb != "create" or shape.upsert):
            shape = _past_objects(buffer, shape, codec, context)
        if codec.followers and shape.verb != "create":
            _stray_followers(buffer, shape, codec, told)
        plan = Plan(element, shape, codec, len(context.compiled_parameters) > 1, self._always, context, told)
        if (shape.replaces or codec.replacing.columns) and codec.replacing.removes(plan):
            self._preparing.missed(plan, "a statement that removes the rows that are in its way (REPLACE)")
        buffer.executed = self._executed
        buffer.plans.append(plan)
        return plan

    def _unwanted(self, connection: Connection, element: Any, context: Any) -> None:
        """Of such writes no event is wanted; but others of the table may be."""
        statement = unwrapped(element)
        if context.isinsert or of_flush(context) or not isinstance(statement, sa.sql.dml.UpdateBase):
            return
        table, how = table_of(statement), synchronization(context)
        codec = None if table is None or how == "fetch" else self._codec_of(table)
        if codec is not None and not (how and alike(codec, context)):
            buffer_of(connection).stray(table)

    def _find_out(self, element: Any, compiled: Any, in_flush: bool) -> tuple[Any, ...] | None:
        """What a compiled statement writes, to be kept with it for its next execution."""
        target = self._targets.get(element, self._target)
        if target is None:
            return None
        shape, codec = as_compiled(target[0], compiled), target[1]
        if in_flush:
            shape = replace(shape, in_flush=True, posts=shape.verb == "update" and of_post_update(element, shape.table))
        told = codec.programs.get(compiled, self._program, shape, codec)
        known = compiled.__dict__[KNOWN] = (self._knowledge, ref(element), shape, codec, told)
        return known

    def _program(self, compiled: Any, shape: Shape, codec: TableCodec) -> Program:
        told = program(compiled, shape, codec)
        return told if self._carrier is None else carrying(told, compiled, shape, codec)

    # While -------------------------------------------------------------------------------------------------------

    def _execute_many(self, dbapi_cursor: Any, sql: str, parameters: Any, context: Any) -> bool | None:
        plan = buffer_of(context.root_connection).plan_of(context)
        if plan is None or not plan.own:
            return None
        plan.done = True
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
                    self._results.came_back(connection, buffer, plan, rows)
                self._results.moved(connection, buffer, plan)
            except BaseException:
                buffer.written.lost = True
                raise
        context._rowcount = done

    # After -------------------------------------------------------------------------------------------------------

    def _after_cursor(self, connection: Connection, dbapi_cursor: Any, sql: str, parameters: Any, context: Any, executemany: bool) -> None:
        if not quiet.told(context):
            self.after(connection, dbapi_cursor, sql, parameters, context, executemany)

    def _after_execute(
        self, connection: Connection, element: Any, multi: Any, single: Any, options: Mapping[str, Any], result: Any
    ) -> None:
        buffer = held(connection)
        if buffer is not None and buffer.plans:
            self._results.executed(connection, buffer, getattr(result, "context", None))


def _stray_followers(buffer: Buffer, shape: Shape, codec: TableCodec, told: Program) -> None:
    if shape.verb == "delete" or not told.moved.union(told.given).isdisjoint(codec.key):
        for table in codec.followers:
            buffer.stray(table)


def _past_objects(buffer: Buffer, shape: Shape, codec: TableCodec, context: Any) -> Shape:
    """Of a statement that is not the unit of work's."""
    synchronized = synchronization(context)
    if not synchronized:
        buffer.stray(shape.table)
    by_key = None if codec.spelled else shape.by_key
    return replace(shape, by_key=by_key, synchronized=synchronized) if synchronized or by_key is not shape.by_key else shape


_SAVEPOINTS: dict[Any, str] = {
    SavepointClause: "savepoint",
    RollbackToSavepointClause: "rollback_savepoint",
    ReleaseSavepointClause: "release_savepoint",
}
"""What is executed where an event of that name would be dispatched."""

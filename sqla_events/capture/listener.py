"""The listeners on one engine: which statement writes what, and what its rows were and are.

Every write that SQLAlchemy makes passes ``before_execute`` and ``after_execute`` of the engine, whoever asked for it; so
they are the base of truth (mapper events alone miss association rows, bulk methods, set-based statements). Mapper events
lend only what no statement knows: the objects behind a flush, for their old values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Mapper
from sqlalchemy.orm.interfaces import EXT_CONTINUE
from sqlalchemy.sql import dml
from sqlalchemy.sql.lambdas import LambdaElement

from . import ride
from .buffer import Buffer, buffer_of
from .codec import TableCodec
from .plan import Plan, Row
from .rows import rows_of
from .select import changed_rows, present_rows

VERBS: tuple[tuple[type, str], ...] = ((dml.Insert, "create"), (dml.Update, "update"), (dml.Delete, "delete"))

_TEXT = re.compile(
    r"\s*(?:INSERT\s+(?:OR\s+\w+\s+)?INTO|REPLACE\s+INTO|UPDATE|DELETE\s+FROM|MERGE\s+INTO)\s+(?:ONLY\s+)?([\w.\"`\[\]]+)",
    re.IGNORECASE,
)
_CTE = re.compile(
    r"\s*WITH\b.*\b(INSERT\s+INTO|UPDATE|DELETE\s+FROM|MERGE\s+INTO)\s+([\w.\"`\[\]]+)", re.IGNORECASE | re.DOTALL
)

MAX_STATES = 20_000

Emit = Callable[[Connection, Buffer, Plan, Sequence[Row]], None]
OnGap = Callable[[str, str, str], None]
"""(table, statement, reason)"""


class Listener:
    """Turns one engine's writes into rows, in the order in which they are made."""

    def __init__(
        self,
        engine: Engine,
        codec_of: Callable[[sa.Table], TableCodec | None],
        emit: Emit,
        on_gap: OnGap | None,
        old_values: str,
    ) -> None:
        self._engine = engine
        self._codec_of = codec_of
        self._emit = emit
        self._on_gap = on_gap
        self._always = old_values == "always"
        self._listening: list[tuple[Any, str, Any]] = []

    def listen(self) -> None:
        """Hook in."""
        self._add(self._engine, "before_execute", self._before_execute, retval=True)
        self._add(self._engine, "before_cursor_execute", self._before_cursor, retval=True)
        self._add(self._engine, "after_cursor_execute", self._after_cursor)
        self._add(self._engine, "after_execute", self._after_execute)
        self._add(self._engine, "handle_error", self._on_error)
        for name in ("before_update", "before_delete"):
            self._add(Mapper, name, self._remember, raw=True, retval=True)

    def _add(self, target: Any, name: str, function: Any, **options: Any) -> None:
        event.listen(target, name, function, **options)
        self._listening.append((target, name, function))

    def unlisten(self) -> None:
        """Unhook; nothing stays behind."""
        for target, name, function in self._listening:
            event.remove(target, name, function)
        self._listening.clear()

    # Before ------------------------------------------------------------------------------------------------------

    def _before_execute(
        self, connection: Connection, element: Any, multi: Any, single: Any, options: Mapping[str, Any]
    ) -> Any:
        plan = self._plan(connection, element, multi, options)
        if plan is None:
            return element, multi, single
        buffer = buffer_of(connection)
        buffer.refuse_autocommit(connection)
        if plan.many and not plan.unit_of_work and plan.verb != "create":
            plan.before = present_rows(connection, plan, multi)
        elif (
            plan.verb == "update" and not plan.unit_of_work and self._always and not ride.old_rides(connection.dialect)
        ):
            plan.before = present_rows(connection, plan, [single] if single else multi or [{}])
        buffer.plans.append(plan)
        return plan.element, multi, single

    def _plan(self, connection: Connection, element: Any, multi: Any, options: Mapping[str, Any]) -> Plan | None:
        statement = unwrapped(element)
        verb = next((verb for kind, verb in VERBS if isinstance(statement, kind)), None)
        table = None if verb is None else table_of(statement)
        codec = None if table is None else self._codec_of(table)
        if verb is None or table is None or codec is None:
            return None
        many = len(multi) > 1
        unit_of_work = "compiled_cache" in options and statement is element
        if verb == "create" and many and statement is element:
            element = statement = _telling_keys(connection, statement, table, multi)
        return Plan(element, statement, table, verb, codec, unit_of_work, many, self._always)

    def _before_cursor(
        self, connection: Connection, dbapi_cursor: Any, sql: str, parameters: Any, context: Any, executemany: bool
    ) -> tuple[str, Any]:
        plan = _plan_for(connection, context)
        if plan is not None:
            sql = ride.along(plan, sql, context, executemany)
        elif self._on_gap is not None:
            self._look_for_gap(self._on_gap, sql, context)
        return sql, parameters

    def _look_for_gap(self, on_gap: OnGap, sql: str, context: Any) -> None:
        """Writes that no statement object tells: text, and a data-modifying CTE under a SELECT."""
        if (
            context is not None
            and getattr(context, "compiled", None) is not None
            and not getattr(context, "is_text", False)
            and not _is_cte(sql)
        ):
            return
        match = _TEXT.match(sql) or (_CTE.match(sql) if _is_cte(sql) else None)
        if match:
            name = match[match.lastindex or 1].strip('"`[]').rpartition(".")[2].strip('"`[]')
            on_gap(name, sql, "a data-modifying CTE" if _is_cte(sql) else "text SQL")

    # After -------------------------------------------------------------------------------------------------------

    def _after_cursor(
        self, connection: Connection, dbapi_cursor: Any, sql: str, parameters: Any, context: Any, executemany: bool
    ) -> None:
        plan = _plan_for(connection, context)
        if plan is not None and plan.ride:
            ride.take_off(plan, dbapi_cursor, context)

    def _after_execute(
        self, connection: Connection, element: Any, multi: Any, single: Any, options: Mapping[str, Any], result: Any
    ) -> None:
        buffer = buffer_of(connection)
        if not buffer.plans or buffer.plans[-1].element is not element:
            return
        plan = buffer.plans.pop()
        rows: Sequence[Row]
        if plan.before is not None and plan.many:
            rows = changed_rows(connection, plan)
        else:
            rows = rows_of(plan, result.context, buffer)
        if rows:
            self._emit(connection, buffer, plan, rows)

    def _on_error(self, context: Any) -> None:
        if context.connection is not None:
            buffer_of(context.connection).plans.clear()

    def _remember(self, mapper: Mapper[Any], connection: Connection, state: Any) -> Any:
        if connection.engine.pool is self._engine.pool and state.key is not None:
            states = buffer_of(connection).states
            if len(states) > MAX_STATES:  # leftovers of updates that turned out to change nothing
                states.clear()
            for table in mapper.tables:
                states[table, state.key[1]] = state
        return EXT_CONTINUE


def unwrapped(element: Any) -> Any:
    """The INSERT, UPDATE or DELETE in a lambda or a ``from_statement``; else the element itself."""
    while True:
        if isinstance(element, LambdaElement):
            element = element._resolved
        elif type(element).__name__ == "FromStatement":
            element = element.element
        else:
            return element


def table_of(statement: Any) -> sa.Table | None:
    """The table that a statement writes, behind an alias too.

    A bulk statement on a mapped class goes out once for each of its tables, and says which by an annotation alone.
    """
    said = statement._annotations
    table = said.get("_emit_update_table", said.get("_emit_insert_table", statement.table))
    while isinstance(table, sa.sql.selectable.AliasedReturnsRows):
        table = table.element
    return (
        table._deannotate()
        if isinstance(table, sa.Table) and table._annotations
        else table
        if isinstance(table, sa.Table)
        else None
    )


def _telling_keys(connection: Connection, statement: Any, table: sa.Table, multi: Any) -> Any:
    """A bulk INSERT that will say which keys and server defaults its rows got, where it would not and they are not given.

    It then goes out as ``insertmanyvalues`` instead of the driver's executemany, which returns nothing.
    """
    if statement._returning or statement._return_defaults or statement._multi_values or statement.select is not None:
        return statement
    if not connection.dialect.insert_executemany_returning:
        return statement
    given = multi[0]
    if statement._post_values_clause is not None:  # an upsert: only the database knows which rows it wrote
        return statement.return_defaults()
    missing = [
        column
        for column in table.columns
        if column.key not in given and (column.primary_key or column.server_default is not None)
    ]
    return statement.return_defaults() if missing else statement


def _plan_for(connection: Connection, context: Any) -> Plan | None:
    plans = buffer_of(connection).plans
    if not plans or context is None:
        return None
    invoked = getattr(context, "invoked_statement", None)
    plan: Plan = plans[-1]
    return plan if invoked is not None and (invoked is plan.element or unwrapped(invoked) is plan.statement) else None


def _is_cte(sql: str) -> bool:
    return sql.lstrip()[:4].upper() == "WITH"

"""The listeners on one engine: which statement writes what, and what its rows were and are.

Every write that SQLAlchemy makes passes ``before_execute`` and ``after_execute`` of the engine, whoever asked for it; so
they are the base of truth. What a statement does not say (server defaults, expressions, rows of a set-based UPDATE)
rides along: the wanted columns are appended to the RETURNING of the SQL *string* and cut off again before SQLAlchemy
looks at the cursor, so its compiled cache, the unit of work and the caller's Result stay as they are. Mapper events
lend only what no statement knows: old values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine, cursor
from sqlalchemy.orm import Mapper
from sqlalchemy.orm.base import NO_VALUE
from sqlalchemy.sql import dml
from sqlalchemy.sql.lambdas import LambdaElement

from .buffer import Buffer, buffer_of
from .codec import TableCodec

VERBS: dict[type, str] = {dml.Insert: "create", dml.Update: "update", dml.Delete: "delete"}


@dataclass
class Plan:
    """What is known about one statement while it runs."""

    element: Any
    table: sa.Table
    verb: str
    codec: TableCodec
    unit_of_work: bool
    ride: tuple[str, ...] = ()
    """Keys of the columns that ride along in RETURNING."""
    rode: list[tuple[Any, ...]] = field(default_factory=list)


def unwrapped(element: Any) -> Any:
    """The INSERT, UPDATE or DELETE in a lambda or a ``from_statement``; else the element itself."""
    while True:
        if isinstance(element, LambdaElement):
            element = element._resolved
        elif getattr(element, "__visit_name__", "") == "orm_from_statement" or type(element).__name__ == "FromStatement":
            element = element.element
        else:
            return element


class Listener:
    """Turns one engine's writes into events in the buffer of the connection."""

    def __init__(self, engine: Engine, codec_of: Callable[[sa.Table, Connection], TableCodec | None], make: Callable[..., None]) -> None:
        self._engine = engine
        self._codec_of = codec_of
        self._make = make
        self._listening: list[tuple[Any, str, Any, dict[str, Any]]] = []

    def listen(self) -> None:
        """Hook in."""
        engine = self._engine
        for name, function, options in (
            ("before_execute", self._before_execute, {}),
            ("before_cursor_execute", self._before_cursor, {"retval": True}),
            ("after_cursor_execute", self._after_cursor, {}),
            ("after_execute", self._after_execute, {}),
            ("handle_error", self._on_error, {}),
        ):
            self._add(engine, name, function, options)
        for name in ("before_update", "before_delete"):
            self._add(Mapper, name, self._remember, {"raw": True})

    def _add(self, target: Any, name: str, function: Any, options: dict[str, Any]) -> None:
        event.listen(target, name, function, **options)
        self._listening.append((target, name, function, options))

    def unlisten(self) -> None:
        """Unhook; nothing stays behind."""
        for target, name, function, _ in self._listening:
            event.remove(target, name, function)
        self._listening.clear()

    # Before ------------------------------------------------------------------------------------------------------

    def _before_execute(self, connection: Connection, element: Any, multi: Any, single: Any, options: Mapping[str, Any]) -> None:
        statement = unwrapped(element)
        verb = VERBS.get(type(statement)) or next((verb for kind, verb in VERBS.items() if isinstance(statement, kind)), None)
        if verb is None:
            return
        table = _table_of(statement)
        codec = self._codec_of(table, connection) if table is not None else None
        if codec is None or table is None:
            return
        buffer = buffer_of(connection)
        buffer.refuse_autocommit(connection)
        plan = Plan(element, table, verb, codec, "compiled_cache" in options and statement is element)
        buffer.plans.append(plan)

    def _before_cursor(
        self, connection: Connection, dbapi_cursor: Any, sql: str, parameters: Any, context: Any, executemany: bool
    ) -> tuple[str, Any]:
        plan = _plan_for(connection, context)
        if plan is None:
            return sql, parameters
        many = executemany and context.execute_style.name != "INSERTMANYVALUES"
        plan.ride = () if many else self._wanted(plan, context)
        if not plan.ride or not _can_return(context, plan.verb):
            plan.ride = ()
            return sql, parameters
        joint = ", " if context.compiled.effective_returning else " RETURNING "
        return sql + joint + ", ".join(_column_sql(plan, key, context) for key in plan.ride), parameters

    def _wanted(self, plan: Plan, context: Any) -> tuple[str, ...]:
        """Keys of the columns that neither the parameters nor SQLAlchemy's own RETURNING will tell."""
        keys = [column.key for column in plan.table.columns]
        if not plan.unit_of_work:
            return tuple(keys)
        given = context.compiled_parameters[0]
        if plan.verb == "create":
            returned = {column.key for column in context.compiled.effective_returning or () if hasattr(column, "key")}
            return tuple(key for key in keys if key not in given and key not in returned)
        if plan.verb == "delete":
            return ()
        set_here = {getattr(column, "key", column) for column in plan.element._values or {}}
        return tuple(column.key for column in plan.table.columns if _changes(column, set_here) and column.key not in given)

    # After -------------------------------------------------------------------------------------------------------

    def _after_cursor(self, connection: Connection, dbapi_cursor: Any, sql: str, parameters: Any, context: Any, executemany: bool) -> None:
        plan = _plan_for(connection, context)
        if plan is None or not plan.ride:
            return
        rows, count = dbapi_cursor.fetchall(), len(plan.ride)
        own = len(dbapi_cursor.description) - count
        plan.rode += [tuple(row[own:]) for row in rows]
        if own == 0:
            context.cursor_fetch_strategy = cursor._NO_CURSOR_DML
        else:
            kept = [tuple(row[:own]) for row in rows]
            context.cursor_fetch_strategy = cursor.FullyBufferedCursorFetchStrategy(
                dbapi_cursor, alternate_description=dbapi_cursor.description[:own], initial_buffer=kept
            )
            context.fetchall_for_returning = lambda _: kept
        if not context.isinsert:
            context._rowcount = len(rows)

    def _after_execute(self, connection: Connection, element: Any, multi: Any, single: Any, options: Mapping[str, Any], result: Any) -> None:
        buffer = buffer_of(connection)
        if not buffer.plans or buffer.plans[-1].element is not element:
            return
        plan = buffer.plans.pop()
        for key, before, after, unknown in _rows(plan, result.context, buffer):
            self._make(connection, buffer, plan, key, before, after, unknown)

    def _on_error(self, context: Any) -> None:
        if context.connection is not None:
            buffer_of(context.connection).plans.clear()

    def _remember(self, mapper: Mapper[Any], connection: Connection, state: Any) -> None:
        if connection.engine.pool is not self._engine.pool or state.key is None:
            return
        buffer = buffer_of(connection)
        for table in mapper.tables:
            buffer.states[table, tuple(state.key[1])] = state


def _table_of(statement: Any) -> sa.Table | None:
    table = statement.table
    while isinstance(table, sa.sql.selectable.Alias):
        table = table.element
    return table if isinstance(table, sa.Table) else None


def _plan_for(connection: Connection, context: Any) -> Plan | None:
    plans = buffer_of(connection).plans
    if not plans or context is None or getattr(context, "invoked_statement", None) is None:
        return None
    return plans[-1] if unwrapped(context.invoked_statement) is unwrapped(plans[-1].element) else None


def _can_return(context: Any, verb: str) -> bool:
    dialect = context.dialect
    return bool({"create": dialect.insert_returning, "update": dialect.update_returning, "delete": dialect.delete_returning}[verb])


def _column_sql(plan: Plan, key: str, context: Any) -> str:
    preparer = context.dialect.identifier_preparer
    name = preparer.format_column(plan.table.columns[key])
    if context.dialect.name == "sqlite":
        return name
    target = unwrapped(plan.element).table
    owner = context.compiled._truncated_identifier("alias", target.name) if isinstance(target, sa.sql.selectable.Alias) else plan.table.name
    return f"{preparer.quote(owner)}.{name}"


def _changes(column: sa.Column[Any], set_here: set[str]) -> bool:
    """Whether an UPDATE may change this column to something its parameters do not say."""
    return column.key in set_here or column.computed is not None or column.onupdate is not None or column.server_onupdate is not None


# What the rows were and are -----------------------------------------------------------------------------------------

Row = tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any] | None, list[str]]
"""key columns, before, after (column key -> bound value, or Loaded), columns whose value is unknown."""


class Loaded:
    """A value that came from the driver: at the level of the SQL type already."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def _rows(plan: Plan, context: Any, buffer: Buffer) -> Sequence[Row]:
    if not plan.unit_of_work:
        return _ridden_rows(plan, context)
    if plan.verb == "create":
        return _inserted(plan, context)
    if plan.verb == "update":
        return _updated(plan, context, buffer)
    return _deleted(plan, context, buffer)


def _rode(plan: Plan, index: int) -> dict[str, Any]:
    if index >= len(plan.rode):
        return {}
    return {key: Loaded(_load(plan, key, raw)) for key, raw in zip(plan.ride, plan.rode[index], strict=True)}


def _load(plan: Plan, key: str, raw: Any) -> Any:
    codec = plan.codec.columns.get(key)
    return raw if codec is None else codec.loaded(raw)


def _ridden_rows(plan: Plan, context: Any) -> list[Row]:
    rows = []
    changed = {getattr(column, "key", column) for column in (getattr(unwrapped(plan.element), "_values", None) or {})}
    changed |= {key for parameters in context.compiled_parameters for key in parameters if key in plan.table.columns}
    for index in range(len(plan.rode)):
        row = _rode(plan, index)
        key = {name: row[name] for name in plan.codec.key if name in row}
        if plan.verb == "create":
            rows.append((key, None, row, []))
        elif plan.verb == "delete":
            rows.append((key, row, None, []))
        else:
            after = {c.key: row[c.key] for c in plan.table.columns if c.key in row and (c.key in changed or _changes(c, set()))}
            rows.append((key, None, after, []))
    return rows


def _inserted(plan: Plan, context: Any) -> list[Row]:
    keys = context.inserted_primary_key_rows
    defaults = context.returned_default_rows or []
    returning = [column.key for column in context.compiled.effective_returning or ()]
    rows: list[Row] = []
    for index, given in enumerate(context.compiled_parameters):
        after = {column.key: given[column.key] for column in plan.table.columns if column.key in given}
        if index < len(defaults) and defaults[index] is not None:
            after |= dict(zip(returning, defaults[index], strict=False))
        if index < len(keys):
            after |= {c.key: v for c, v in zip(plan.table.primary_key, keys[index], strict=False) if v is not None}
        after |= _rode(plan, index) if len(context.compiled_parameters) == 1 else {}
        unknown = [column.name for column in plan.table.columns if column.key not in after]
        rows.append(({name: after[name] for name in plan.codec.key if name in after}, None, after, unknown))
    return rows


def _updated(plan: Plan, context: Any, buffer: Buffer) -> list[Row]:
    table, rows = plan.table, []
    if context.rowcount == 0:
        return []
    doubtful = [column for column in table.columns if _changes(column, {getattr(c, "key", c) for c in plan.element._values or {}})]
    for index, given in enumerate(context.compiled_parameters):
        after: dict[str, Any] = {column.key: given[column.key] for column in table.columns if column.key in given}
        after |= _rode(plan, index)
        old_key = tuple(given.get(column._label) for column in table.primary_key)
        state = buffer.states.pop((table, old_key), None)
        before = _committed(state, table, after)
        key = {column.key: value for column, value in zip(table.primary_key, old_key, strict=True)}
        unknown = [column.name for column in doubtful if column.key not in after]
        rows.append((key, before, after, unknown))
    return rows


def _deleted(plan: Plan, context: Any, buffer: Buffer) -> list[Row]:
    if context.rowcount == 0:
        return []
    rows: list[Row] = []
    for given in context.compiled_parameters:
        key = {column.key: given[column.key] for column in plan.table.primary_key if column.key in given}
        state = buffer.states.pop((plan.table, tuple(key.values())), None)
        rows.append((key, {**_loaded_values(state, plan.table), **key}, None, []))
    return rows


def _committed(state: Any, table: sa.Table, after: Mapping[str, Any]) -> dict[str, Any]:
    """Old values of the changed columns, as far as the session knows them."""
    if state is None:
        return {}
    before = {}
    for key in after:
        found = _old(state, table.columns[key])
        if found is not NO_VALUE:
            before[key] = found
    return before


def _old(state: Any, column: sa.Column[Any]) -> Any:
    prop = state.mapper._columntoproperty.get(column)
    if prop is None:
        return NO_VALUE
    if prop.key in state.committed_state:
        value = state.committed_state[prop.key]
        return NO_VALUE if isinstance(value, type(NO_VALUE)) else value
    return state.dict.get(prop.key, NO_VALUE)


def _loaded_values(state: Any, table: sa.Table) -> dict[str, Any]:
    if state is None:
        return {}
    found = {column.key: _old(state, column) for column in table.columns}
    return {key: value for key, value in found.items() if value is not NO_VALUE}

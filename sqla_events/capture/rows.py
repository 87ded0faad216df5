"""What the rows of a statement were and are, from its parameters, what SQLAlchemy fetched, what rode along, and the session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm.base import LoaderCallableStatus

from .buffer import Buffer
from .codec import SQL_NULL
from .plan import Loaded, Plan, Row, may_change
from .ride import INSERTED, OLD, has_default


def rows_of(plan: Plan, context: Any, buffer: Buffer) -> Sequence[Row]:
    """The rows that the statement has written."""
    if plan.verb == "create":
        return _ridden(plan, context) if plan.ride and not plan.unit_of_work else _inserted(plan, context)
    if not plan.unit_of_work:
        return _ridden(plan, context)
    return _updated(plan, context, buffer) if plan.verb == "update" else _deleted(plan, context, buffer)


def _ridden(plan: Plan, context: Any) -> list[Row]:
    """A statement of anybody's: every row came back whole."""
    rows = []
    changed = plan.set_keys | {key for given in context.compiled_parameters for key in given if key in plan.table.columns}
    for row in plan.rode:
        key = {name: row[name] for name in plan.codec.key}
        if plan.verb == "create":
            rows.append(_upserted(plan, key, row) if plan.upsert else Row(key, after=row))
        elif plan.verb == "delete":
            rows.append(Row(key, before=row))
        else:
            after = {c.key: row[c.key] for c in plan.table.columns if c.key in changed or may_change(c, set())}
            before = (plan.before or {}).get(tuple(value.value for value in key.values()), {})
            if OLD + next(iter(plan.codec.columns), "") in row:
                before = {name.removeprefix(OLD): value for name, value in row.items() if name.startswith(OLD)}
                key = {name: before[name] for name in plan.codec.key}
            rows.append(Row(key, {name: before[name] for name in after if name in before}, after))
    return rows


def _upserted(plan: Plan, key: dict[str, Any], row: dict[str, Any]) -> Row:
    new = row.get(INSERTED)
    after = {name: value for name, value in row.items() if name != INSERTED}
    if new is None:
        return Row(key, after=after, upsert=True)
    return Row(key, after=after) if new.value else Row(key, {}, after, verb="update")


def _inserted(plan: Plan, context: Any) -> list[Row]:
    keys, defaults = context.inserted_primary_key_rows, context.returned_default_rows or ()
    returned = [getattr(column, "key", None) for column in context.compiled.effective_returning or ()]
    rows = []
    for index, given in enumerate(context.compiled_parameters):
        after: dict[str, Any] = {column.key: given[column.key] for column in plan.table.columns if column.key in given}
        if index < len(defaults) and defaults[index] is not None:
            told = zip(returned, defaults[index], strict=False)
            after |= {key: Loaded(SQL_NULL) if value is None else value for key, value in told if key is not None}
        if index < len(keys):
            after |= {c.key: v for c, v in zip(plan.table.primary_key, keys[index], strict=False) if v is not None}
        if not plan.many and plan.rode:
            after |= plan.rode[0]
        rows.append(_completed(plan, after))
    return rows


def _completed(plan: Plan, after: dict[str, Any]) -> Row:
    missing = [column for column in plan.table.columns if column.key not in after]
    unknown = tuple(str(column.name) for column in missing if column.key in plan.set_keys or has_default(column))
    after |= {column.key: Loaded(SQL_NULL) for column in missing if column.name not in unknown}
    return Row({name: after[name] for name in plan.codec.key if name in after}, after=after, unknown=unknown)


def _updated(plan: Plan, context: Any, buffer: Buffer) -> list[Row]:
    table = plan.table
    matched = context.rowcount
    if matched == 0:
        return []
    doubtful = [column for column in table.columns if may_change(column, plan.set_keys)]
    rows = []
    for given in context.compiled_parameters:
        after: dict[str, Any] = {column.key: given[column.key] for column in table.columns if column.key in given}
        if not plan.many and plan.rode:
            after |= plan.rode[0]
        old_key = tuple(given.get(column._label, given.get(column.key)) for column in table.primary_key)
        before = _committed(buffer.states.pop((table, old_key), None), table, after)
        key = {column.key: value for column, value in zip(table.primary_key, old_key, strict=True)}
        rows.append(Row(key, before, after, tuple(str(column.name) for column in doubtful if column.key not in after)))
    return rows


def _deleted(plan: Plan, context: Any, buffer: Buffer) -> list[Row]:
    if context.rowcount == 0:
        return []
    rows = []
    for given in context.compiled_parameters:
        key = {column.key: given[column.key] for column in plan.table.primary_key if column.key in given}
        state = buffer.states.pop((plan.table, tuple(key.values())), None)
        rows.append(Row(key, {**known_values(state, plan.table), **key}))
    return rows


_UNKNOWN = LoaderCallableStatus.NO_VALUE


def _committed(state: Any, table: sa.Table, after: Mapping[str, Any]) -> dict[str, Any]:
    """Old values of the changed columns, as far as the session knows them."""
    if state is None:
        return {}
    found = {key: _old(state, table.columns[key]) for key in after}
    return {key: value for key, value in found.items() if value is not _UNKNOWN}


def known_values(state: Any, table: sa.Table) -> dict[str, Any]:
    """A row as the session has loaded it; what it has not loaded is left out."""
    if state is None:
        return {}
    found = {column.key: _old(state, column) for column in table.columns}
    return {key: value for key, value in found.items() if value is not _UNKNOWN}


def _old(state: Any, column: sa.Column[Any]) -> Any:
    """The value in the database as the session loaded or last wrote it. ``committed_state`` is complete here still:

    after_execute of an UPDATE comes before the flush takes note of its outcome.
    """
    prop = state.mapper._columntoproperty.get(column)
    if prop is None:
        return _UNKNOWN
    value = state.committed_state[prop.key] if prop.key in state.committed_state else state.dict.get(prop.key, _UNKNOWN)
    return _UNKNOWN if isinstance(value, (LoaderCallableStatus, sa.sql.ClauseElement)) else value

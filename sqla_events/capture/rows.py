"""What the rows of a statement were and are, from its parameters, what SQLAlchemy fetched, what rode along, and the session."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.orm.base import LoaderCallableStatus

from .buffer import Buffer
from .codec import SQL_NULL, Loaded
from .plan import Plan, Row, may_change
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
    changed = plan.set_keys | {
        key for given in context.compiled_parameters for key in given if key in plan.table.columns
    }
    for row in plan.rode:
        key = {name: row[name] for name in plan.codec.key}
        if plan.verb == "create":
            rows.append(_upserted(key, row) if plan.upsert else Row(key, after=row))
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


def _upserted(key: dict[str, Any], row: dict[str, Any]) -> Row:
    new = row.get(INSERTED)
    after = {name: value for name, value in row.items() if name != INSERTED}
    if new is None:
        return Row(key, after=after, upsert=True)
    return Row(key, after=after) if new.value else Row(key, {}, after, verb="update")


def _inserted(plan: Plan, context: Any) -> list[Row]:
    parameters, told = context.compiled_parameters, _told(plan, context)
    shape = _shape(plan, parameters[0], told[0] if told else {})
    rows = []
    for index, given in enumerate(parameters):
        after = {key: given[key] for key in shape.given}
        if index < len(told):
            after.update(told[index])
        after.update(shape.nulls)
        rows.append(Row({name: after[name] for name in plan.codec.key if name in after}, None, after, shape.unknown))
    return rows


def _told(plan: Plan, context: Any) -> list[dict[str, Any]]:
    """What the database answered to an INSERT: keys, server defaults, what rode along; a dict for each row."""
    returned = [getattr(column, "key", None) for column in context.compiled.effective_returning or ()]
    keys = [column.key for column in plan.table.primary_key]
    answers: list[dict[str, Any]] = [
        {key: _answer(plan, key, value) for key, value in zip(returned, row or (), strict=False) if key}
        for row in context.returned_default_rows or ()
    ]
    for index, row in enumerate(context.inserted_primary_key_rows):
        found = {key: value for key, value in zip(keys, row, strict=False) if value is not None}
        if index < len(answers):
            answers[index].update(found)
        else:
            answers.append(found)
    if not plan.many and plan.rode:
        answers[0].update(plan.rode[0])
    return answers


def _answer(plan: Plan, key: str, value: Any) -> Any:
    return Loaded(SQL_NULL) if value is None and key in plan.codec.json else value


class _Shape(msgspec.Struct):
    """What the rows of one INSERT have in common: columns that are given, that are NULL, that nobody tells."""

    given: list[str]
    nulls: dict[str, Any]
    unknown: tuple[str, ...]


def _shape(plan: Plan, given: Mapping[str, Any], told: Mapping[str, Any]) -> _Shape:
    known = [column.key for column in plan.table.columns if column.key in given]
    missing = [column for column in plan.table.columns if column.key not in given and column.key not in told]
    unknown = [column for column in missing if column.key in plan.set_keys or has_default(column)]
    nulls = {column.key: _answer(plan, column.key, None) for column in missing if column not in unknown}
    return _Shape(known, nulls, tuple(str(column.name) for column in unknown))


def _updated(plan: Plan, context: Any, buffer: Buffer) -> list[Row]:
    if context.rowcount == 0:
        return []
    table, parameters, set_keys = plan.table, context.compiled_parameters, plan.set_keys
    keys = [(column.key, column._label) for column in table.primary_key]
    given_keys = [column.key for column in table.columns if column.key in parameters[0]]
    rode = plan.rode[0] if plan.rode and not plan.many else {}
    unknown = tuple(
        str(column.name)
        for column in table.columns
        if may_change(column, set_keys) and column.key not in given_keys and column.key not in rode
    )
    rows = []
    for given in parameters:
        after = {key: given[key] for key in given_keys}
        after.update(rode)
        key = {name: given[label] if label in given else given.get(name) for name, label in keys}
        before = _committed(buffer.states.pop((table, tuple(key.values())), None), table, after)
        rows.append(Row(key, before, after, unknown))
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
    return {} if state is None else _olds(state, table, after)


def known_values(state: Any, table: sa.Table) -> dict[str, Any]:
    """A row as the session has loaded it; what it has not loaded is left out."""
    return {} if state is None else _olds(state, table, table.columns.keys())


def _olds(state: Any, table: sa.Table, keys: Iterable[str]) -> dict[str, Any]:
    """Values in the database as the session loaded or last wrote them. ``committed_state`` is complete here still:

    after_execute of an UPDATE comes before the flush takes note of its outcome.
    """
    names, committed, current = _attributes(state.mapper, table), state.committed_state, state.dict
    found = {}
    for key in keys:
        name = names.get(key)
        if name is None:
            continue
        value = committed[name] if name in committed else current.get(name, _UNKNOWN)
        if not isinstance(value, _NO_VALUES):
            found[key] = value
    return found


_NO_VALUES = (LoaderCallableStatus, sa.sql.ClauseElement)


@lru_cache(maxsize=4096)
def _attributes(mapper: Any, table: sa.Table) -> dict[str, str]:
    """Column key -> attribute name of a mapped class, for one of its tables."""
    found = {column.key: mapper._columntoproperty.get(column) for column in table.columns}
    return {key: prop.key for key, prop in found.items() if prop is not None}

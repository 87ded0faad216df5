"""Reading rows beside a statement, where it cannot return them: executemany of a set-based UPDATE or DELETE, old values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .codec import Loaded
from .plan import Plan, Row, may_change


def present_rows(
    connection: Connection, plan: Plan, parameters: Iterable[Any]
) -> dict[tuple[Any, ...], dict[str, Loaded]]:
    """The rows that the statement's WHERE selects now, locked, by primary key."""
    query = _rows(plan, plan.statement.table).where(*plan.statement._where_criteria)
    if connection.dialect.name == "postgresql":
        query = query.with_for_update(of=plan.statement.table)
    found: dict[tuple[Any, ...], dict[str, Loaded]] = {}
    for given in parameters:
        found |= _by_key(plan, connection.execute(query, given))
    return found


def _rows(plan: Plan, source: Any) -> sa.Select[Any]:
    """Every captured column at the level of its SQL type."""
    columns = plan.codec.columns
    chosen = [
        sa.type_coerce(source.c[key], columns[key].kind).label(f"c{number}") for number, key in enumerate(columns)
    ]
    return sa.select(*chosen).select_from(source)


def _by_key(plan: Plan, result: Any) -> dict[tuple[Any, ...], dict[str, Loaded]]:
    keys = list(plan.codec.columns)
    rows = ({key: Loaded(value) for key, value in zip(keys, row, strict=True)} for row in result)
    return {tuple(row[name].value for name in plan.codec.key): row for row in rows}


def changed_rows(connection: Connection, plan: Plan) -> list[Row]:
    """After an executemany: the rows that were selected before it, as they are now."""
    assert plan.before is not None
    if plan.verb == "delete":
        return [Row({name: row[name] for name in plan.codec.key}, before=row) for row in plan.before.values()]
    now: dict[tuple[Any, ...], dict[str, Loaded]] = {}
    keys, table = list(plan.before), plan.table
    for start in range(0, len(keys), 500):
        within = sa.tuple_(*(table.c[name] for name in plan.codec.key)).in_(keys[start : start + 500])
        now |= _by_key(plan, connection.execute(_rows(plan, table).where(within)))
    return [_change(plan, before, now[key]) for key, before in plan.before.items() if key in now]


def _change(plan: Plan, before: dict[str, Loaded], after: dict[str, Loaded]) -> Row:
    set_here = plan.set_keys
    changed = [
        column.key
        for column in plan.table.columns
        if column.key in after and (may_change(column, set_here) or after[column.key].value != before[column.key].value)
    ]
    return Row(
        {name: before[name] for name in plan.codec.key},
        {key: before[key] for key in changed},
        {key: after[key] for key in changed},
    )

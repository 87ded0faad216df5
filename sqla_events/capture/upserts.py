"""Upserts: the rows that an ``INSERT … ON CONFLICT DO UPDATE`` finds, read before it where old values are wanted.

SQLite does not say whether a row was inserted or updated, PostgreSQL before 18 says it without the row as it was. With
``old_values: always`` the rows that have the values of the conflict's columns are looked up first. That takes values that
are parameters, and columns that the update leaves alone; else an event says no more than the database does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy.engine import Connection

from .column import Loaded
from .plan import Plan, conflicts
from .select import Values, matching, reserve


class Standing:
    """Rows by the values of the conflict's columns, as they are while the statement goes from one to the next."""

    def __init__(self, target: tuple[str, ...], rows: list[Values]) -> None:
        self.target = target
        self.rows = {self._place(row): row for row in rows}

    def _place(self, row: Mapping[str, Loaded]) -> tuple[Any, ...]:
        return tuple(row[name].value for name in self.target)

    def replaced(self, new: Values) -> Values | None:
        """The row that was there; None if there was none. The new one is from now on."""
        place = self._place(new)
        old = self.rows.get(place)
        self.rows[place] = new
        return old


def standing(connection: Connection, plan: Plan, context: Any) -> Standing | None:
    """The rows that an upsert will find; None where its parameters do not say which."""
    target = _target(plan)
    wanted = None if target is None else _wanted(plan, target, context.compiled_parameters)
    if target is None or wanted is None:
        return None
    reserve(connection)
    rows = matching(connection, plan, plan.codec, target, wanted, plan.codec.all_keys, lock=True, bound=True)
    return Standing(target, list(rows))


def moves_key(plan: Plan) -> bool:
    """Whether the row that is there may get another key, which nothing tells that comes back."""
    return any(
        name in plan.codec.key and not _stays(plan, name, value, _conflict(plan, clause))
        for clause in _updates(plan)
        for name, value in _changes(plan, clause).items()
    )


def _stays(plan: Plan, name: str, value: Any, target: tuple[str, ...]) -> bool:
    """Whether a column is set to what it is: its own value, or that of the conflict."""
    table = getattr(value, "table", None)
    if str(getattr(value, "name", "")) != str(plan.table.columns[name].name):
        return False
    return table is plan.table or (name in target and getattr(table, "name", None) == "excluded")


def _updates(plan: Plan) -> list[Any]:
    """Its ON CONFLICT DO UPDATE clauses."""
    return [one for one in conflicts(plan.statement) if hasattr(one, "update_values_to_set")]


def _changes(plan: Plan, clause: Any) -> dict[str, Any]:
    """What an upsert sets: key of the column -> value."""
    by_name = {str(column.name): column.key for column in plan.table.columns}
    said = dict(clause.update_values_to_set)
    return {by_name.get(str(getattr(name, "name", name)), str(name)): value for name, value in said.items()}


def _conflict(plan: Plan, clause: Any) -> tuple[str, ...]:
    """Keys of the columns whose values are in conflict; none where the statement does not name them."""
    by_name = {str(column.name): column.key for column in plan.table.columns}
    return tuple(by_name.get(str(getattr(one, "name", one)), "") for one in clause.inferred_target_elements or ())


def _target(plan: Plan) -> tuple[str, ...] | None:
    if len(clauses := _updates(plan)) != 1:
        return None  # which of them it will be nobody tells
    keys = _conflict(plan, clauses[0])
    moved = {name for name, value in _changes(plan, clauses[0]).items() if not _stays(plan, name, value, keys)}
    known = keys and all(key in plan.codec.all_keys for key in keys)
    return keys if known and not moved & set(keys) else None


def _wanted(plan: Plan, target: tuple[str, ...], sets: list[Mapping[str, Any]]) -> list[tuple[Any, ...]] | None:
    """The values of the conflict's columns in each row that goes in."""
    rows = len(plan.statement._multi_values[0]) if plan.statement._multi_values else 0
    found = list(_rows(target, sets, rows)) if plan.statement.select is None else [None]
    return None if None in found else [one for one in found if one is not None]


def _rows(target: tuple[str, ...], sets: list[Mapping[str, Any]], rows: int) -> Iterator[tuple[Any, ...] | None]:
    for given in sets:
        for number in range(max(rows, 1)):
            names = [f"{key}_m{number}" if rows else key for key in target]
            yield tuple(given[name] for name in names) if all(name in given for name in names) else None

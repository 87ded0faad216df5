"""SQLite: rows that a statement removes because they are in the way of what it writes (REPLACE). Nothing tells which.

An INSERT that replaces the row under its own key is an upsert. What it removes under other keys is a reported gap.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Dialect

_OPTIONS = {sa.PrimaryKeyConstraint: "on_conflict_primary_key", sa.UniqueConstraint: "on_conflict_unique"}


class Replacing:
    """What the constraints of a table say: "ON CONFLICT REPLACE"."""

    def __init__(self, table: sa.Table, dialect: Dialect) -> None:
        unique = [one for one in table.constraints if isinstance(one, (sa.PrimaryKeyConstraint, sa.UniqueConstraint))]
        replacing = [one for one in unique if _replaces(one)] if dialect.name == "sqlite" else []
        self.key = any(isinstance(one, sa.PrimaryKeyConstraint) for one in replacing)
        """Of the primary key."""
        self.columns = frozenset(column.key for one in replacing for column in one.columns)
        """Keys of the columns in such constraints."""
        self.others = any(isinstance(one, sa.UniqueConstraint) for one in replacing)
        indexes = (index for index in table.indexes if index.unique)
        self.unique = any(isinstance(one, sa.UniqueConstraint) for one in unique) or any(True for _ in indexes)
        """The table has other unique columns than those of the key."""

    def shape(self, shape: Any) -> Any:
        """An INSERT into a table whose key replaces is an upsert, although it does not say so."""
        return replace(shape, given=False, upsert=True) if self.key and shape.verb == "create" else shape

    def removes(self, plan: Any) -> bool:
        """Whether the statement may remove rows under other keys than those it writes."""
        if plan.verb == "create":
            return self.unique if plan.shape.replaces else self.others
        if plan.verb == "delete":
            return False
        return plan.shape.replaces or not self.columns.isdisjoint(plan.program.moved.union(plan.program.given))


def _replaces(constraint: Any) -> bool:
    said = [constraint.dialect_options["sqlite"]["on_conflict"]]
    if len(constraint.columns) == 1:
        (column,) = constraint.columns
        said.append(column.dialect_options["sqlite"][_OPTIONS[type(constraint)]])
    return any(str(one or "").upper() == "REPLACE" for one in said)


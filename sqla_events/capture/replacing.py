"""SQLite: rows that a statement removes because they are in the way of what it writes (REPLACE), and those that it has written
before one that fails (FAIL). Nothing tells which.

An INSERT that replaces the row under its own key is an upsert. What it removes under other keys is a reported gap. What a failed
statement has left is not to be committed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Dialect

_OPTIONS = {sa.PrimaryKeyConstraint: "on_conflict_primary_key", sa.UniqueConstraint: "on_conflict_unique"}


class Replacing:
    """What the constraints of a table say: "ON CONFLICT REPLACE", "ON CONFLICT FAIL"."""

    def __init__(self, table: sa.Table, dialect: Dialect) -> None:
        unique = [one for one in table.constraints if isinstance(one, (sa.PrimaryKeyConstraint, sa.UniqueConstraint))]
        replacing = [one for one in unique if "REPLACE" in _said(one)] if dialect.name == "sqlite" else []
        self.key = any(isinstance(one, sa.PrimaryKeyConstraint) for one in replacing)
        """Of the primary key."""
        self.columns = frozenset(column.key for one in replacing for column in one.columns)
        """Keys of the columns in such constraints."""
        self.others = any(isinstance(one, sa.UniqueConstraint) for one in replacing)
        indexes = (index for index in table.indexes if index.unique)
        self.unique = any(isinstance(one, sa.UniqueConstraint) for one in unique) or any(True for _ in indexes)
        """The table has other unique columns than those of the key."""
        self.fails = dialect.name == "sqlite" and (any("FAIL" in _said(one) for one in table.constraints) or _fails(table))
        """A statement that fails may have written rows."""

    def keeps(self, plan: Any) -> bool:
        """Whether a statement that has failed may have left rows of which nothing tells."""
        one_row = plan.shape.given or plan.shape.by_key
        return (self.fails or plan.shape.keeps) and not (one_row and not plan.whole)

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


def _said(constraint: Any) -> set[str]:
    said = [constraint.dialect_options["sqlite"].get("on_conflict")]
    if type(constraint) in _OPTIONS and len(constraint.columns) == 1:
        (column,) = constraint.columns
        said.append(column.dialect_options["sqlite"][_OPTIONS[type(constraint)]])
    return {str(one or "").upper() for one in said}


def _fails(table: sa.Table) -> bool:
    """Of NOT NULL."""
    return any(str(one.dialect_options["sqlite"]["on_conflict_not_null"] or "").upper() == "FAIL" for one in table.columns)


"""What is known about one statement while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import sqlalchemy as sa

from .codec import Loaded, TableCodec


@dataclass
class Plan:
    """One INSERT, UPDATE or DELETE on a captured table."""

    element: Any
    """What is executed: the statement, or a lambda or ``from_statement`` around it."""
    statement: Any
    table: sa.Table
    verb: str
    codec: TableCodec
    unit_of_work: bool
    """Made by a flush or a bulk method of a Session: parameters name columns, the WHERE is the primary key."""
    many: bool
    """More than one set of parameters."""
    want_old: bool
    ride: tuple[str, ...] = ()
    """Keys of the columns that ride along in RETURNING; ``old.`` before those of the row as it was."""
    rode: list[dict[str, Loaded]] = field(default_factory=list)
    """What came back, a dict for each row."""
    before: dict[tuple[Any, ...], dict[str, Loaded]] | None = None
    """Rows that the WHERE selects, read before the statement, by primary key."""

    @property
    def upsert(self) -> bool:
        """Whether an INSERT may have updated a row instead."""
        return type(getattr(self.statement, "_post_values_clause", None)).__name__ == "OnConflictDoUpdate"

    @property
    def set_keys(self) -> set[str]:
        """Keys of the columns that the statement itself sets, whatever to."""
        ordered = getattr(self.statement, "_ordered_values", None) or ()
        values = getattr(self.statement, "_values", None) or {}
        return {_key(column) for column in values} | {_key(column) for column, _ in ordered}


def _key(column: Any) -> str:
    return str(getattr(column, "key", column))


class Row(msgspec.Struct, gc=False):
    """One row that was written; values by column key."""

    key: dict[str, Any]
    """Primary key before the write."""
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    unknown: tuple[str, ...] = ()
    """Names of columns that may have changed to a value that nobody told."""
    verb: str | None = None
    """Where it is not the statement's: an upsert that updated."""
    upsert: bool = False
    """It was an upsert, and the database does not tell whether the row is new."""


def may_change(column: sa.Column[Any], set_keys: set[str]) -> bool:
    """Whether an UPDATE may change this column to something that its parameters do not say."""
    return (
        column.key in set_keys
        or column.computed is not None
        or column.onupdate is not None
        or column.server_onupdate is not None
    )

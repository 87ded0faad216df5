"""Which tables and operations, and which of their columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapper

from ..errors import ConfigError


class Choice:
    """Tables by pattern, mapped class or Table; operations by a pattern with a third part.

    :raises ConfigError: for anything else.
    """

    def __init__(self, wanted: tuple[Any, ...], default_schema: str) -> None:
        self._patterns = [one for one in wanted if isinstance(one, str)]
        self._tables = {table for one in wanted if not isinstance(one, str) for table in _tables_of(one)}
        self._names = {(table.schema or default_schema, str(table.name)) for table in self._tables}
        self._default_schema = default_schema

    def __bool__(self) -> bool:
        return bool(self._patterns or self._names)

    def has(self, table: sa.Table, operation: str) -> bool:
        """Whether an operation on the table is one of them."""
        return table in self._tables or self._matches(table.schema, str(table.name), operation)

    def names(self, schema: str | None, table: str, operation: str, fold: Callable[[str], str]) -> bool:
        """The same of a table that is known by name only.

        :param fold: makes names equal that are so for the database.
        """
        name = fold(schema or self._default_schema), fold(table)
        return name in {(fold(schema), fold(table)) for schema, table in self._names} or self._matches(schema, table, operation, fold)

    def _matches(self, schema: str | None, table: str, operation: str, fold: Callable[[str], str] = str) -> bool:
        full = fold(f"{schema or self._default_schema}.{table}")
        return any(fnmatchcase(full, fold(one)) or fnmatchcase(f"{full}.{operation}", fold(one)) for one in self._patterns)


def _tables_of(one: Any) -> list[sa.Table]:
    found = sa.inspect(one, raiseerr=False)
    tables: Iterable[Any] = found.tables if isinstance(found, Mapper) else [one]
    chosen = [table for table in tables if isinstance(table, sa.Table)]
    if not chosen:
        raise ConfigError(
            f"capture.include or capture.exclude has {one!r}; it must be a pattern, a mapped class or a Table"
        )
    return chosen


def columns(patterns: tuple[str, ...], word: str, default_schema: str) -> Callable[[sa.Column[Any]], bool]:
    """Whether a column is one of those that the patterns, or its own ``info``, name."""

    def chosen(column: sa.Column[Any]) -> bool:
        table = column.table
        full = f"{table.schema or default_schema}.{table.name}.{column.name}"
        named = any(fnmatchcase(full if "." in one else column.name, one) for one in patterns)
        return named or column.info.get("sqla_events") == word

    return chosen

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
        tables = (table for one in wanted if not isinstance(one, str) for table in _tables_of(one))
        self._names = {(table.schema or default_schema, str(table.name)) for table in tables}
        self._default_schema = default_schema

    def __bool__(self) -> bool:
        return bool(self._patterns or self._names)

    def has(self, schema: str | None, table: str, operation: str, fold: Callable[[str], str]) -> bool:
        """Whether an operation on a table is one of them; on any Table of that name.

        :param fold: makes names equal that are so for the database.
        """
        schema, table = fold(schema or self._default_schema), fold(table)
        names = f"{schema}.{table}", f"{schema}.{table}.{operation}"
        return (schema, table) in {(fold(one), fold(other)) for one, other in self._names} or any(
            fnmatchcase(name, fold(one)) for one in self._patterns for name in names
        )


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

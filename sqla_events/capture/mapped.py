"""What the mapped classes of the application say of its tables. Other threads may be declaring some meanwhile, and not all of those
that are declared are mapped (``DeferredReflection``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapper

from .kept import ByIdentity

_keys: ByIdentity[tuple[str, ...]] = ByIdentity()


def key_columns(table: sa.Table) -> tuple[str, ...]:
    """Keys of the columns that identify a row: the primary key, or what a mapper takes for it where the table has none."""
    return tuple(column.key for column in table.primary_key) or _keys.get(table, _mapped_key)


def _mapped_key(table: sa.Table) -> tuple[str, ...]:
    for mapper in _mappers():
        key = getattr(mapper, "primary_key", None)
        if key and mapper.local_table is table and all(column.table is table for column in key):
            return tuple(str(column.key) for column in key)
    return ()


def declared(clause: sa.TableClause) -> sa.Table | None:
    """The table of a mapped application's metadata that a mere ``table()`` means, if there is just one and it has these columns."""
    name = f"{clause.schema}.{clause.name}" if clause.schema else clause.name
    metadata = {registry.metadata for registry in _registries()}
    found: list[sa.Table] = [one.tables[name] for one in metadata if name in one.tables]
    if len(found) != 1 or not all(column.key in found[0].c and found[0].c[column.key].name == column.name for column in clause.c):
        return None
    return found[0]


def of_post_update(statement: Any, table: sa.Table) -> bool:
    """Whether a statement of the unit of work is one for ``post_update``: mappers keep these under this name."""
    return any(mapper._memoized_values.get(("post_update", table)) is statement for mapper in _mappers())


def _mappers() -> Iterator[Mapper[Any]]:
    for registry in _registries():
        for reference in registry._managers.keyrefs():
            manager = reference()
            if manager is not None and manager.is_mapped:
                yield manager.mapper


def _registries() -> Iterator[Any]:
    registries = (reference() for reference in sa.orm.mapperlib._mapper_registries.keyrefs())
    return (registry for registry in registries if registry is not None)

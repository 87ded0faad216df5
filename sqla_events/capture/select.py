"""Reading rows beside a statement, where it cannot return them: as they were, and whether they are there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .codec import Loaded
from .plan import Plan
from .rows import key_after


def present_rows(connection: Connection, plan: Plan, context: Any, given: Mapping[str, Any]) -> list[dict[str, Loaded]]:
    """The rows that the statement's WHERE selects now, locked, with every captured column.

    The WHERE is that of the compiled statement: an ORM statement gets criteria of its class there. Its parameters are
    found by their identity, since a compiled statement is shared by all that look like it.
    """
    target = plan.statement.table
    criteria = context.compiled.dml_compile_state.statement._where_criteria
    query = _columns(plan, target).select_from(target).where(*criteria)
    if connection.dialect.name == "postgresql":
        query = query.with_for_update(of=target)
    compiled = query.compile(dialect=connection.dialect)
    names = context.compiled.bind_names
    values = {name: given[names[bound]] for bound, name in compiled.bind_names.items() if names.get(bound) in given}
    return list(_rows(plan, connection.execute(query, values)))


def _columns(plan: Plan, source: Any) -> sa.Select[Any]:
    """Every captured column at the level of its SQL type."""
    kinds = plan.codec.kinds
    return sa.select(*(sa.type_coerce(source.c[key], kinds[key]).label(f"c{n}") for n, key in enumerate(kinds)))


def _rows(plan: Plan, result: Any) -> Iterator[dict[str, Loaded]]:
    keys = list(plan.codec.kinds)
    for row in result:
        yield {key: Loaded(value) for key, value in zip(keys, row, strict=True)}


def still_there(connection: Connection, plan: Plan, sets: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """After an UPDATE by key that matched fewer rows than it has sets of parameters: the sets whose row exists."""
    table, codec = plan.table, plan.codec
    columns = [table.c[name] for name in codec.key]
    found: set[str | None] = set()
    for keys in _portions((tuple(key_after(plan, given).values()) for given in sets), 500):
        kinds = [sa.type_coerce(column, codec.kinds[column.key]) for column in columns]
        for row in connection.execute(sa.select(*kinds).where(sa.tuple_(*columns).in_(keys))):
            found.add(codec.key_text({name: Loaded(value) for name, value in zip(codec.key, row, strict=True)}))
    return [given for given in sets if codec.key_text(key_after(plan, given)) in found]


def _portions(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    left = iter(items)
    while portion := list(islice(left, size)):
        yield portion

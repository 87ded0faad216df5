"""Reading rows beside a statement, where it cannot return them: as they were, and whether they are there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.types import TypeEngine

from .. import encoding
from . import pipeline
from .codec import TableCodec
from .column import Loaded, as_it_is, load_rows
from .plan import Plan, Row, needed_keys
from .ride import compiled_target
from .rows import key_after

Values = dict[str, Loaded]


_Item = TypeVar("_Item")


def reserve(connection: Connection) -> None:
    """Before rows are read that a statement will change: let nobody change them in between.

    On SQLite by taking the write lock, which the driver would take with the statement only. On PostgreSQL rows are locked.
    """
    raw = connection.connection
    if connection.dialect.name == "sqlite" and not getattr(raw.driver_connection, "in_transaction", True):
        cursor = raw.cursor()
        cursor.execute("BEGIN IMMEDIATE")
        cursor.close()


def present_rows(
    connection: Connection, plan: Plan, context: Any, given: Mapping[str, Any], names: Sequence[str] = ()
) -> list[Values] | None:
    """The rows that the statement's WHERE selects now, locked, with every column that events need, or those that are named.

    The WHERE is that of the compiled statement: an ORM statement gets criteria of its class there. Its parameters are
    found by their identity, since a compiled statement is shared by all that look like it. None where one of them is known no more
    (``literal_execute``).
    """
    reserve(connection)
    target, names = compiled_target(context), names or needed_keys(plan)
    criteria = context.compiled.dml_compile_state.statement._where_criteria
    query = _columns(plan.codec, target, names).select_from(target).where(*criteria)
    if connection.dialect.name == "postgresql":
        query = query.with_for_update(of=target)
    compiled = query.compile(dialect=connection.dialect)
    known = context.compiled.bind_names
    values = {name: given[known[bound]] for bound, name in compiled.bind_names.items() if known.get(bound) in given}
    for bound, name in compiled.bind_names.items():
        if name not in values and bound.required:
            several = (context._expanded_parameters or {}).get(known.get(bound))
            if several is None:
                return None
            values[name] = [given[one] for one in several]
    return list(_rows(plan.codec, names, _run(connection, plan, query, values)))


def matching(
    connection: Connection,
    plan: Plan,
    reader: TableCodec,
    columns: Sequence[str],
    wanted: Iterable[tuple[Any, ...]],
    names: Sequence[str],
    *,
    lock: bool = False,
    bound: bool = False,
) -> Iterator[Values]:
    """Rows of a table whose columns have one of the wanted values: those of the database, or as a caller binds them."""
    table = reader.table
    sides = [table.c[name] if bound else sa.type_coerce(table.c[name], reader.kind(name)) for name in columns]
    query = _columns(reader, table, names)
    if lock and connection.dialect.name == "postgresql":
        query = query.with_for_update()
    for some in portions((one for one in dict.fromkeys(wanted) if None not in one), 500):
        yield from _rows(reader, names, _run(connection, plan, query.where(_is_one_of(sides, some)), {}))


def _is_one_of(sides: Sequence[Any], wanted: Sequence[tuple[Any, ...]]) -> Any:
    """Whatever types the values have, they are bound as the columns are: of themselves all would be bound as the first is."""
    side: Any = sides[0] if len(sides) == 1 else sa.tuple_(*sides)
    values = [one[0] for one in wanted] if len(sides) == 1 else wanted
    return side.in_(sa.bindparam("wanted", values, expanding=True, type_=side.type))


def _columns(reader: TableCodec, source: Any, names: Sequence[str]) -> sa.Select[Any]:
    """Columns at the level of their SQL types; JSON as it is stored, since SQLAlchemy makes None of a JSON null and of NULL."""
    as_text = reader.dialect.name == "postgresql"
    return sa.select(*(_column(source.c[key], reader.kind(key), as_text).label(f"c{n}") for n, key in enumerate(names)))


def _column(column: Any, kind: TypeEngine[Any], as_text: bool) -> Any:
    if isinstance(kind, sa.JSON) and as_text:
        return sa.cast(column, sa.Text())
    return sa.type_coerce(column, sa.types.NullType() if kind._has_column_expression or isinstance(kind, sa.JSON) else kind)


def _run(connection: Connection, plan: Plan, query: sa.Select[Any], values: Mapping[str, Any]) -> Any:
    options: dict[str, Any] = {pipeline.WAITS: True}
    if plan.translate is not None:
        options["schema_translate_map"] = plan.translate
    return connection.execute(query, values, execution_options=options)


def _rows(reader: TableCodec, names: Sequence[str], result: Any) -> Iterator[Values]:
    raw = {key: codec for key, codec in reader.columns.items() if codec.is_json or codec.kind._has_column_expression}
    loads = [raw[key].loader(None) if key in raw else as_it_is for key in names]
    return load_rows(names, loads, result)


def still_there(connection: Connection, plan: Plan, sets: Sequence[Mapping[str, Any]], matched: int) -> list[bool]:
    """After an UPDATE by key that matched fewer rows than it has sets of parameters: for each whether it did."""
    return _done(connection, plan, sets, [key_after(plan, given) for given in sets], matched)


def gone(connection: Connection, plan: Plan, rows: Sequence[Values]) -> Iterator[Values]:
    """Of rows that an UPDATE has found, and moved some of to other keys (``OR IGNORE``, a trigger's doing): those that are not what
    they were.
    """
    codec, before = plan.codec, plan.before or ()
    written = {codec.key_text(row) for row in rows}
    wanted = [tuple(row[name].value for name in codec.key) for row in before]
    there = {codec.key_text(row) for row in matching(connection, plan, codec, codec.key, wanted, codec.key)}
    return (row for row in before if (key := codec.key_text(row)) in written or key not in there)


def went_in(connection: Connection, plan: Plan, sets: Sequence[Mapping[str, Any]]) -> list[int]:
    """After an INSERT that let fewer rows in than it has sets of parameters: for each set whether its row went in."""
    if len(sets) == 1:
        return [0]
    keys = [{name: given[name] for name in plan.codec.key} for given in sets]
    return [*map(int, _done(connection, plan, sets, keys, plan.rows))]


def _done(
    connection: Connection, plan: Plan, sets: Sequence[Mapping[str, Any]], keys: Sequence[Mapping[str, Any]], count: int
) -> list[bool]:
    """Which sets of parameters have been written: their row is there, and as they say. One of the same key may have been in the way
    of another, which a trigger or a policy has kept from being written.
    """
    codec = plan.codec
    given = [key for key in plan.program.given if key in codec.columns]
    names = tuple(dict.fromkeys((*codec.key, *given)))
    wanted = [tuple(key.values()) for key in keys]
    there = {codec.key_text(row): row for row in matching(connection, plan, codec, codec.key, wanted, names, bound=True)}
    found = [there.get(codec.key_text(codec.moments(dict(key), connection))) for key in keys]
    if sum(row is not None for row in found) != count:
        found = [row if row is not None and _is_as_given(codec, row, one, given) else None for row, one in zip(found, sets, strict=True)]
    return [row is not None for row in found]


def _is_as_given(codec: TableCodec, row: Values, given: Mapping[str, Any], names: Sequence[str]) -> bool:
    sides = ({key: row[key] for key in names}, {key: given[key] for key in names})
    mine, theirs = (encoding.dumps(codec.side(side, "after", {})) for side in sides)
    return mine == theirs


def refresh(connection: Connection, plan: Plan, rows: Sequence[Row]) -> None:
    """Put into rows what triggers have set: what SQLite returns of a row is how it was before they ran."""
    codec = plan.codec
    names = [name for name, on_update in codec.triggered.items() if on_update or plan.verb == "create"]
    keys = [{name: (row.after or {}).get(name, row.key.get(name)) for name in codec.key} for row in rows]
    levels = [tuple(codec.level(name, value) for name, value in key.items()) for key in keys]
    found = {codec.key_text(one): one for one in matching(connection, plan, codec, codec.key, levels, (*codec.key, *names))}
    for row, key in zip(rows, keys, strict=True):
        one = found.get(codec.key_text(key))
        if one is not None and row.after is not None:
            row.after.update({name: one[name] for name in names})


def portions(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Lists of at most so many."""
    left = iter(items)
    while portion := list(islice(left, size)):
        yield portion

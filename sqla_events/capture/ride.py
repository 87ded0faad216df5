"""Ride-along RETURNING: columns that are wanted from a statement and that nobody else asks it for.

They are appended to the SQL *string* on its way to the cursor and cut off again before SQLAlchemy looks at what came
back. So its compiled cache, the unit of work's bookkeeping and the caller's Result stay as they are; adding
``return_defaults()`` to the unit of work's own UPDATE instead would change which attributes it expires.

Private names of SQLAlchemy used here, the same in 2.0 and 2.1: the cursor fetch strategies, ``_rowcount``,
``_truncated_identifier``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import cursor

from .column import Loaded, as_it_is, load_rows
from .plan import Plan, moves, needed_keys

OLD = "\0old."
INSERTED = "\0inserted"
"""Whether an upsert inserted: PostgreSQL's ``xmax = 0``. No column can be called so."""

MOST_COLUMNS = 1664
"""Of a result, on PostgreSQL."""

CHUNK = 1000
"""Rows that are taken off a cursor at a time: a statement that writes a million must not hold a million in Python."""


def old_rides(plan: Plan, dialect: Any) -> bool:
    """Whether RETURNING can tell the row as it was: PostgreSQL 18's ``old``, unless a table of the statement is called that."""
    recent = dialect.name == "postgresql" and (dialect.server_version_info or (0,)) >= (18,)
    return recent and not any(str(getattr(table, "name", "")).lower() in ("old", "new") for table in _tables(plan))


def _tables(plan: Plan) -> list[Any]:
    """Those that the names in RETURNING may mean: the target, and what stands in FROM or USING."""
    state = None if plan.context is None else plan.context.compiled.dml_compile_state
    others = [one for table in getattr(state, "_extra_froms", ()) for one in (table, *table._from_objects)]
    return [plan.statement.table, *others]


def can_return(plan: Plan, dialect: Any) -> bool:
    """Whether the database has RETURNING for this kind of statement."""
    flags = {"create": dialect.insert_returning, "update": dialect.update_returning, "delete": dialect.delete_returning}
    return bool(flags[plan.verb])


def along(plan: Plan, sql: str, context: Any) -> str:
    """The statement with what is wanted from it, as ``plan.ride`` says afterwards; as it is where nothing is."""
    wanted = () if not can_return(plan, context.dialect) else _wanted(plan, context)
    if not wanted:
        return sql
    plan.ride = wanted
    joint = ", " if returns(context.compiled) else " RETURNING "
    return sql + ("\n" if "--" in sql else "") + joint + ", ".join(columns(plan, context, compiled_target(context)))


def returns(compiled: Any) -> bool:
    """Whether a statement returns anything, text too."""
    return bool(compiled.effective_returning) or bool(getattr(compiled.statement, "_returning", ()))


def columns(plan: Plan, context: Any, target: Any, keys: Sequence[str] | None = None) -> list[str]:
    """SQL of what rides along with a statement that writes to the target, or of other keys."""
    owner = _owner(plan, context, target)
    return [_sql(plan, key, owner, context) for key in (plan.ride if keys is None else keys)]


def _wanted(plan: Plan, context: Any) -> tuple[str, ...]:
    if plan.whole:
        return whole(plan, context.dialect)
    wanted = plan.program.unsaid
    if plan.program.uncounted or (plan.own and context.dialect.driver == "asyncpg"):  # only its rows tell which sets have matched
        wanted = wanted.union(plan.codec.key)
    return tuple(key for key in plan.codec.all_keys if key in wanted)


def whole(plan: Plan, dialect: Any) -> tuple[str, ...]:
    """What has to ride along so that rows come back whole."""
    keys = needed_keys(plan)
    olds = tuple(OLD + key for key in keys)
    if plan.shape.upsert and dialect.name == "postgresql":
        if old_rides(plan, dialect) and 2 * len(keys) <= MOST_COLUMNS:
            return (*keys, *olds)
        partitioned = plan.table.dialect_options["postgresql"]["partition_by"]  # has no xmax
        return keys if partitioned else (*keys, INSERTED)
    wants_old = plan.verb == "update" and (plan.want_old or moves(plan)) and old_rides(plan, dialect)
    return (*keys, *olds) if wants_old else keys


def _sql(plan: Plan, key: str, owner: str, context: Any) -> str:
    if key == INSERTED:
        return f"({owner}.xmax = 0)"
    column = context.dialect.identifier_preparer.format_column(plan.table.columns[key.removeprefix(OLD)])
    codec = plan.codec.columns.get(key.removeprefix(OLD))
    cast = "::text" if codec is not None and codec.as_text else ""
    if key.startswith(OLD):
        return f"old.{column}{cast}"
    return str(column) if context.dialect.name == "sqlite" else f"{owner}.{column}{cast}"


def _owner(plan: Plan, context: Any, target: Any) -> str:
    """The name under which RETURNING knows the table."""
    quote = context.dialect.identifier_preparer.quote
    if isinstance(target, sa.sql.selectable.AliasedReturnsRows):
        owner = target.name
        if isinstance(owner, sa.sql.elements._truncated_label):
            owner = context.compiled._truncated_identifier("alias", owner)
        return str(quote(owner))
    schema = plan.table.schema
    if plan.translate is not None:
        schema = plan.translate.get(schema, schema)
    name = str(quote(plan.table.name))
    return f"{quote(schema)}.{name}" if schema and has_namesake(plan, context) else name


def has_namesake(plan: Plan, context: Any) -> bool:
    """Whether a table of the same name in another schema is in the statement."""
    froms = getattr(context.compiled.dml_compile_state, "_extra_froms", ())
    return any(isinstance(one, sa.Table) and one.name == plan.table.name for each in froms for one in each._from_objects)


def compiled_target(context: Any) -> Any:
    """What the statement writes to, as it was compiled: another one like it may have been, with an alias of its own."""
    return context.compiled.dml_compile_state.statement.table


# Taking off ---------------------------------------------------------------------------------------------------------


def take_off(plan: Plan, dbapi_cursor: Any, context: Any) -> Iterator[list[dict[str, Loaded]]]:
    """Cut off what rode along, some rows at a time, and leave the cursor to SQLAlchemy as if it had not."""
    description, kept, total = dbapi_cursor.description, [], 0
    keeps = context.dialect.name == "sqlite" and context.execution_options.get("preserve_rowcount")
    said = dbapi_cursor.rowcount if keeps else -1
    own = len(description) - len(plan.ride)
    codes = [column[1] for column in description[own:]]
    while rows := dbapi_cursor.fetchmany(CHUNK):
        total += len(rows)
        if context.isinsert and context.dialect.driver == "aiosqlite" and dbapi_cursor.lastrowid == -1:
            _tell_rowid(plan, dbapi_cursor, rows[-1][own:])
        if own:
            kept += [tuple(row[:own]) for row in rows]
        yield loaded(plan, rows, own, codes)
    if own:
        leave(context, dbapi_cursor, kept, description[:own])
    else:
        context.cursor_fetch_strategy = cursor._NO_CURSOR_DML
    if own and keeps:
        context._rowcount = said  # as it would be before anything is fetched
    elif not context.isinsert or (not own and context.dialect.driver == "aiosqlite"):  # to 2.0 it tells nothing of what returns rows
        counts = context.dialect.name != "sqlite" or not context.statement.startswith("WITH")  # of which SQLite's driver tells nothing
        context._rowcount = total if counts else -1


def _tell_rowid(plan: Plan, dbapi_cursor: Any, ridden: Sequence[Any]) -> None:
    """aiosqlite behind SQLAlchemy 2.0 forgets ``lastrowid`` of a statement that returns rows, and the ORM goes by it."""
    column = plan.table.autoincrement_column
    if column is not None and column.key in plan.ride:
        dbapi_cursor.lastrowid = ridden[plan.ride.index(column.key)]


class _Cut:
    """A cursor, for whoever asks the result for it: it does not tell of columns that rode along."""

    __slots__ = ("_cursor", "description")

    def __init__(self, dbapi_cursor: Any, description: Any) -> None:
        self._cursor = dbapi_cursor
        self.description = description

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def __eq__(self, other: object) -> bool:
        return bool(self._cursor == other)

    def __hash__(self) -> int:
        return hash(self._cursor)


def leave(context: Any, dbapi_cursor: Any, rows: list[tuple[Any, ...]], description: Any) -> None:
    """Let SQLAlchemy find these rows, instead of those of the cursor."""
    context.cursor = _Cut(context.cursor, description)
    context.cursor_fetch_strategy = cursor.FullyBufferedCursorFetchStrategy(
        dbapi_cursor, alternate_description=description, initial_buffer=rows
    )
    context.fetchall_for_returning = lambda _: rows


def loaded(plan: Plan, rows: Sequence[Any], own: int, codes: Sequence[Any]) -> list[dict[str, Loaded]]:
    """Rows of the driver as values at the level of their columns' SQL types; the first ``own`` columns are not ours."""
    codecs = plan.codec.columns
    loads = [
        codecs[plain].loader(code) if (plain := key.removeprefix(OLD)) in codecs else as_it_is
        for key, code in zip(plan.ride, codes, strict=True)
    ]
    return [*load_rows(plan.ride, loads, (row[own:] for row in rows) if own else rows)]

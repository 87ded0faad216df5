"""Ride-along RETURNING: columns that are wanted from a statement and that nobody else asks it for.

They are appended to the SQL *string* on its way to the cursor and cut off again before SQLAlchemy looks at what came
back. So its compiled cache, the unit of work's bookkeeping and the caller's Result stay as they are; adding
``return_defaults()`` to the unit of work's own UPDATE instead would change which attributes it expires.

Private names of SQLAlchemy used here, the same in 2.0 and 2.1: the cursor fetch strategies, ``_rowcount``,
``_truncated_identifier``.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import cursor

from .codec import Loaded
from .plan import Plan, may_change

OLD = "old."
INSERTED = "inserted?"
"""Whether an upsert inserted: PostgreSQL's ``xmax = 0``."""


def old_rides(dialect: Any) -> bool:
    """Whether RETURNING can tell the row as it was."""
    return dialect.name == "postgresql" and (dialect.server_version_info or (0,)) >= (18,)


def along(plan: Plan, sql: str, context: Any, executemany: bool) -> str:
    """The statement with what is wanted from it; as it is where nothing is, or nothing can ride."""
    if executemany and context.execute_style.name != "INSERTMANYVALUES":  # the driver's executemany returns no rows
        return sql
    wanted = _wanted(plan, context)
    if not wanted or not _can_return(plan, context.dialect):
        return sql
    plan.ride = wanted
    riders = [_sql(plan, key, context) for key in wanted]
    if plan.upsert and context.dialect.name == "postgresql":
        plan.ride += (INSERTED,)
        riders.append(f"({_owner(plan, context)}.xmax = 0)")
    if plan.want_old and plan.verb == "update" and not plan.unit_of_work and old_rides(context.dialect):
        plan.ride += tuple(OLD + key for key in wanted)
        riders += [
            f"old.{context.dialect.identifier_preparer.format_column(plan.table.columns[key])}" for key in wanted
        ]
    joint = ", " if context.compiled.effective_returning else " RETURNING "
    return sql + joint + ", ".join(riders)


def _can_return(plan: Plan, dialect: Any) -> bool:
    return bool(
        {"create": dialect.insert_returning, "update": dialect.update_returning, "delete": dialect.delete_returning}[
            plan.verb
        ]
    )


def _wanted(plan: Plan, context: Any) -> tuple[str, ...]:
    keys = tuple(column.key for column in plan.table.columns)
    if not plan.unit_of_work:
        return keys
    if plan.verb == "create":
        return _unsaid(plan, context)
    if plan.verb == "update":
        given = context.compiled_parameters[0]
        return tuple(
            column.key for column in plan.table.columns if column.key not in given and may_change(column, plan.set_keys)
        )
    return ()


def _unsaid(plan: Plan, context: Any) -> tuple[str, ...]:
    """Columns of an INSERT that neither parameters nor SQLAlchemy's own RETURNING tell, and that are not simply NULL.

    With several rows nothing rides: what comes back is in no order that could be trusted.
    """
    if plan.many:
        return ()
    given = context.compiled_parameters[0]
    told = {getattr(column, "key", None) for column in context.compiled.effective_returning or ()}
    return tuple(
        column.key
        for column in plan.table.columns
        if column.key not in given and column.key not in told and (column.key in plan.set_keys or has_default(column))
    )


def has_default(column: sa.Column[Any]) -> bool:
    """Whether a column that is not given becomes something else than NULL."""
    return (
        column.server_default is not None
        or column.default is not None
        or column.primary_key
        or column.computed is not None
        or column.identity is not None
    )


def _sql(plan: Plan, key: str, context: Any) -> str:
    preparer = context.dialect.identifier_preparer
    name = preparer.format_column(plan.table.columns[key])
    return str(name) if context.dialect.name == "sqlite" else f"{_owner(plan, context)}.{name}"


def _owner(plan: Plan, context: Any) -> str:
    """The name under which RETURNING knows the table."""
    target = plan.statement.table
    if isinstance(target, sa.sql.selectable.AliasedReturnsRows):
        owner = target.name
        if isinstance(owner, sa.sql.elements._truncated_label):
            owner = context.compiled._truncated_identifier("alias", owner)
    else:
        owner = plan.table.name
    return str(context.dialect.identifier_preparer.quote(owner))


def take_off(plan: Plan, dbapi_cursor: Any, context: Any) -> None:
    """Cut off what rode along, and leave the cursor to SQLAlchemy as if it had not."""
    rows, count = dbapi_cursor.fetchall(), len(plan.ride)
    description = dbapi_cursor.description
    own = len(description) - count
    codes = [column[1] for column in description[own:]]
    plan.rode += [_loaded(plan, row[own:], codes) for row in rows]
    if own == 0:
        context.cursor_fetch_strategy = cursor._NO_CURSOR_DML
    else:
        _leave(context, dbapi_cursor, [tuple(row[:own]) for row in rows], description[:own])
    if not context.isinsert:
        context._rowcount = len(rows)


def _leave(context: Any, dbapi_cursor: Any, rows: list[tuple[Any, ...]], description: Any) -> None:
    context.cursor_fetch_strategy = cursor.FullyBufferedCursorFetchStrategy(
        dbapi_cursor, alternate_description=description, initial_buffer=rows
    )
    context.fetchall_for_returning = lambda _: rows


def _loaded(plan: Plan, row: Any, codes: list[Any]) -> dict[str, Loaded]:
    columns = plan.codec.columns
    return {
        key: Loaded(columns[plain].loaded(raw, code) if (plain := key.removeprefix(OLD)) in columns else raw)
        for key, raw, code in zip(plan.ride, row, codes, strict=True)
    }

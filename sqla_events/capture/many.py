"""Many sets of parameters in one execution, in a way that tells what each of them did.

A driver's executemany returns no rows, and at best the sum of the rows that matched. That is not enough where a row may
be gone (its event would be about nothing), where the database sets columns, and where SQLite keeps what was written
before the set that failed. So the sets run here instead, in the cheapest way that the driver has:

==========  ===================================================================================================
pysqlite    ``executemany``, which asks for one set after the other and adds up ``rowcount`` as it goes: the sum
            between two sets tells what the last one matched; where columns ride along, one by one: 0.6 to 1.3 us
            a row more
aiosqlite   the same (behind SQLAlchemy 2.0 one by one); one by one is a visit to its thread for each
psycopg     ``executemany(returning=True)``, in its pipeline
asyncpg     ``fetchmany`` of the prepared statement, which is pipelined too; one by one where the rows that come back would
            not tell which sets they are of
==========  ===================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import cursor as strategies
from sqlalchemy.util import await_only

from .plan import Plan
from .ride import loaded

Rows = list[Any]


class Tally:
    """Takes what each set did into the plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.counts: list[int] = []
        plan.counts = self.counts

    def __call__(self, rows: Rows, matched: int, description: Any) -> None:
        """One set has returned these rows, and matched so many; the description is the cursor's."""
        self.counts.append(matched)
        if rows:
            self.plan.rode += loaded(self.plan, rows, 0, [column[1] for column in description])


def run(plan: Plan, cursor: Any, sql: str, parameters: Sequence[Any], context: Any) -> None:
    """Run the sets and take note in ``plan.counts`` and ``plan.rode``, as far as they got if one of them fails."""
    done = Tally(plan)
    dialect = context.dialect
    runner = _RUNNERS.get((dialect.driver, bool(dialect.is_async)), _one_by_one)
    if dialect.name == "sqlite" and not plan.ride and _sqlite_cursor(cursor) is not None:
        runner = _watched
    if runner is _asyncpg:
        plan.together = not _which_is_unclear(plan, context)
        runner = _asyncpg if plan.together else _one_by_one
    try:
        runner(cursor, sql, parameters, done)
    finally:
        context.cursor_fetch_strategy = strategies._NO_CURSOR_DML
    told = not context.isinsert or dialect.name == "sqlite" or context.execution_options.get("preserve_rowcount")
    if dialect.supports_sane_multi_rowcount and told:  # as the driver's executemany tells
        context._rowcount = sum(done.counts)
    elif dialect.driver == "asyncpg":
        context._rowcount = -1


def _which_is_unclear(plan: Plan, context: Any) -> bool:
    """Whether rows that come back do not tell by their keys which sets they are of."""
    if plan.whole or not plan.shape.by_key:
        return False
    if any(key in plan.program.given or key in plan.program.moved for key in plan.codec.key):
        return True
    if any(_is_told_otherwise(plan, name, label, context.compiled_parameters) for name, label in plan.shape.by_key):
        return True
    if plan.shape.exact:
        return False
    keys = [{name: given[label] for name, label in plan.shape.by_key} for given in context.compiled_parameters]
    return len({plan.codec.key_text(key) for key in keys}) < len(keys)


def _is_told_otherwise(plan: Plan, name: str, label: str, sets: Sequence[Any]) -> bool:
    """Whether a part of the key may come back as another value than was bound: in fewer places, or with a time zone."""
    codec = plan.codec.key_codecs[name]
    if codec.narrows or isinstance(codec.kind, sa.Interval):
        return True
    return getattr(codec.kind, "timezone", False) and any(getattr(given[label], "tzinfo", None) is None for given in sets)


def _one_by_one(cursor: Any, sql: str, parameters: Sequence[Any], done: Tally) -> None:
    for given in parameters:
        cursor.execute(sql, given)
        description = cursor.description
        rows = cursor.fetchall() if description else []
        done(rows, len(rows) if description else cursor.rowcount, description)


def _sqlite_cursor(cursor: Any) -> Any:
    """The driver's own cursor: the one whose ``rowcount`` moves while it runs; None behind SQLAlchemy 2.0's aiosqlite."""
    from sqlite3 import Cursor  # not at the top: a process that only consumes needs no driver

    candidates = (cursor, getattr(getattr(cursor, "_cursor", None), "_cursor", None))
    return next((one for one in candidates if isinstance(one, Cursor)), None)


def _watched(cursor: Any, sql: str, parameters: Sequence[Any], done: Tally) -> None:
    cursor.executemany(sql, _told(_sqlite_cursor(cursor), parameters, done.counts))


def _told(raw: Any, parameters: Sequence[Any], counts: list[int]) -> Iterator[Any]:
    """The sets; each is done when the next one is asked for, unless it failed."""
    before = 0
    for given in parameters:
        yield given
        now = raw.rowcount
        counts.append(now - before)
        before = now


def _psycopg(cursor: Any, sql: str, parameters: Sequence[Any], done: Tally) -> None:
    cursor.executemany(sql, parameters, returning=True)
    _results(cursor, cursor.fetchall, done)


def _psycopg_async(cursor: Any, sql: str, parameters: Sequence[Any], done: Tally) -> None:
    raw = cursor._cursor
    await_only(raw.executemany(sql, parameters, returning=True))
    _results(raw, lambda: await_only(raw.fetchall()), done)


def _results(cursor: Any, fetchall: Callable[[], Rows], done: Tally) -> None:
    while True:
        done(fetchall() if cursor.description else [], cursor.rowcount, cursor.description)
        if not cursor.nextset():
            return


def _asyncpg(cursor: Any, sql: str, parameters: Sequence[Any], done: Tally) -> None:
    """Which set a row is of is not told: see :func:`rows.matched`."""
    rows, description = await_only(_fetchmany(cursor, sql, parameters))
    done(rows, len(rows), description)


async def _fetchmany(cursor: Any, sql: str, parameters: Sequence[Any]) -> tuple[Rows, Any]:
    adapted = cursor._adapt_connection
    async with adapted._execute_mutex:
        if adapted._transaction is None:
            await adapted._start_transaction()
        try:
            statement, attributes = await adapted._prepare(sql, cursor._invalidate_schema_cache_asof)
            rows = await _fetched(statement, parameters)
        except Exception as error:
            cursor._handle_exception(error)
    return rows, [(one.name, one.type.oid) for one in attributes]


async def _fetched(statement: Any, parameters: Sequence[Any]) -> Rows:
    if hasattr(statement, "fetchmany"):  # asyncpg >= 0.30
        return list(await statement.fetchmany(parameters))
    return [row for given in parameters for row in await statement.fetch(*given)]


_RUNNERS: dict[tuple[str, bool], Callable[[Any, str, Sequence[Any], Tally], None]] = {
    ("psycopg", False): _psycopg,
    ("psycopg", True): _psycopg_async,
    ("asyncpg", True): _asyncpg,
}
"""By the dialect's driver, and whether it is asynchronous."""

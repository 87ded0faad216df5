"""Data-modifying CTEs (PostgreSQL): their rows come back behind those of the caller, and are taken off again.

Nothing but the outermost statement of SQLAlchemy passes the engine's listeners. So the SQL string is put together anew on its
way to the cursor, with the same parameters::

    WITH c AS (UPDATE t … RETURNING t.id, t.id AS e0, t.n AS e1), q AS (the caller's statement)
    SELECT 0, q.*, c.e0, c.e1 FROM q LEFT JOIN c ON FALSE
    UNION ALL SELECT 1, q.*, c.e0, c.e1 FROM c LEFT JOIN q ON FALSE

The joins that never match give the other side's columns as NULLs of the right types. The first branch comes first, in the
order of the caller's SELECT: PostgreSQL runs no statement with a data-modifying CTE in parallel. The caller's statement may
be an INSERT, UPDATE or DELETE that returns rows, to him or to us.

What does not fit (a statement that returns none, other databases, cascades, keys that change where their old value is not told,
SQL that was changed since it was compiled) stays a reported gap.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.sql.dml import UpdateBase

from . import ride
from .column import Loaded
from .plan import Plan, moves, set_columns

_NAME = re.compile(r'([\w$]+|"[^"]+") AS ')
_PLACEHOLDER = re.compile(r"%%|%\(([^)]+?)\)s")
"""What stands in the texts of CTEs until the whole statement is compiled, whatever the driver has."""
_LATER = re.compile(r"__\[POSTCOMPILE_[^\]]*\]")
"""What stands there until it is known how many values a list has."""
_BOUND = r"(?:%\([^)]+\)s|%s|\$\d+)(?:::[\w ]+(?:\(\d+(?:, ?\d+)?\))?(?:\[\])*)?"
_LIST = rf"{_BOUND}(?:, {_BOUND})*|NULL\) (?:AND \(1 !=|OR \(1 =) 1"
"""The last of an empty one."""
_CALLERS = "sqla_events_rows"


def begin(connection: Connection) -> None:
    """SQLite's driver begins a transaction before INSERT, UPDATE, DELETE and REPLACE, and before no WITH: what one writes would
    be committed at once, and its event later or never.
    """
    if connection.dialect.name != "sqlite":
        return
    raw: Any = connection.connection.driver_connection
    if raw.isolation_level is not None and not raw.in_transaction:
        cursor = connection.connection.cursor()
        cursor.execute(f"BEGIN {raw.isolation_level}")
        cursor.close()


@dataclass(slots=True)
class Caught:
    """The CTEs of one execution whose rows will be known. Stands among the plans of the buffer while it runs."""

    context: Any
    plans: dict[Any, Plan]
    """By CTE, in the order of the statement."""
    sql: str
    counts: None = field(default=None, init=False)


def catch(context: Any, sql: str, outer: Plan | None, plan_of: Callable[[Any], Plan | None]) -> Caught | None:
    """The CTEs whose rows can be known, with the SQL that makes them known; None where there is none.

    :param outer: the plan of the statement around them, if it is an INSERT, UPDATE or DELETE of a captured table.
    """
    compiled = context.compiled
    writes = context.isinsert or context.isupdate or context.isdelete
    returns = compiled.effective_returning or (outer is not None and outer.ride)
    if context.dialect.name != "postgresql" or context.executemany or (writes and not returns):
        return None
    plans = {cte: plan for cte in compiled.ctes if isinstance(cte.element, UpdateBase) and (plan := _plan(cte, plan_of, context))}
    if not plans:
        return None
    texts = _as_sent(_texts(context), sql)
    if texts is None:
        return None
    head = ", \n".join(texts.values()) + "\n "
    start = sql.index(head)
    return Caught(context, plans, _sql(context, plans, texts, sql[:start], sql[start + len(head) :]))


def _as_sent(texts: dict[Any, str], sql: str) -> dict[Any, str] | None:
    """The texts as they stand at the beginning of the SQL, with the lists of ``IN`` that stand there; None if it has been changed."""
    patterns = (f"({f'(?:{_LIST})'.join(map(re.escape, _LATER.split(text)))})" for text in texts.values())
    found = re.match("WITH (?:RECURSIVE )?" + ", \n".join(patterns) + "\n ", sql)
    return None if found is None else dict(zip(texts, found.groups(), strict=True))


def _texts(context: Any) -> dict[Any, str]:
    """The CTEs as they are sent, but for lists of ``IN``."""
    compiled = context.compiled
    ctes: dict[Any, str] = compiled.ctes
    if compiled.positional:
        placed = _numbered(compiled) if compiled._numeric_binds else dict.fromkeys(_bound(compiled, compiled.binds), "%s")
        ctes = {cte: _PLACEHOLDER.sub(lambda found: placed.get(found[1], found[0]), text) for cte, text in ctes.items()}
    if compiled.schema_translate_map:
        translate = context.execution_options.get("schema_translate_map", {})
        ctes = {cte: compiled.preparer._render_schema_translates(text, translate) for cte, text in ctes.items()}
    return ctes


def _numbered(compiled: Any) -> dict[str, str]:
    """The placeholder of each parameter, as SQLAlchemy numbers those whose values do not become a part of the SQL."""
    later = compiled.post_compile_params | compiled.literal_execute_params
    names = [name for name in compiled.positiontup if compiled.binds[name] not in later]
    return {name: f"{compiled._numeric_binds_identifier_char}{number}" for number, name in enumerate(_bound(compiled, names), 1)}


def _bound(compiled: Any, names: Iterable[str]) -> list[str]:
    """Names of parameters as they stand in the compiler's texts."""
    return [compiled.escaped_bind_names.get(name, name) for name in names]


def _plan(cte: Any, plan_of: Callable[[Any], Plan | None], context: Any) -> Plan | None:
    plan = plan_of(cte.element)
    if plan is None or not _NAME.match(context.compiled.ctes[cte]) or plan.verb in plan.codec.reaches:
        return None
    plan.whole, plan.translate = True, context.execution_options.get("schema_translate_map")
    if plan.verb == "update":
        plan.changed = set_columns(plan.statement, plan.table)
        plan.moves_key = any(key in plan.changed for key in plan.codec.key)
        if moves(plan) and not ride.old_rides(plan, context.dialect):
            return None
    plan.ride = ride.whole(plan, context.dialect)
    return plan


def _sql(context: Any, plans: dict[Any, Plan], texts: dict[Any, str], beginning: str, callers: str) -> str:
    sent, names, columns = [], [_CALLERS], [f"{_CALLERS}.*"]
    for number, (cte, text) in enumerate(texts.items()):
        plan = plans.get(cte)
        if plan is not None:
            marks = [f"sqla_events_{number}_{n}" for n in range(len(plan.ride))]
            wanted = (f"{one} AS {mark}" for one, mark in zip(ride.columns(plan, context, cte.element.table), marks, strict=True))
            joint = ", " if cte.element._returning else " RETURNING "
            text = f"{text.removesuffix(')')}{joint}{', '.join(wanted)})"
            name = _NAME.match(text)[1]  # type: ignore[index]
            names.append(name)
            columns += [f"{name}.{mark}" for mark in marks]
        sent.append(text)
    branches = (f"SELECT {number}, {', '.join(columns)} FROM {_joined(name, names)}" for number, name in enumerate(names))
    return f"{beginning}{', '.join(sent)}, {_CALLERS} AS ({callers}) " + " UNION ALL ".join(branches)


def _joined(first: str, names: Sequence[str]) -> str:
    return " LEFT JOIN ".join([first, *(f"{other} ON FALSE" for other in names if other != first)])


@dataclass(slots=True)
class Rows:
    """What a cursor would give if it had the caller's statement alone."""

    description: Any
    rows: list[tuple[Any, ...]]

    def fetchmany(self, size: int) -> list[tuple[Any, ...]]:
        """The next rows."""
        found, self.rows = self.rows[:size], self.rows[size:]
        return found


def take_off(caught: Caught, cursor: Any) -> tuple[list[tuple[Plan, list[dict[str, Loaded]]]], Rows]:
    """The rows of each CTE, and those of the caller, with which the cursor is left to SQLAlchemy."""
    description, rows, plans = cursor.description, cursor.fetchall(), list(caught.plans.values())
    end = len(description) - sum(len(plan.ride) for plan in plans)
    mine = [tuple(row[1:end]) for row in rows if row[0] == 0]
    found, start = [], end
    for number, plan in enumerate(plans, 1):
        stop = start + len(plan.ride)
        found.append((plan, _loaded(plan, [row[start:stop] for row in rows if row[0] == number], description[start:stop])))
        start = stop
    ride.leave(caught.context, cursor, mine, description[1:end])
    caught.context._rowcount = len(mine)
    return found, Rows(description[1:end], mine)


def _loaded(plan: Plan, rows: Sequence[Any], description: Any) -> list[dict[str, Loaded]]:
    return ride.loaded(plan, rows, 0, [column[1] for column in description])

"""PostgreSQL: a set-based statement of which nobody wants rows writes its events itself, so that no row travels.

::

    WITH n AS (the statement RETURNING t.id AS c0, t.qty AS c1, t.at AS c2),
         e AS (INSERT INTO events (…) SELECT … FROM n WHERE NOT doubt)
    SELECT total, u.* FROM (SELECT count(*) AS total FROM n) AS c LEFT JOIN (SELECT true, n.* FROM n WHERE doubt) AS u ON true

The events are those that Python would make (``exact`` has the forms). A row that holds a value of which that is not certain,
or whose payload is too large, comes back and becomes an event in Python; so do all of them if a column's type has changed since
it was looked up. Measured, an UPDATE of 10,000 rows on PostgreSQL 18: the statement alone 35 ms, with the INSERT 128 and no
way back (its command tag would be the number of rows), 140 with it.

What is not covered exactly stays with RETURNING: a caller who wants rows, many sets of parameters, upserts, rows of others
that a foreign key reaches, keys that change where their old value is not told or where rows might come back out of order,
a type that ``exact`` does not know, temporary tables, tables with rules. So does a statement that wrote few rows last time.

What the statement was compiled into is not touched: the SQL string is put together anew on its way to the cursor, as for
RETURNING that rides along. What varies with the execution (who did it, metadata) is a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.engine import cursor as strategies

from .. import encoding
from ..event import new_id
from . import ride
from .catalog import Catalog
from .codec import Stored
from .column import Loaded
from .frame import PARAMETERS, ROWS, Frame, Framing
from .outbox import Head
from .plan import Plan, moves

DRIVERS = ("psycopg", "asyncpg")

Shared = Callable[[Connection, Plan], tuple[Head, encoding.Types]]

MOST_PARAMETERS = 32_000
"""asyncpg takes 32,767, and ours come on top."""

FEW = 25
"""Rows below which Python is faster: to parse and plan what makes the events takes PostgreSQL half a millisecond."""


@dataclass(frozen=True)
class Within:
    """One execution that writes its events itself."""

    sql: str
    parameters: Any
    type: str
    own_sql: str
    own_parameters: Any
    """As they were without."""


class Writer:
    """Lets statements of one engine write their events."""

    def __init__(self, catalog: Catalog, limit: int | None, old_values: str, shared: Shared, drain: Callable[[Connection], None]) -> None:
        self._catalog = catalog
        self._limit = limit
        self._before = old_values != "never"
        self._shared = shared
        self._drain = drain

    def may(self, plan: Plan, context: Any, executemany: bool) -> bool:
        """Whether a statement is of a kind that can."""
        dialect = context.dialect
        wants_old = plan.verb == "update" and (plan.want_old or moves(plan))
        return bool(
            dialect.name == "postgresql"
            and dialect.driver in DRIVERS
            and dialect.paramstyle in ("pyformat", "numeric_dollar")
            and not dialect._backslash_escapes
            and plan.whole
            and not (executemany or plan.own or plan.shape.upsert or plan.reached or plan.codec.cascades)
            and plan.verb in plan.codec.operations
            and not context._is_server_side
            and not ride.returns(context.compiled)
            and not context.compiled.ctes
            and not context.execution_options.get("no_parameters")  # then nobody halves what is doubled for parameters
            and (not wants_old or ride.old_rides(plan, dialect))
            and (plan.translate is None or not ride.has_namesake(plan, context))  # what stands around it is that of any schema
        )

    def within(self, connection: Connection, plan: Plan, sql: str, parameters: Any, context: Any) -> Within | None:
        """The statement with what writes its events around it; None where something is not covered.

        What was captured before it is written now, so that it comes before it in the log.
        """
        stored = self._catalog.stored(connection, plan)
        if stored is None:
            return None
        frames = plan.codec.frames.get(context.compiled, _no_frames)
        if stored not in frames:
            made = Framing(plan, context, dict(stored), self._before)
            frames[stored] = made.frame(self._catalog.log, self._limit) if made.covered else None
        frame = plan.frame = frames[stored]
        if frame is None or (frame.rows is not None and frame.rows < FEW):
            return None
        if len(parameters) >= MOST_PARAMETERS or not _plain_literals(connection):
            return None
        if frame.zoned and not _zone_is_known(connection):
            return None
        self._drain(connection)
        plan.ride = frame.ride
        head, codes = self._shared(connection, plan)
        said = {**plan.codec.codes, **codes}
        types = "," + encoding.dumps(said)[1:-1] if said else ""
        extra = (*head.values, types if frame.special else f"{{{types[1:]}}}" if types else None, new_id().hex[12:19])
        places, given = _bound(context.dialect, parameters, extra)
        joint = "\n" if "--" in sql else " "
        text = f"WITH {ROWS} AS ({sql}{joint}{frame.returning}){frame.rest.format(*places)}"
        return Within(text, given, head.type, sql, parameters)

    def failed(self, plan: Plan, context: Any) -> None:
        """The statement has failed: its error shows what the caller has written.

        :raises CaptureError: if it is the log that refuses.
        """
        self._catalog.failed(plan, context, plan.within.own_sql, plan.within.own_parameters)


def _no_frames(_: Any) -> dict[Stored, Frame | None]:
    return {}


def _plain_literals(connection: Connection) -> bool:
    """Whether a backslash in a literal is one: a session can change what the dialect has found."""
    raw: Any = connection.connection.driver_connection
    name = "standard_conforming_strings"
    said = raw.info.parameter_status(name) if hasattr(raw, "info") else getattr(raw.get_settings(), name, None)
    return str(said) == "on"


def _zone_is_known(connection: Connection) -> bool:
    """psycopg takes UTC for a time zone that Python does not know."""
    raw: Any = connection.connection.driver_connection
    info = getattr(raw, "info", None)
    return info is None or getattr(info.timezone, "key", "UTC") == info.parameter_status("TimeZone")


def _bound(dialect: Any, parameters: Any, extra: tuple[Any, ...]) -> tuple[list[str], Any]:
    """A place for each further parameter in the SQL, and all parameters."""
    kinds = [{"metadata": "text::json", "schema_version": "integer"}.get(name, "text") for name in PARAMETERS]
    if dialect.paramstyle == "numeric_dollar":
        first = len(parameters) + 1
        return [f"${number}::{kind}" for number, kind in enumerate(kinds, first)], (*parameters, *extra)
    names = [f"sqla_events {number}" for number in range(len(extra))]  # as no bind of the caller's is called
    given = {**parameters, **dict(zip(names, extra, strict=True))}
    return [f"%({name})s::{kind}" for name, kind in zip(names, kinds, strict=True)], given


# Taking off ---------------------------------------------------------------------------------------------------------


def take_off(plan: Plan, dbapi_cursor: Any, context: Any) -> Iterator[list[dict[str, Loaded]]]:
    """Rows that have to become events in Python, some at a time; the cursor is left to SQLAlchemy as if there were none.

    ``plan.carried`` is then the number of events that are written.
    """
    codes = [column[1] for column in dbapi_cursor.description[2:]]
    total = travelled = 0
    while rows := dbapi_cursor.fetchmany(ride.CHUNK):
        total = rows[0][0]
        rows = [row for row in rows if row[1]]
        travelled += len(rows)
        if rows:
            yield ride.loaded(plan, rows, 2, codes)
    plan.carried = total - travelled
    context.cursor_fetch_strategy = strategies._NO_CURSOR_DML
    asked = not context.isinsert or context.execution_options.get("preserve_rowcount")
    if asked or context.dialect.driver == "asyncpg":  # whose cursor tells of an INSERT too, where psycopg's is closed then
        context._rowcount = total

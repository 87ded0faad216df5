"""The read: one statement, one snapshot. Holes, what lies above ``high``, and what the ledger must know about both.

Why windows of ``seq`` instead of ORDER BY and LIMIT: a statement that must sort can be planned as a sort of the whole
backlog (stale statistics: 75,000 events/s fell to 25,000), and the planner settings that forbid it are session state,
which a transaction pooler does not keep. ``seq > a AND seq <= b`` touches at most b - a rows whatever the plan; the bounds
are hidden in sub-selects, so that no statistics make the planner think otherwise. What lies beyond an empty window is
found by one index probe (the smallest visible number above it). Rows are sorted here, where they are sorted already.

Why the driver's own cursor: SQLAlchemy's result and type layers cost more than the read (33,000 rows/s as ORM entities,
170,000-220,000 like this). Reads run in autocommit: a statement is its own snapshot, without BEGIN and COMMIT.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any
from zlib import crc32

from sqlalchemy import text
from sqlalchemy.engine import Connection

from ..schema import Names
from .ledger import Found, Plan, Snapshot
from .rows import Row

Tuples = Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Share:
    """The part of a group's events that one reader has: those whose lane hashes to ``number`` of ``of``."""

    number: int = 0
    of: int = 1


class Reading:
    """The read of one log, for one share of its keys.

    :param driver: SQLAlchemy's name of the driver: ``psycopg``, ``asyncpg``, ``pysqlite``, ``aiosqlite``.
    """

    def __init__(self, names: Names, dialect: str, driver: str, share: Share = Share()) -> None:
        self._names = names
        self._share = share
        self._postgres = dialect == "postgresql"
        self._fetch = _FETCH.get(driver, _fetch_text)

    def __call__(self, connection: Connection, plan: Plan) -> Found[Row]:
        """Read what the plan wants."""
        if self._postgres:
            return self._found(self._fetch(connection, *self._statement(plan)))
        return self._found_on_sqlite(_fetch_dbapi(connection, *self._sqlite(plan)))

    def by_seq(self, connection: Connection, seqs: Sequence[int]) -> dict[int, Row]:
        """Single rows of our share; those that are there no more are left out."""
        found = self(connection, Plan(_END, _END, 0, tuple((seq, seq, seq) for seq in sorted(set(seqs)))))
        return {row.seq: row for row in found.rows}

    # PostgreSQL --------------------------------------------------------------------------------------------------

    def _statement(self, plan: Plan) -> tuple[str, tuple[Any, ...]]:
        if not plan.pieces:
            return self._simple, (plan.high, plan.top)
        firsts, cuts, lasts = zip(*plan.pieces, strict=True)
        return self._with_holes, (plan.high, plan.top, list(firsts), list(cuts), list(lasts))

    @cached_property
    def _events(self) -> str:
        return self._names.qualified(self._names.events)

    @cached_property
    def _simple(self) -> str:
        return self._select("seq > (SELECT $1::bigint) AND seq <= (SELECT $2::bigint)") + self._header

    @cached_property
    def _with_holes(self) -> str:
        events = self._events
        inside = f"""FROM unnest($3::bigint[], $4::bigint[]) AS piece(first, cut) CROSS JOIN LATERAL
            (SELECT * FROM {events} AS e WHERE e.seq >= piece.first AND e.seq <= piece.cut OFFSET 0) AS e"""
        beyond = f"""UNION ALL SELECT f.seq, '', {_NULLS} FROM unnest($4::bigint[], $5::bigint[]) AS piece(cut, last) CROSS JOIN LATERAL
            (SELECT min(e.seq) AS seq FROM {events} AS e WHERE e.seq > piece.cut AND e.seq <= piece.last) AS f
            WHERE piece.cut < piece.last AND f.seq IS NOT NULL"""
        return f"{self._branches(inside)} UNION ALL {self._simple} {beyond}"

    def _select(self, condition: str) -> str:
        return self._branches(f"FROM {self._events} AS e WHERE {condition}", "AND")

    def _branches(self, tail: str, joiner: str = "WHERE") -> str:
        """Own rows whole; of other partitions' rows the number, so that they are not taken for holes."""
        if self._share.of == 1:
            return f"SELECT {_COLUMNS} {tail}"
        own = f"{_partition(self._share.of)} = {self._share.number}"
        return f"SELECT {_COLUMNS} {tail} {joiner} {own} UNION ALL SELECT e.seq, NULL, '', {_NULLS_BUT_TYPE} {tail} {joiner} NOT {own}"

    @cached_property
    def _header(self) -> str:
        return f"""
        UNION ALL SELECT (SELECT min(e.seq) FROM {self._events} AS e WHERE e.seq > (SELECT $2::bigint)),
            NULL, pg_current_snapshot()::text, {_NULLS_BUT_TYPE}"""

    def _found(self, tuples: Tuples) -> Found[Row]:
        rows: list[Row] = []
        others: list[int] = []
        beyond: list[int] = []
        for one in tuples:
            if one[1]:
                rows.append(Row(*one))
            elif one[1] is not None:
                beyond.append(one[0])
            elif one[2]:
                header = one
            else:
                others.append(one[0])
        return Found(rows, others, Snapshot.parse(header[2]), header[0], beyond)

    # SQLite ------------------------------------------------------------------------------------------------------

    def _sqlite(self, plan: Plan) -> tuple[str, tuple[Any, ...]]:
        pieces = json.dumps(plan.pieces)
        return self._sqlite_text, (pieces, plan.high, plan.top, plan.top, pieces)

    @cached_property
    def _sqlite_text(self) -> str:
        events, nulls = self._events, ", ".join(["NULL"] * 14)
        first, cut, last = (f"json_extract(piece.value, '$[{n}]')" for n in range(3))
        return f"""
        SELECT {_SQLITE_COLUMNS} FROM json_each(?) AS piece CROSS JOIN {events} AS e ON e.seq >= {first} AND e.seq <= {cut}
        UNION ALL SELECT {_SQLITE_COLUMNS} FROM {events} AS e WHERE e.seq > ? AND e.seq <= ?
        UNION ALL SELECT (SELECT min(e.seq) FROM {events} AS e WHERE e.seq > ?), NULL, {nulls}
        UNION ALL SELECT (SELECT min(e.seq) FROM {events} AS e WHERE e.seq > {cut} AND e.seq <= {last}), '', {nulls}
            FROM json_each(?) AS piece WHERE {cut} < {last}"""

    def _found_on_sqlite(self, tuples: Tuples) -> Found[Row]:
        rows: list[Row] = []
        others: list[int] = []
        beyond: list[int] = []
        above = None
        for one in tuples:
            if one[1]:
                row = _from_sqlite(one)
                if self._share.of == 1 or crc32(row.lane.encode()) % self._share.of == self._share.number:
                    rows.append(row)
                else:
                    others.append(row.seq)
            elif one[1] is None:
                above = one[0]
            elif one[0] is not None:
                beyond.append(one[0])
        return Found(rows, others, None, above, beyond)


_END = 2**62
_COLUMNS = """e.seq, e.id::text, e.type, e.source, e.schema, e.entity, e.operation, e.key, e.payload::text, e.types::text,
    e.metadata::text, e.user_id, e.session_id, e.instance_id, e.schema_version,
    to_char(e.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
_NULLS_BUT_TYPE = "NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL::int, NULL"
_NULLS = f"NULL, {_NULLS_BUT_TYPE}"
_SQLITE_COLUMNS = ", ".join(f'e."{name}"' for name in Row.__struct_fields__)


def lane_sql(alias: str) -> str:
    """What :func:`event.lane_of` says, in PostgreSQL."""
    return f"""CASE WHEN {alias}.key IS NULL THEN {alias}.id::text
        ELSE coalesce({alias}.schema, '') || '.' || coalesce({alias}.entity, '') || ':' || {alias}.key END"""


def row_columns(dialect: str) -> str:
    """The select list of a :class:`Row`, for the alias ``e`` of the events table."""
    return _COLUMNS if dialect == "postgresql" else _SQLITE_COLUMNS


def row_from(dialect: str, one: Sequence[Any]) -> Row:
    """The row that this select list gives."""
    return Row(*one) if dialect == "postgresql" else _from_sqlite(one)


def _partition(of: int) -> str:
    return f"(((hashtextextended({lane_sql('e')}, 0) % {of}) + {of}) % {of})"


def _from_sqlite(one: Sequence[Any]) -> Row:
    row = Row(*one)
    hexadecimal = row.id
    if len(hexadecimal) == 32:
        row.id = f"{hexadecimal[:8]}-{hexadecimal[8:12]}-{hexadecimal[12:16]}-{hexadecimal[16:20]}-{hexadecimal[20:]}"
    row.created_at = rfc3339(row.created_at)
    return row


def rfc3339(text: str) -> str:
    """A time as SQLite has it (with a blank or T, with or without zone, UTC) in the one form that we give out."""
    text = text.replace(" ", "T", 1).removesuffix("+00:00").removesuffix("Z")
    return f"{text}Z"


# Drivers ------------------------------------------------------------------------------------------------------------


def _fetch_psycopg(connection: Connection, sql: str, parameters: tuple[Any, ...]) -> Tuples:
    link = connection.connection.driver_connection
    wording, named = _named(sql, "%(p{})s"), {f"p{number}": value for number, value in enumerate(parameters, 1)}
    if not connection.dialect.is_async:
        return link.cursor(binary=True).execute(wording, named).fetchall()  # type: ignore[union-attr,no-any-return]

    async def fetch(link: Any) -> Tuples:
        cursor = link.cursor(binary=True)
        await cursor.execute(wording, named)
        return await cursor.fetchall()  # type: ignore[no-any-return]

    return connection.connection.dbapi_connection.run_async(fetch)  # type: ignore[union-attr,no-any-return]


def _fetch_asyncpg(connection: Connection, sql: str, parameters: tuple[Any, ...]) -> Tuples:
    return connection.connection.dbapi_connection.run_async(lambda link: link.fetch(sql, *parameters))  # type: ignore[union-attr,no-any-return]


def _fetch_text(connection: Connection, sql: str, parameters: tuple[Any, ...]) -> Tuples:
    """Any other driver of PostgreSQL, by way of SQLAlchemy."""
    named = {f"p{number}": value for number, value in enumerate(parameters, 1)}
    return [tuple(row) for row in connection.execute(text(_named(sql, ":p{}").replace("::", "\\:\\:").replace("%%", "%")), named)]


def _fetch_dbapi(connection: Connection, sql: str, parameters: tuple[Any, ...]) -> Tuples:
    cursor = connection.connection.cursor()
    try:
        cursor.execute(sql, parameters)
        return cursor.fetchall()  # type: ignore[return-value]
    finally:
        cursor.close()


@lru_cache(maxsize=64)
def _named(sql: str, form: str) -> str:
    """``$1`` in another form, with per cent signs doubled."""
    return re.sub(r"\$([0-9])", lambda match: form.format(match[1]), sql.replace("%", "%%"))


_FETCH: dict[str, Callable[[Connection, str, tuple[Any, ...]], Tuples]] = {
    "psycopg": _fetch_psycopg,
    "psycopg_async": _fetch_psycopg,
    "asyncpg": _fetch_asyncpg,
}

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

from sqlalchemy import ColumnElement, FromClause, Text, cast, literal_column, select, text
from sqlalchemy.engine import Connection

from ..bridge import pinned
from ..position import Ranges
from ..schema import Tables
from .ledger import Found, Plan, Snapshot
from .rows import ABSENT, SEPARATOR, Row, Same, same, same_of

Tuples = Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Share:
    """The part of a group's events that one reader has: those whose lane hashes to ``number`` of ``of``."""

    number: int = 0
    of: int = 1


class Reading:
    """The read of one log, for one share of its keys.

    :param driver: SQLAlchemy's name of the driver: ``psycopg``, ``asyncpg``, ``pysqlite``, ``aiosqlite``.
    :param patterns: on PostgreSQL the payload of an event whose type matches none of them may be ``null``: it is neither
        read from where large values are kept nor sent (draining 50,000 events of 4 kB of which one in a hundred matches
        took 0.2 of the time). Everything else about the row is read, so the ledger sees the same log as ever.
    """

    def __init__(
        self, tables: Tables, dialect: str, driver: str, share: Share = Share(), patterns: Sequence[str] = ("*",)
    ) -> None:
        self._tables = tables
        self._columns = _COLUMNS if "*" in patterns or len(patterns) > MOST_PATTERNS else _columns_for(patterns)
        self._known = _Known()
        self._share = share
        self._postgres = dialect == "postgresql"
        self._fetch = _FETCH.get(driver, _fetch_text)

    def __call__(self, connection: Connection, plan: Plan) -> Found[Row]:
        """Read what the plan wants."""
        if self._postgres:
            return self._found(connection, self._fetch(connection, *self._statement(plan)))
        return self._found_on_sqlite(connection, _fetch_dbapi(connection, *self._sqlite(plan)))

    def by_seq(self, connection: Connection, seqs: Sequence[int]) -> dict[int, Row]:
        """Single rows of our share; those that are there no more are left out."""
        found = self(connection, Plan(_END, _END, 0, tuple((seq, seq, seq) for seq in sorted(set(seqs)))))
        return {row.seq: row for row in found.rows}

    def has_any(self, connection: Connection, seqs: Ranges) -> bool:
        """Whether the log has a row of our share under any of these numbers; a thousand of them are read at a time."""
        pages = ((start, min(start + 999, last)) for first, last in seqs for start in range(first, last + 1, 1000))
        return any(self(connection, Plan(_END, _END, 0, ((start, end, end),))).rows for start, end in pages)

    # PostgreSQL --------------------------------------------------------------------------------------------------

    def _statement(self, plan: Plan) -> tuple[str, tuple[Any, ...]]:
        if not plan.pieces:
            return self._simple, (plan.high, plan.top)
        firsts, cuts, lasts = zip(*plan.pieces, strict=True)
        return self._with_holes, (plan.high, plan.top, list(firsts), list(cuts), list(lasts))

    @cached_property
    def _events(self) -> str:
        return self._tables.names.qualified(self._tables.names.events)

    @cached_property
    def _simple(self) -> str:
        return self._select("seq > (SELECT $1::bigint) AND seq <= (SELECT $2::bigint)") + self._header

    @cached_property
    def _with_holes(self) -> str:
        events = self._events
        inside = f"""FROM unnest($3::bigint[], $4::bigint[]) AS piece(first, cut) CROSS JOIN LATERAL
            (SELECT * FROM {events} AS e WHERE e.seq >= piece.first AND e.seq <= piece.cut OFFSET 0) AS e"""
        beyond = f"""UNION ALL SELECT f.seq, '', NULL, {_NULLS}
            FROM unnest($4::bigint[], $5::bigint[]) AS piece(cut, last) CROSS JOIN LATERAL
            (SELECT min(e.seq) AS seq FROM {events} AS e WHERE e.seq > piece.cut AND e.seq <= piece.last) AS f
            WHERE piece.cut < piece.last AND f.seq IS NOT NULL"""
        return f"{self._branches(inside)} UNION ALL {self._simple} {beyond}"

    def _select(self, condition: str) -> str:
        return self._branches(f"FROM {self._events} AS e WHERE {condition}", "AND")

    def _branches(self, tail: str, joiner: str = "WHERE") -> str:
        """Own rows whole; of other partitions' rows the number, so that they are not taken for holes."""
        if self._share.of == 1:
            return f"SELECT {self._columns} {tail}"
        own = f"{_partition(self._share.of)} = {self._share.number}"
        return f"SELECT {self._columns} {tail} {joiner} {own} UNION ALL SELECT e.seq, NULL, '', {_NULLS} {tail} {joiner} NOT {own}"

    @cached_property
    def _header(self) -> str:
        return f"""
        UNION ALL SELECT (SELECT min(e.seq) FROM {self._events} AS e WHERE e.seq > (SELECT $2::bigint)),
            NULL, pg_current_snapshot()::text, {_NULLS}"""

    def _found(self, connection: Connection, tuples: Tuples) -> Found[Row]:
        rows: list[Row] = []
        others: list[int] = []
        beyond: list[int] = []
        odd: list[int] = []
        known = self._known
        snapshot, above = "0:0:", None
        for seq, identity, text_, key, user_id, session_id, metadata, created, payload in tuples:
            if identity:
                about = known[text_]
                if about is not None:
                    rows.append(Row(seq, identity, about, key, user_id, session_id, metadata, created, payload))
                else:
                    odd.append(seq)
            elif identity is not None:
                beyond.append(seq)
            elif text_:
                snapshot, above = text_, seq
            else:
                others.append(seq)
        if odd:
            with pinned(connection):
                rows += by_columns(connection, self._tables, odd)
        return Found(rows, others, Snapshot.parse(snapshot), above, beyond)

    # SQLite ------------------------------------------------------------------------------------------------------

    def _sqlite(self, plan: Plan) -> tuple[str, tuple[Any, ...]]:
        pieces = json.dumps(plan.pieces)
        return self._sqlite_text, (pieces, plan.high, plan.top, plan.top, pieces)

    @cached_property
    def _sqlite_text(self) -> str:
        events, nulls = self._events, ", ".join(["NULL"] * 7)
        first, cut, last = (f"json_extract(piece.value, '$[{n}]')" for n in range(3))
        return f"""
        SELECT {_SQLITE_COLUMNS} FROM json_each(?) AS piece CROSS JOIN {events} AS e ON e.seq >= {first} AND e.seq <= {cut}
        UNION ALL SELECT {_SQLITE_COLUMNS} FROM {events} AS e WHERE e.seq > ? AND e.seq <= ?
        UNION ALL SELECT (SELECT min(e.seq) FROM {events} AS e WHERE e.seq > ?), NULL, {nulls}
        UNION ALL SELECT (SELECT min(e.seq) FROM {events} AS e WHERE e.seq > {cut} AND e.seq <= {last}), '', {nulls}
            FROM json_each(?) AS piece WHERE {cut} < {last}"""

    def _found_on_sqlite(self, connection: Connection, tuples: Tuples) -> Found[Row]:
        rows: list[Row] = []
        beyond: list[int] = []
        above = None
        for one in tuples:
            if one[1]:
                rows.append(self._sqlite_row(connection, one))
            elif one[1] is None:
                above = one[0]
            elif one[0] is not None:
                beyond.append(one[0])
        share = self._share
        mine = [row for row in rows if share.of == 1 or crc32(row.lane.encode()) % share.of == share.number]
        others = [] if len(mine) == len(rows) else sorted({row.seq for row in rows} - {row.seq for row in mine})
        return Found(mine, others, None, above, beyond)

    def _sqlite_row(self, connection: Connection, one: Sequence[Any]) -> Row:
        about = self._known[one[2]]
        return (
            Row(one[0], _dashed(one[1]), about, *one[3:])
            if about is not None
            else by_columns(connection, self._tables, [one[0]])[0]
        )


class _Known(dict[str, Same | None]):
    """Texts that were taken apart; forgotten all together when there are very many."""

    def __missing__(self, text: str) -> Same | None:
        if len(self) >= 10_000:
            self.clear()
        self[text] = found = same_of(text)
        return found


def by_columns(connection: Connection, tables: Tables, seqs: Sequence[int]) -> list[Row]:
    """Rows by their numbers, column by column: the slow way, which no value can confuse."""
    rows = []
    for start in range(0, len(seqs), 500):
        rows += select_rows(connection, tables, [events_of(tables).c.seq.in_(seqs[start : start + 500])], 500)
    return rows


def select_rows(
    connection: Connection, tables: Tables, where: Sequence[Any], limit: int, newest_first: bool = False
) -> list[Row]:
    """Rows of the log by seq; ``where`` are conditions on :func:`events_of`."""
    e = events_of(tables)
    postgres = connection.dialect.name == "postgresql"
    created: ColumnElement[Any] = literal_column("timestamptz_send(e.created_at)" if postgres else "e.created_at")
    columns = (
        e.c.seq,
        cast(e.c.id, Text),
        *(text_of(e, name) for name in (*_SAME, *_OWN)),
        created,
        text_of(e, "payload"),
    )
    query = (
        select(*columns).select_from(e).where(*where).order_by(e.c.seq.desc() if newest_first else e.c.seq).limit(limit)
    )
    return [_row(*one) for one in connection.execute(query)]


def text_of(e: FromClause, name: str) -> ColumnElement[Any]:
    """JSON as its text: drivers would decode it."""
    return cast(e.c[name], Text) if name in ("payload", "types", "metadata") else e.c[name]


def _row(seq: int, identity: str, *rest: Any) -> Row:
    return Row(seq, _dashed(identity), same(*rest[:8]), *rest[8:])


@lru_cache(maxsize=16)
def events_of(tables: Tables) -> FromClause:
    """The events table under the alias that :func:`select_rows` uses."""
    return tables.events.alias("e")


def _dashed(identity: str) -> str:
    return (
        identity
        if len(identity) == 36
        else f"{identity[:8]}-{identity[8:12]}-{identity[12:16]}-{identity[16:20]}-{identity[20:]}"
    )


_END = 2**62

_SAME = ("type", "source", "schema", "entity", "operation", "instance_id", "schema_version", "types")
_OWN = ("key", "user_id", "session_id", "metadata")


def _postgres_columns() -> str:
    absent = f"chr({ord(ABSENT)})"
    nullable = {"schema", "entity", "operation", "instance_id"}
    members = [f"coalesce(e.{name}, {absent})" if name in nullable else f"e.{name}" for name in _SAME[:-1]]
    common = f"concat_ws(chr({ord(SEPARATOR)}), {', '.join(members)}, coalesce(e.types::text, {absent}))"
    return f"e.seq, e.id::text, {common}, e.key, e.user_id, e.session_id, e.metadata::text, timestamptz_send(e.created_at), e.payload::text"


def _sqlite_columns() -> str:
    common = f" || char({ord(SEPARATOR)}) || ".join(f'coalesce(e."{name}", char({ord(ABSENT)}))' for name in _SAME)
    return ", ".join(["e.seq", "e.id", common, *(f'e."{name}"' for name in _OWN), "e.created_at", "e.payload"])


_COLUMNS = _postgres_columns()
_PAYLOAD = "e.payload::text"

MOST_PATTERNS = 20
"""More are not worth comparing every type with."""


def _columns_for(patterns: Sequence[str]) -> str:
    wanted = " OR ".join(f"e.type LIKE '{_literal(pattern)}'" for pattern in patterns)
    return f"{_COLUMNS.removesuffix(_PAYLOAD)}CASE WHEN {wanted} THEN {_PAYLOAD} ELSE 'null' END"


def _literal(pattern: str) -> str:
    """A LIKE pattern that matches whatever ``pattern`` does, and more; nothing in it means anything to SQL or a driver."""
    return re.sub(r"\[.*?\]|[*?]", "%", re.sub(r"[^A-Za-z0-9.*?\[\]-]", "_", pattern))


_SQLITE_COLUMNS = _sqlite_columns()
_NULLS = ", ".join(["NULL"] * 6)
"""For the columns from ``key`` on."""


def lane_sql(alias: str) -> str:
    """What :func:`event.lane_of` says, in PostgreSQL."""
    return f"""CASE WHEN {alias}.key IS NULL THEN {alias}.id::text
        ELSE coalesce({alias}.schema, '') || '.' || coalesce({alias}.entity, '') || ':' || {alias}.key END"""


def _partition(of: int) -> str:
    return f"(((hashtextextended({lane_sql('e')}, 0) % {of}) + {of}) % {of})"


def partition_numbers(connection: Connection, tables: Tables, above: int, top: int, of: int) -> dict[int, int]:
    """Which of ``of`` partitions each event belongs to: seq -> number, for those that can be seen from above one to another."""
    if connection.dialect.name == "postgresql":
        events = tables.names.qualified(tables.names.events)
        query = f"SELECT e.seq, {_partition(of)} FROM {events} AS e WHERE e.seq > (SELECT $1::bigint) AND e.seq <= (SELECT $2::bigint)"
        return {row[0]: row[1] for row in _fetch_text(connection, query, (above, top))}
    inside = events_of(tables).c.seq.between(above + 1, top)
    return {row.seq: crc32(row.lane.encode()) % of for row in select_rows(connection, tables, [inside], top - above)}


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
    return [
        tuple(row)
        for row in connection.execute(text(_named(sql, ":p{}").replace("::", "\\:\\:").replace("%%", "%")), named)
    ]


def _fetch_dbapi(connection: Connection, sql: str, parameters: tuple[Any, ...]) -> Tuples:
    cursor = connection.connection.cursor()
    try:
        cursor.execute(sql, parameters)
        return cursor.fetchall()
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

"""Writing captured rows into ``events``: the cheapest statement that the driver has for so many.

Microseconds for each event of 400 bytes, round trip and work of the server included (PostgreSQL 18 without fsync on two
shared cores, psycopg 3.3 / asyncpg 0.32; SQLAlchemy's executemany is what one would write by hand):

=====================================  ==========  ===========  ===========  ===========  ===========
rows in one write                           1           5            25          100         1000
=====================================  ==========  ===========  ===========  ===========  ===========
SQLAlchemy Core executemany             193 / 207   83 / 54      37 / 25      29 / 18      29 / 16
INSERT, the driver's execute             88 / 107
the driver's executemany                121 / 108   57 / 30      26 / 15      21 / 11      19 / 10
one JSON parameter, split by the server  98 / 114   27 / 31      13 / 14      10 / 8        8 / 7
COPY of text                            132 / 181   34 / 42      13 / 15       9 / 9        6 / 6
COPY of binary rows made here           124 / 187   31 / 45      12 / 14       7 / 7        5 / 5
=====================================  ==========  ===========  ===========  ===========  ===========

So PostgreSQL gets an INSERT for one row, JSON for a few, COPY for many. asyncpg's own ``copy_records_to_table`` is no
faster and reads the table first, for which a role needs more than INSERT. Nothing is asked of the server beside these
statements: they work through PgBouncer and with prepared statements off. COPY does not go through a pipeline that the
application has opened on psycopg's connection; JSON does, and takes every encoding of the client.

SQLite gets statements of many rows, in which what these share is bound once. Microseconds for each event: the driver's
executemany 3.9, with what is shared as literals 2.5 (which would have to be quoted, and compiled for every other user), one
JSON parameter 3.3, statements of 10 rows 2.1 and of 50 1.7. Two sizes are enough: each takes one place among the 128
statements that the driver keeps.

All of them run in the transaction of the caller's connection, and number the events in the order of the rows.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any

import msgspec
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.util import await_only

from ..errors import CaptureError
from ..schema import Names, Tables
from . import commits

OWN = ("id", "key", "payload", "types")
"""What each event has of its own; the id as 32 hexadecimal digits."""
SHARED = (
    "source", "type", "schema", "entity", "operation", "metadata", "user_id", "session_id", "instance_id", "schema_version",
)  # fmt: skip
COLUMNS = (*OWN, *SHARED)

ABOUT = slice(SHARED.index("metadata"), SHARED.index("instance_id") + 1)
"""Which of them say who is writing."""

COPY_ROWS = 24
"""Rows from which COPY is cheaper than JSON."""

SIZES = (50, 10)
"""Rows in one statement on SQLite; fewer go in one by one. 210 parameters: old versions take 999."""

JSON_CHARACTERS = 1_000_000
"""Of all payloads together; PostgreSQL's jsonb holds 256 MB at most, and COPY does not mind."""


class Head:
    """What the events of one statement have in common: values in the order of ``SHARED``."""

    def __init__(self, values: tuple[Any, ...]) -> None:
        self.values = values
        self.type: str = values[1]
        about = values[ABOUT]
        self.said = [value for value in about if value is not None]
        self.says = tuple(value is not None for value in about)
        """Which of them are there."""
        self.fixed = values[: ABOUT.start] + values[ABOUT.stop :]

    @cached_property
    def packed(self) -> bytes:
        """The values as fields of a binary COPY."""
        return b"".join(map(_field, self.values[:-1])) + _LENGTH.pack(4) + _LENGTH.pack(self.values[-1])


Captured = tuple[str, str | None, str, str | None, Head]
"""One event: the values of ``OWN``, and what it shares."""


def write(connection: Connection, tables: Tables, rows: Sequence[Captured]) -> None:
    """Write rows, in order, on this connection, in its transaction.

    :raises CaptureError: if the table is missing or refuses them.
    """
    cursor = connection.connection.cursor()
    try:
        way = _one if len(rows) == 1 else _way(connection.dialect, cursor, rows)
        way(connection.dialect, cursor, tables, rows)
    except (connection.dialect.loaded_dbapi.Error, UnicodeEncodeError) as error:
        if connection.dialect.is_disconnect(error, connection.connection.dbapi_connection, cursor):  # type: ignore[arg-type]
            connection.invalidate(error)
            raise CaptureError(f"the connection was lost while events were written: {error}") from error
        raise CaptureError(
            f"events could not be written to {tables.names.qualified(tables.names.events)}: {error}; "
            "if the table is missing or outdated, run: sqla-events migrate URL"
        ) from error
    except BaseException as error:
        commits.broken_off(connection, error)
        raise
    finally:
        _close(connection, cursor)


def _close(connection: Connection, cursor: Any) -> None:
    try:  # noqa: SIM105 - a context manager costs more
        cursor.close()
    except connection.dialect.loaded_dbapi.Error:  # of a connection that is lost
        pass


Write = Callable[[Dialect, Any, Tables, Sequence[Captured]], None]


def _way(dialect: Dialect, cursor: Any, rows: Sequence[Captured]) -> Write:
    if dialect.name != "postgresql":
        return _some
    many = len(rows) >= COPY_ROWS or sum(len(row[2]) for row in rows) > JSON_CHARACTERS
    if many and dialect.driver in _COPY and _copies(cursor):
        return _copy
    return _as_json


def _copies(cursor: Any) -> bool:
    """Whether the connection can COPY now: text in binary rows is in the encoding of the client, and ours is UTF-8."""
    if hasattr(cursor, "_adapt_connection"):
        raw = cursor._adapt_connection._connection
    else:
        raw = cursor.connection
    if hasattr(raw, "get_settings"):
        return str(raw.get_settings().client_encoding).lower() in _UTF_8
    return raw.info.encoding in _UTF_8 and not raw.pgconn.pipeline_status


_UTF_8 = ("utf-8", "utf8")


# INSERT -------------------------------------------------------------------------------------------------------------


def _one(dialect: Dialect, cursor: Any, tables: Tables, rows: Sequence[Captured]) -> None:
    """Straight through the driver's cursor: SQLAlchemy's execution costs more than the write of one row."""
    row = rows[0]
    cursor.execute(_insert(dialect, tables), row[:4] + row[4].values)


def _some(dialect: Dialect, cursor: Any, tables: Tables, rows: Sequence[Captured]) -> None:
    for head, alike in groupby(rows, _HEAD):
        left = list(alike)
        for size in SIZES:
            while len(left) >= size:
                some, left = left[:size], left[size:]
                cursor.execute(_insert_many(tables, size), [*head.values, *(value for row in some for value in row[:4])])
        if left:
            cursor.executemany(_insert(dialect, tables), [_flat(row) for row in left])


_HEAD = itemgetter(4)


def _as_json(dialect: Dialect, cursor: Any, tables: Tables, rows: Sequence[Captured]) -> None:
    """One parameter, which the server takes apart."""
    cursor.execute(_split(dialect, tables), (msgspec.json.encode([_flat(row) for row in rows]).decode(),))


def _flat(row: Captured) -> tuple[Any, ...]:
    return row[:4] + row[4].values


def _table(tables: Tables) -> str:
    return tables.names.qualified(tables.names.events)


NAMES = ", ".join(f'"{name}"' for name in COLUMNS)
_KINDS = {"id": "uuid", "payload": "json", "types": "json", "metadata": "json", "schema_version": "integer"}
KINDS = tuple(_KINDS.get(name, "text") for name in COLUMNS)
"""What parameters are cast to."""
NUMBERED_KINDS = tuple(kind.replace("json", "text::json") for kind in KINDS)
"""Of asyncpg's. JSON by way of text: SQLAlchemy's own codec for it takes it that the client's encoding is UTF-8."""


@lru_cache(maxsize=64)
def _insert(dialect: Dialect, tables: Tables) -> str:
    if dialect.paramstyle == "numeric_dollar":
        marks = [f"${number}::{kind}" for number, kind in enumerate(NUMBERED_KINDS, 1)]
    else:
        marks = ["?" if dialect.name == "sqlite" else "%s"] * len(COLUMNS)  # which its driver takes whatever SQLAlchemy writes
    return f"INSERT INTO {_table(tables)} ({NAMES}) VALUES ({', '.join(marks)})"


@lru_cache(maxsize=64)
def _insert_many(tables: Tables, size: int) -> str:
    """SQLite's VALUES come in the order in which they stand there."""
    shared = ", ".join("?" * len(SHARED))
    values = ", ".join(["(?, ?, ?, ?)"] * size)
    return (
        f"INSERT INTO {_table(tables)} ({NAMES}) SELECT column1, column2, column3, column4, {shared} FROM (VALUES {values})"
    )


@lru_cache(maxsize=64)
def _split(dialect: Dialect, tables: Tables) -> str:
    mark = "$1" if dialect.paramstyle == "numeric_dollar" else "%s"
    fields = ", ".join(f"(row->>{n})::{_KINDS.get(name, 'text')}" for n, name in enumerate(COLUMNS))
    return (
        f"INSERT INTO {_table(tables)} ({NAMES}) SELECT {fields} "
        f"FROM jsonb_array_elements({mark}::text::jsonb) WITH ORDINALITY AS rows (row, number) ORDER BY number"
    )


# COPY ---------------------------------------------------------------------------------------------------------------


def _copy(dialect: Dialect, cursor: Any, tables: Tables, rows: Sequence[Captured]) -> None:
    _COPY[dialect.driver](cursor, tables, binary(rows))


def _psycopg(cursor: Any, tables: Tables, block: bytes) -> None:
    statement = f"COPY {_table(tables)} ({NAMES}) FROM STDIN (FORMAT binary)"
    if hasattr(cursor, "_cursor"):  # SQLAlchemy's adapter, in 2.0 and 2.1
        await_only(_send(cursor._cursor, statement, block))
    else:
        with cursor.copy(statement) as copy:
            copy.write(block)


async def _send(raw: Any, statement: str, block: bytes) -> None:
    async with raw.copy(statement) as copy:
        await copy.write(block)


def _asyncpg(cursor: Any, tables: Tables, block: bytes) -> None:
    await_only(_send_table(cursor, tables.names, block))


async def _send_table(cursor: Any, names: Names, block: bytes) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield block

    adapted = cursor._adapt_connection
    async with adapted._execute_mutex:
        if adapted._transaction is None:
            await adapted._start_transaction()
        try:
            await cursor._connection.copy_to_table(
                names.events, source=source(), columns=COLUMNS, schema_name=names.schema, format="binary"
            )
        except Exception as error:
            cursor._handle_exception(error)


_COPY: dict[str, Callable[[Any, Tables, bytes], None]] = {"psycopg": _psycopg, "asyncpg": _asyncpg}
"""By the dialect's driver."""

_LENGTH = struct.Struct("!i")
_NULL = _LENGTH.pack(-1)
_START = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_ROW = struct.pack("!hi", len(COLUMNS), 16)
"""How many fields, and how long the first one is: the id."""
_END = struct.pack("!h", -1)


def binary(rows: Iterable[Captured]) -> bytes:
    """Rows in the binary format of COPY, which has no characters to escape and nothing for the server to parse."""
    parts = [_START]
    for id_, key, payload, types, head in rows:
        parts += (_ROW, bytes.fromhex(id_), _field(key), _field(payload), _field(types), head.packed)
    parts.append(_END)
    return b"".join(parts)


def _field(text: str | None) -> bytes:
    if text is None:
        return _NULL
    data = text.encode()
    return _LENGTH.pack(len(data)) + data

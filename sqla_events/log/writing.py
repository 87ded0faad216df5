"""Events published by hand into the log, in the transaction of the connection that is given."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..errors import EventError
from ..event import Event, encode_values
from ..schema import Tables


def append(connection: Connection, tables: Tables, events: Sequence[Event]) -> list[int]:
    """Write events; returns their seqs, in the order given. They exist if the caller's transaction commits.

    :raises EventError: for a payload that has no JSON form, or text that the database cannot store; nothing is written.
    """
    if not events:
        return []
    postgres = connection.dialect.name == "postgresql"
    rows = [_values(event, postgres) for event in events]
    result = connection.execute(_statement(tables, postgres), rows)
    seqs = {str(identity): seq for seq, identity in result}
    return [seqs[str(event.id)] for event in events]


def _statement(tables: Tables, postgres: bool) -> sa.Insert:
    """On SQLite, times are written in the one form that ``created_at`` is compared in."""
    table = tables.events
    values: dict[str, Any] = {name: sa.bindparam(name) for name in _NAMES}
    if not postgres:
        values["created_at"] = sa.bindparam("created_at", type_=sa.Text())
    return sa.insert(table).values(values).returning(table.c.seq, table.c.id)


_NAMES = (
    "id", "source", "type", "schema", "entity", "operation", "key", "payload", "types", "metadata",
    "user_id", "session_id", "instance_id", "schema_version", "created_at",
)  # fmt: skip


def _values(event: Event, postgres: bool) -> dict[str, Any]:
    payload, metadata, types = encode_values(event)
    values = {
        "id": event.id,
        "source": str(event.source),
        "type": event.type,
        "schema": event.schema,
        "entity": event.entity,
        "operation": event.operation,
        "key": event.key,
        "payload": payload,
        "types": msgspec.json.encode(types).decode() if types else None,
        "metadata": metadata if event.metadata else None,
        "user_id": None if event.user_id is None else str(event.user_id),
        "session_id": event.session_id,
        "instance_id": event.instance_id,
        "schema_version": event.schema_version,
        "created_at": event.created_at if postgres else event.created_at.astimezone(dt.UTC).isoformat(),
    }
    if postgres:
        _check(values)
    return values


def _check(values: dict[str, Any]) -> None:
    """PostgreSQL's text holds no NUL; JSON does (as an escape)."""
    for name, value in values.items():
        if isinstance(value, str) and "\x00" in value:
            raise EventError(
                f"{name} is {value[:80]!r}; PostgreSQL cannot store a NUL character there (it can in the payload)"
            )

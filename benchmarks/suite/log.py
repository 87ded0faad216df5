"""The log of a connection under test, and reading it: the columns that capture writes, and nothing else."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from sqla_events.capture.outbox import COLUMNS
from sqla_events.event import Event, decode_values

DEFAULT_SCHEMA = "public"
"""What events say of a table whose schema is the connection's own."""

READ = "seq, type, schema, entity, operation, key, payload, metadata, types"


def columns(**kinds: str) -> str:
    """Column definitions; text unless said otherwise."""
    return ", ".join(f'"{name}" {kinds.get(name, "text")}' for name in COLUMNS)


def decoded(rows: Iterable[Any]) -> list[Event]:
    """Events from rows of ``READ``, JSON as text."""
    found = []
    for seq, kind, schema, entity, operation, key, payload, metadata, types in rows:
        value, about = decode_values(payload, metadata, types)
        found.append(
            Event(
                type=kind, id=uuid.UUID(int=seq), schema=schema, entity=entity, operation=operation,
                key=key, payload=value, metadata=about, seq=seq,
            )
        )
    return found

"""The log of a connection under test, and reading it: the columns that capture writes, and nothing else."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from sqla_events.capture.outbox import COLUMNS
from sqla_events.event import Event, decode_values

READ = "seq, type, schema, entity, operation, key, payload, types"


def columns(**kinds: str) -> str:
    """Column definitions; text unless said otherwise."""
    return ", ".join(f'"{name}" {kinds.get(name, "text")}' for name in COLUMNS)


def decoded(rows: Iterable[Any]) -> list[Event]:
    """Events from rows of ``READ``, JSON as text."""
    found = []
    for seq, kind, schema, entity, operation, key, payload, types in rows:
        value, _ = decode_values(payload, None, types)
        found.append(
            Event(type=kind, id=uuid.UUID(int=seq), schema=schema, entity=entity, operation=operation, key=key, payload=value, seq=seq)
        )
    return found

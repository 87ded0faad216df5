"""Types of events: ``schema.entity.operation``, three names joined by dots; what patterns match.

A name of the database may hold anything. What would end its segment, or match as a wildcard, is written as %XX.
"""

from __future__ import annotations

import re
from functools import lru_cache

from .errors import EventError

MAX_TYPE_LENGTH = 512

_SEGMENT = r"[^\s.*>\x00-\x1f\x7f\ud800-\udfff]+"
_TYPE = re.compile(rf"{_SEGMENT}(\.{_SEGMENT})*")
_QUOTED = re.compile(r"[\s.*?\[>%\x00-\x1f\x7f]")


@lru_cache(maxsize=4096)
def parts_of(event_type: str) -> tuple[str, ...] | None:
    """Schema, entity and operation of a type that has three segments. Types repeat: each is checked once.

    :raises EventError: where it is no type.
    """
    check_type(event_type)
    parts = event_type.split(".")
    return tuple(unquote(part) for part in parts) if len(parts) == 3 else None


def check_type(value: object) -> None:
    """Raise EventError unless ``value`` is a valid event type: segments joined by dots, none empty, no wildcard."""
    if not isinstance(value, str) or len(value) > MAX_TYPE_LENGTH or not _TYPE.fullmatch(value):
        raise EventError(
            f"type is {value!r}; it must be segments joined by dots, such as 'public.users.create', without spaces, "
            f"'*' or '>', of at most {MAX_TYPE_LENGTH} characters"
        )


def quote(name: str) -> str:
    """A schema or table name as one segment of a type: what would end the segment or match as a wildcard becomes %XX."""
    return _QUOTED.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), name)


def unquote(segment: str) -> str:
    """The name that :func:`quote` made a segment of."""
    if "%" not in segment:
        return segment
    return re.sub(
        r"(%[0-9A-F]{2})+", lambda match: bytes.fromhex(match[0].replace("%", "")).decode(errors="replace"), segment
    )


def type_of(schema: str, entity: str, operation: str) -> str:
    """The type of the events of one operation on one table."""
    return f"{quote(schema)}.{quote(entity)}.{operation}"

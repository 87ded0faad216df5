"""From written rows to rows of the outbox: payload, key, sidecar, and what a whole statement's events have in common."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .. import context, encoding
from ..errors import CaptureError
from ..event import type_of
from .codec import TableCodec
from .plan import Plan, Row
from .settings import CaptureSettings

_encode = msgspec.json.Encoder().encode


class Maker:
    """Makes events as the settings say."""

    def __init__(self, settings: CaptureSettings, instance_id: str, text_id: bool) -> None:
        self._settings = settings
        self._instance_id = instance_id
        self._new_id = id_hex if text_id else id_text
        self._before = settings.old_values != "never"

    def events(self, connection: Connection, plan: Plan, rows: Iterable[Row]) -> list[tuple[Any, ...]]:
        """The outbox rows of what one statement wrote, in the order of :data:`outbox.COLUMNS`."""
        about = context.current()
        metadata, special = _metadata(about)
        user_id = None if about.user_id is None else str(about.user_id)
        schema = schema_of(plan.table, connection) or self._settings.default_schema
        entity, made, instance, session_id = str(plan.table.name), [], self._instance_id, about.session_id
        for row in rows:
            verb = row.verb or plan.verb
            if verb not in plan.codec.operations:
                continue
            payload, types = self._payload(plan.codec, row, verb)
            made.append(
                (
                    self._new_id(),
                    "database",
                    _type(schema, entity, verb),
                    schema,
                    entity,
                    verb,
                    plan.codec.key_text(row.key),
                    payload,
                    _joined(types, special) if special else types,
                    metadata,
                    user_id,
                    session_id,
                    instance,
                    plan.codec.version,
                )
            )
        return made

    def _payload(self, codec: TableCodec, row: Row, verb: str) -> tuple[str, str | None]:
        special: encoding.Types = {}
        payload: dict[str, Any] = {"key": codec.side(row.key, "key", special)}
        if row.before is not None and self._before:
            payload["before"] = codec.side(row.before, "before", special)
        if row.after is not None:
            payload["after"] = codec.side(row.after, "after", special)
        if row.unknown:
            payload["unknown"] = row.unknown
        if row.upsert:
            payload["upsert"] = True
        if verb == "delete" and codec.cascades:
            payload["cascades"] = codec.cascades
        text = self._text(codec, payload)
        limit = self._settings.max_payload_bytes
        if limit is not None and len(text) > limit:
            text = self._too_large(codec, payload, len(text))
        return text.decode(), codec.types(special)

    def _text(self, codec: TableCodec, payload: dict[str, Any]) -> bytes:
        try:
            return _encode(payload)
        except (UnicodeEncodeError, TypeError, ValueError):
            codec.blame(payload)  # names the column, or puts a placeholder in its place
            return _encode(payload)

    def _too_large(self, codec: TableCodec, payload: dict[str, Any], size: int) -> bytes:
        limit = self._settings.max_payload_bytes
        if self._settings.on_too_large == "error":
            raise CaptureError(
                f"an event of {codec.table.fullname} has a payload of {size} bytes, and max_payload_bytes is {limit}; "
                "exclude large columns (exclude_columns), raise the limit, or set on_too_large to 'truncate'"
            )
        names = sorted({name for side in ("before", "after") for name in payload.get(side, {})})
        return _encode({"key": payload["key"], "truncated": names})


def id_hex() -> str:
    """A UUID version 7 as 32 hexadecimal digits, as :func:`event.new_id` makes it and several times as fast."""
    noise = os.urandom(10).hex()
    return f"{time.time_ns() // 1_000_000:012x}7{noise[:3]}{'89ab'[int(noise[3], 16) & 3]}{noise[4:19]}"


def id_text() -> str:
    """The same with dashes, as PostgreSQL shows it."""
    digits = id_hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def id_of(row: tuple[Any, ...]) -> uuid.UUID:
    """The id of an outbox row."""
    return uuid.UUID(row[0])


_type = lru_cache(maxsize=4096)(type_of)


def _metadata(about: context.About) -> tuple[str | None, encoding.Types]:
    if not about.metadata:
        return None, {}
    special: encoding.Types = {}
    return encoding.dumps(encoding.lower(about.metadata, "/metadata", special)), special


def _joined(types: str | None, more: encoding.Types) -> str:
    text = encoding.dumps(more)
    return text if types is None else f"{types[:-1]},{text[1:]}"


def schema_of(table: sa.Table, connection: Connection) -> str | None:
    """The schema that a statement on this connection writes to."""
    translate = connection.get_execution_options().get("schema_translate_map")
    return translate.get(table.schema, table.schema) if translate else table.schema

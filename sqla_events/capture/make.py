"""From written rows to rows of the outbox: payload, key, sidecar, and what a whole statement's events have in common."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy.engine import Connection

from .. import context, encoding
from ..errors import CaptureError
from ..event import type_of
from .codec import TableCodec
from .kept import ByIdentity
from .outbox import Captured, Head
from .plan import Plan, Row
from .settings import CaptureSettings

_encode = msgspec.json.Encoder().encode


MAX_HEADS = 1000


class Said(msgspec.Struct, eq=False):
    """What an ``event_context`` says, as events carry it."""

    values: tuple[str | None, ...]
    """Metadata as JSON, user, session and instance."""
    special: encoding.Types
    """The types of the metadata."""
    heads: dict[tuple[TableCodec, str | None, str], Head] = {}
    """By table, schema and verb."""


class Maker:
    """Makes events as the settings say."""

    def __init__(self, settings: CaptureSettings, instance_id: str) -> None:
        self._settings = settings
        self._instance_id = instance_id
        self._before = settings.old_values != "never"
        self._limit = settings.max_payload_bytes
        self._said: ByIdentity[Said] = ByIdentity()
        self._last: tuple[context.About | None, Said] = None, Said((), {})
        """The context that applied last, and what it says."""

    def event(self, connection: Connection, plan: Plan, row: Row) -> Captured | None:
        """The event of one row, the first or only one of a statement; None if none is wanted."""
        about, said = self._last
        if about is not context.current():
            said = self._saying()
        codec, verb, schema = plan.codec, row.verb or plan.shape.verb, plan.shape.table.schema
        if verb not in codec.operations:
            return None
        if plan.translate is not None or plan.context is None:
            schema = self._schema(plan, connection)
        if codec.zoned:
            row = _at_moments(codec, row, connection)
        payload, types = self._payload(codec, row, verb, None if plan.cause is None else self._cause(connection, plan.cause))
        head = said.heads.get((codec, schema, verb)) or self._head(said, codec, schema, verb)
        return an_id(), codec.key_text(row.key), payload, _joined(types, said.special) if said.special else types, head

    def events(self, connection: Connection, plan: Plan, rows: Sequence[Row]) -> list[Captured]:
        """The events of what one statement wrote, in its order."""
        if len(rows) == 1:
            event = self.event(connection, plan, rows[0])
            return [] if event is None else [event]
        said = self._saying()
        schema = self._schema(plan, connection)
        cause = None if plan.cause is None else self._cause(connection, plan.cause)
        usual, codec, special, made = plan.shape.verb, plan.codec, said.special, []
        if codec.zoned:
            rows = [_at_moments(codec, row, connection) for row in rows]
        for new_id, row in zip(ids(len(rows)), rows, strict=True):
            verb = row.verb or usual
            if verb in codec.operations:
                head = said.heads.get((codec, schema, verb)) or self._head(said, codec, schema, verb)
                payload, types = self._payload(codec, row, verb, cause)
                types = _joined(types, special) if special else types
                made.append((new_id, codec.key_text(row.key), payload, types, head))
        return made

    def _cause(self, connection: Connection, plan: Plan) -> str:
        """The type of the events whose foreign keys have changed other rows."""
        return type_of(self._named(self._schema(plan, connection)), str(plan.shape.table.name), plan.verb)

    def _saying(self) -> Said:
        """What the context that applies here says, made once and kept as long as it lives."""
        about = context.current()
        said = self._said.get(about, self._say)
        self._last = about, said
        return said

    def shared(self, connection: Connection, plan: Plan) -> tuple[Head, encoding.Types]:
        """What the events of a statement have in common, and the types of their metadata."""
        said = self._saying()
        return self._head(said, plan.codec, self._schema(plan, connection), plan.verb), said.special

    def _say(self, about: context.About) -> Said:
        special: encoding.Types = {}
        metadata = encoding.dumps(encoding.lower(about.metadata, "/metadata", special)) if about.metadata else None
        user_id = None if about.user_id is None else str(about.user_id)
        return Said((metadata, user_id, about.session_id, self._instance_id), special)

    def _head(self, said: Said, codec: TableCodec, schema: str | None, verb: str) -> Head:
        named, entity = self._named(schema), str(codec.table.name)
        head = Head(("database", type_of(named, entity, verb), named, entity, verb, *said.values, codec.version))
        if len(said.heads) >= MAX_HEADS:
            said.heads.clear()
        said.heads[codec, schema, verb] = head
        return head

    def _schema(self, plan: Plan, connection: Connection) -> str | None:
        """The schema that the statement writes to, None for the default one."""
        translate = plan.translate  # which an execution has taken from its connection's options too
        if plan.context is None:
            translate = translate or connection.get_execution_options().get("schema_translate_map")
        schema: str | None = plan.shape.table.schema
        return translate.get(schema, schema) if translate else schema

    def _named(self, schema: str | None) -> str:
        return str(schema or self._settings.default_schema)  # no quoted_name, of which msgspec makes no JSON

    def _payload(self, codec: TableCodec, row: Row, verb: str, cause: str | None) -> tuple[str, str | None]:
        special: encoding.Types = {}
        key = row.key
        payload: dict[str, Any] = {"key": key if type(key.get(codec.sole)) is codec.sole_type else codec.shown_key(key, special)}
        if row.before is not None and self._before:
            payload["before"] = codec.side(row.before, "before", special)
        if row.after is not None:
            payload["after"] = codec.side(row.after, "after", special)
        if row.unknown:
            payload["unknown"] = row.unknown
        if row.upsert:
            payload["upsert"] = True
        if cause is not None:
            payload["cascaded_from"] = cause
        if codec.cascades and verb == "delete":
            payload["cascades"] = codec.cascades
        try:
            text = _encode(payload)
        except (UnicodeEncodeError, TypeError, ValueError):
            codec.blame(payload)  # names the column, or puts a placeholder in its place
            text = _encode(payload)
        if codec.decimals and b"E" in text and (b"E+" in text or b"E-" in text):
            codec.write_out(payload)
            text = _encode(payload)
        if self._limit is not None and len(text) > self._limit:
            text = self._too_large(codec, payload, len(text))
        return text.decode(), codec.types(special) if special else codec.usual_types

    def _too_large(self, codec: TableCodec, payload: dict[str, Any], size: int) -> bytes:
        if self._settings.on_too_large == "error":
            raise CaptureError(
                f"an event of {codec.table.fullname} has a payload of {size} bytes, and max_payload_bytes is {self._limit}; "
                "exclude large columns (exclude_columns), raise the limit, or set on_too_large to 'truncate'"
            )
        names = sorted({name for side in ("before", "after") for name in payload.get(side, {})})
        return _encode({"key": payload["key"], "truncated": names})


def _at_moments(codec: TableCodec, row: Row, connection: Connection) -> Row:
    before, after = (None if side is None else codec.moments(side, connection) for side in (row.before, row.after))
    return msgspec.structs.replace(row, key=codec.moments(row.key, connection), before=before, after=after)


def an_id() -> str:
    """A UUID of version 7 as 32 hexadecimal digits, as :func:`event.new_id` makes it and several times as fast."""
    try:
        tail = _tails.pop()
    except IndexError:
        _tails.extend(_random_tails(TAILS))
        tail = _tails.pop()
    return f"{time.time_ns() // 1_000_000:012x}7{tail}"


def ids(count: int) -> list[str]:
    """Many of one moment."""
    time_ = f"{time.time_ns() // 1_000_000:012x}7"
    return [time_ + tail for tail in _random_tails(count)]


def a_number() -> int:
    """One of 19 digits that nobody can foresee: it stands nowhere else in a text that was made without it."""
    return 1 << 60 | int(an_id()[17:], 16)


TAILS = 100
"""Of single ids, made at once: asking the system for random bytes costs more than all the rest of one id."""

_tails: list[str] = []
os.register_at_fork(after_in_child=_tails.clear)


def _random_tails(count: int) -> list[str]:
    """What comes after the time and the version."""
    noise = os.urandom(10 * count).hex()
    return [
        f"{noise[start : start + 3]}{_VARIANT[noise[start + 3]]}{noise[start + 4 : start + 19]}"
        for start in range(0, 20 * count, 20)
    ]


_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


def _joined(types: str | None, more: encoding.Types) -> str:
    text = encoding.dumps(more)
    return text if types is None else f"{types[:-1]},{text[1:]}"


"""The event: one frozen value from the row it was captured from to the handler that receives it."""

from __future__ import annotations

import datetime as dt
import enum
import os
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

import msgspec

from . import encoding
from .errors import EventError
from .event_type import MAX_TYPE_LENGTH, check_type, parts_of, quote, type_of, unquote

__all__ = [
    "MAX_TYPE_LENGTH", "REPLAY", "Event", "Operation", "Source", "Status", "Wire", "check_type", "decode",
    "decode_values", "encode", "encode_values", "lane_of", "new_id", "now", "quote", "type_of", "unquote",
    "user_id_from_text",
]


class Source(enum.StrEnum):
    """Where an event comes from."""

    DATABASE = "database"
    WEBSOCKET = "websocket"
    FRONTEND = "frontend"
    SYSTEM = "system"
    INTERNAL = "internal"


class Status(enum.StrEnum):
    """How far an event has come, as one consumer group sees it."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"


class Operation(enum.StrEnum):
    """What happened to a row. Events that are published by hand may use any other word."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    READ = "read"


REPLAY = "replay"
"""The member of ``metadata`` that says that an event is delivered once more by a replay, and by which."""


def new_id() -> uuid.UUID:
    """A UUID version 7 (RFC 9562, 48 bits of Unix milliseconds, 74 random bits): ids sort roughly by time."""
    random = int.from_bytes(os.urandom(10), "big")
    milliseconds = time.time_ns() // 1_000_000
    high = (milliseconds & 0xFFFF_FFFF_FFFF) << 16 | 0x7000 | (random >> 64) & 0x0FFF
    low = 0x8000_0000_0000_0000 | random & 0x3FFF_FFFF_FFFF_FFFF
    return uuid.UUID(int=high << 64 | low)


def now() -> dt.datetime:
    """The present moment with its zone, UTC."""
    return dt.datetime.now(dt.UTC)


class Event(msgspec.Struct, frozen=True, kw_only=True, dict=False):
    """What happened, to what, by whom, and how its delivery went.

    Only ``type`` is required. ``schema``, ``entity`` and ``operation`` are taken from a type of three segments unless
    they are given. An event never changes: :func:`msgspec.structs.replace` makes a new one, as does :meth:`replace`.

    ``payload`` of a captured write is a dict with ``key`` (primary key columns), ``before`` and ``after`` (column name
    -> value); :attr:`before` and :attr:`after` are shortcuts that are ``{}`` where there is nothing.

    :raises EventError: for a value that does not fit its field; the message names field and value.
    """

    type: str
    """``schema.entity.operation``; what patterns match."""
    id: uuid.UUID = msgspec.field(default_factory=new_id)
    """Version 7 unless given. The same on every redelivery: make handlers idempotent with it."""
    source: Source = Source.INTERNAL
    status: Status = Status.PENDING
    payload: Any = None
    """Any value that :mod:`sqla_events.encoding` knows."""
    user_id: int | str | None = None
    """Who did it. Text that is a canonical integer is that integer."""
    session_id: str | None = None
    instance_id: str | None = None
    """Which process made the event."""
    schema: str | None = None
    entity: str | None = None
    operation: str | None = None
    created_at: dt.datetime = msgspec.field(default_factory=now)
    processed_at: dt.datetime | None = None
    completed_at: dt.datetime | None = None
    error: str | None = None
    """The last error of a delivery that failed."""
    metadata: dict[str, Any] = {}
    retry_count: int = 0
    """Attempts after the first."""
    key: str | None = None
    """The row's primary key as text. Events with the same schema, entity and key keep their order."""
    seq: int | None = None
    """Place in the log; None until it is written."""
    schema_version: int = 1

    def __post_init__(self) -> None:
        """Runs for every event that a handler gets: what is right already costs one comparison."""
        if type(self.type) is not str:
            check_type(self.type)
            _set(self, "type", str.__str__(self.type))
        parts = parts_of(self.type)
        if type(self.source) is not Source:
            _set(self, "source", _member(Source, "source", self.source))
        if type(self.status) is not Status:
            _set(self, "status", _member(Status, "status", self.status))
        if self.user_id is not None:
            _set(self, "user_id", _user_id(self.user_id))
        if type(self.metadata) is not dict:
            _set(self, "metadata", _metadata(self.metadata))
        if type(self.id) is not uuid.UUID:
            _set(self, "id", _uuid(self.id))
        _check_times(self)
        if not (type(self.retry_count) is type(self.schema_version) is int and type(self.seq) in _SEQ):
            _check_integers(self)
        texts = (self.session_id, self.instance_id, self.schema, self.entity, self.operation, self.error, self.key)
        if not _TEXT.issuperset(map(type, texts)):
            _make_texts(self)
        if parts is not None and None in texts[2:5]:
            _take_parts(self, parts)

    @property
    def before(self) -> dict[str, Any]:
        """Column values before a captured write, as far as they are known; ``{}`` where there are none."""
        return self._side("before")

    @property
    def after(self) -> dict[str, Any]:
        """Column values after a captured write: every column of a new row, the changed ones of an update."""
        return self._side("after")

    @property
    def is_replay(self) -> bool:
        """Whether ``broker.replay`` brought it, and not the change itself; ``metadata["replay"]`` names the replay."""
        return REPLAY in self.metadata

    def _side(self, name: str) -> dict[str, Any]:
        side = self.payload.get(name) if isinstance(self.payload, dict) else None
        return side if isinstance(side, dict) else {}

    def replace(self, **changes: Any) -> Event:
        """A copy with some fields changed."""
        return msgspec.structs.replace(self, **changes)

    def to_json(self) -> bytes:
        """The wire form: one JSON object. :meth:`from_json` gives an equal event back."""
        return encode(self)

    @classmethod
    def from_json(cls, text: bytes | str) -> Event:
        """Read the wire form. Unknown members are ignored, so that newer writers do not break older readers."""
        return decode(text)


_set = msgspec.structs.force_setattr


# Validation ---------------------------------------------------------------------------------------------------------

_TEXT = frozenset({str, type(None)})
_SEQ = frozenset({int, type(None)})


def _make_texts(event: Event) -> None:
    for field in ("session_id", "instance_id", "schema", "entity", "operation", "error", "key"):
        value = getattr(event, field)
        if not isinstance(value, (str, uuid.UUID, type(None))):
            raise EventError(f"{field} is {value!r} of type {type(value).__name__}; it must be a str or None")
        _set(event, field, str.__str__(value) if isinstance(value, str) else value and str(value))


def _uuid(value: object) -> uuid.UUID:
    if isinstance(value, uuid.UUID):
        return value
    try:
        return uuid.UUID(value)  # type: ignore[arg-type]  # what is no text is refused like text that is no UUID
    except (ValueError, AttributeError, TypeError):
        raise EventError(f"id is {value!r}; it must be a UUID") from None


def _check_integers(event: Event) -> None:
    for field in ("retry_count", "schema_version", "seq"):
        value = getattr(event, field)
        if field == "seq" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise EventError(f"{field} is {value!r} of type {type(value).__name__}; it must be an int")


def _check_times(event: Event) -> None:
    _check_time("created_at", event.created_at)
    if event.processed_at is not None:
        _check_time("processed_at", event.processed_at)
    if event.completed_at is not None:
        _check_time("completed_at", event.completed_at)


def _check_time(field: str, value: object) -> None:
    if not isinstance(value, dt.datetime):
        raise EventError(f"{field} is {value!r}; it must be a datetime with a time zone")
    if value.tzinfo is None:
        raise EventError(f"{field} is {value!r}, which has no time zone; use datetime.now(timezone.utc)")


def _take_parts(event: Event, parts: tuple[str, ...]) -> None:
    for field, part in zip(("schema", "entity", "operation"), parts, strict=True):
        if getattr(event, field) is None:
            _set(event, field, part)


def _metadata(value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise EventError(f"metadata is {value!r}; it must be a dict")
    return dict(value)


def lane_of(schema: str | None, entity: str | None, key: str | None, event_id: str) -> str:
    """The name of what keeps an event in order: its row. An event without a key has a lane of its own."""
    return event_id if key is None else f"{schema or ''}.{entity or ''}:{key}"


_MEMBERS = {kind: {member.value: member for member in kind} for kind in (Source, Status)}
"""A look-up here costs a third of calling the enum."""


def _member(kind: type[enum.StrEnum], field: str, value: object) -> enum.StrEnum:
    try:
        return _MEMBERS[kind][value]  # type: ignore[index]
    except (KeyError, TypeError):
        raise EventError(f"{field} is {value!r}; it must be one of {', '.join(kind)}") from None


_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
_INT64 = range(-(2**63), 2**63)


def _user_id(value: object) -> int | str:
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise EventError(
            f"user_id is {value!r} of type {type(value).__name__}; it must be an int, a str, a UUID or None"
        )
    if isinstance(value, str):
        return user_id_from_text(str.__str__(value))
    number = int(value)
    return number if number in _INT64 else str(number)


def user_id_from_text(text: str) -> int | str:
    """The log keeps the user id as text; canonical integers of 64 bits come back as integers."""
    return int(text) if _INTEGER.fullmatch(text) and int(text) in _INT64 else text


# Wire form ----------------------------------------------------------------------------------------------------------


class Wire(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The members of the JSON object that travels. ``payload`` stays text; ``types`` is the sidecar of encoding.py."""

    id: str
    type: str
    source: str
    status: str = "pending"
    schema: str | None = None
    entity: str | None = None
    operation: str | None = None
    key: str | None = None
    seq: int | None = None
    schema_version: int = 1
    user_id: str | int | None = None
    session_id: str | None = None
    instance_id: str | None = None
    created_at: dt.datetime
    processed_at: dt.datetime | None = None
    completed_at: dt.datetime | None = None
    error: str | None = None
    retry_count: int = 0
    metadata: msgspec.Raw = msgspec.Raw(b"{}")
    types: dict[str, str] = {}
    payload: msgspec.Raw = msgspec.Raw(b"null")


_encoder = msgspec.json.Encoder()
_wire = msgspec.json.Decoder(Wire)
_any = msgspec.json.Decoder()
_PLAIN = tuple(
    name for name in Wire.__struct_fields__ if name not in {"id", "source", "status", "metadata", "types", "payload"}
)


def encode(event: Event) -> bytes:
    """The wire form of an event."""
    payload, metadata, types = encode_values(event)
    wire = Wire(
        id=str(event.id),
        source=event.source.value,
        status=event.status.value,
        payload=msgspec.Raw(payload.encode()),
        metadata=msgspec.Raw(metadata.encode()),
        types=types,
        **{name: getattr(event, name) for name in _PLAIN},
    )
    for field in ("created_at", "processed_at", "completed_at"):
        _set(wire, field, _whole_minutes(getattr(event, field)))
    try:
        return _encoder.encode(wire)
    except UnicodeEncodeError as error:
        raise EventError(
            f"event {event.id} has text with a lone surrogate, which UTF-8 has no form for: {error}"
        ) from error


def _whole_minutes(moment: dt.datetime | None) -> dt.datetime | None:
    """RFC 3339 has offsets of whole minutes; msgspec would round another one and so shift the moment."""
    if moment is None or moment.tzinfo is dt.UTC:
        return moment
    offset = moment.utcoffset()
    return moment.astimezone(dt.UTC) if offset is not None and offset % _MINUTE else moment


_MINUTE = dt.timedelta(minutes=1)


def encode_values(event: Event) -> tuple[str, str, encoding.Types]:
    """``payload`` and ``metadata`` as JSON texts, with the sidecar that both share (pointers start at the event)."""
    types: encoding.Types = {}
    try:
        payload = encoding.dumps(encoding.lower(event.payload, "/payload", types))
        metadata = encoding.dumps(encoding.lower(event.metadata, "/metadata", types))
    except RecursionError:
        raise EventError("payload or metadata holds itself, or is nested too deep for JSON") from None
    return payload, metadata, types


def decode(text: bytes | str) -> Event:
    """The event that a wire form describes.

    :raises EventError: where it is not one; the message says what is wrong and shows the beginning of the text.
    """
    try:
        wire = _wire.decode(text)
        payload, metadata = decode_values(
            wire.payload, wire.metadata, _encoder.encode(wire.types).decode() if wire.types else ""
        )
        return Event(
            id=uuid.UUID(wire.id),
            source=wire.source,  # type: ignore[arg-type]  # __post_init__ turns text into members
            status=wire.status,  # type: ignore[arg-type]
            payload=payload,
            metadata=metadata,
            **{name: getattr(wire, name) for name in _PLAIN},
        )
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        shown = text[:80]
        raise EventError(f"not an event: {error} in {shown!r}") from error


def decode_values(
    payload: bytes | str | msgspec.Raw, metadata: bytes | str | msgspec.Raw | None, types: str | None
) -> tuple[Any, dict[str, Any]]:
    """Payload and metadata as Python values, from their JSON texts and the sidecar's text.

    :raises EventError: where a text is not JSON, or does not fit the sidecar.
    """
    try:
        value = _any.decode(payload)
        about = _any.decode(metadata) if metadata else {}
    except (msgspec.DecodeError, RecursionError) as error:
        raise EventError(f"payload or metadata cannot be decoded: {error}") from error
    if types:
        lifted = encoding.lift({"payload": value, "metadata": about}, types)
        if not isinstance(lifted, dict):
            raise EventError(f"types has an entry for the event itself: {types[:200]}")
        return lifted["payload"], lifted["metadata"]
    return value, about

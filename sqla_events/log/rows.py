"""A row of the log as the reader gets it, and the two things it can become: an Event, or its wire form.

The wire form is put together from texts: payload, types and metadata are JSON in the log already and pass through as
they are. What repeats from row to row (type, source, sidecar …) arrives as one text and is taken apart once: sixteen
columns cost 7.3 microseconds a row to read, nine cost 4.4 (psycopg, PostgreSQL 15, 360 bytes of payload).

An Event is a copy of an example that was validated once, with the row's own members set: 1.7 microseconds, against 3.9
where all twenty members are given and checked again for every row.
"""

from __future__ import annotations

import datetime as dt
import uuid

import msgspec

from ..errors import EventError
from ..event import Event, decode_values, lane_of, user_id_from_text
from ..provider import Message

SEPARATOR, ABSENT = "\x1f", "\x1e"
"""Between the members of a :class:`Same`, and in place of one that is NULL."""


class Same(msgspec.Struct, frozen=True, gc=False):
    """What the events of one table, operation and process have in common."""

    type: str
    source: str
    schema: str | None
    entity: str | None
    operation: str | None
    instance_id: str | None
    schema_version: int
    types: str | None
    """The sidecar of encoding.py, JSON."""
    wire: str = ""
    """All that as JSON members, with a comma behind each."""
    lane: str = ""
    """What lanes of these events begin with."""
    example: Event | None = None
    """One of these events, once somebody needed one."""


def same(
    kind: str,
    source: str,
    schema: str | None,
    entity: str | None,
    operation: str | None,
    instance_id: str | None,
    schema_version: int,
    types: str | None,
) -> Same:
    """A Same from its columns."""
    members: dict[str, str | int | None] = {
        "type": kind,
        "source": source,
        "schema": schema,
        "entity": entity,
        "operation": operation,
        "instance_id": instance_id,
        "schema_version": None if schema_version == 1 else schema_version,
    }
    wire = "".join(f'"{name}":{_text(value)},' for name, value in members.items() if value is not None)
    if types:
        wire += f'"types":{types},'
    lane = lane_of(schema, entity, "", "")
    return Same(kind, source, schema, entity, operation, instance_id, schema_version, types, wire, lane)


def same_of(text: str) -> Same | None:
    """A Same from one text; None where a member itself contains the separator, so that it must be read by columns."""
    parts = text.split(SEPARATOR)
    if len(parts) != 8:
        return None
    kind, source, schema, entity, operation, instance_id, version, types = (
        None if part == ABSENT else part for part in parts
    )
    return same(kind or "", source or "", schema, entity, operation, instance_id, int(version or 1), types)


class Row(msgspec.Struct, gc=False):
    """One row of ``events``."""

    seq: int
    id: str
    same: Same
    key: str | None
    user_id: str | None
    session_id: str | None
    metadata: str | None
    """JSON."""
    created: bytes | str
    """PostgreSQL's own form (microseconds since 2000, big-endian), or SQLite's text."""
    payload: str
    """JSON."""

    @property
    def type(self) -> str:
        return self.same.type

    @property
    def lane(self) -> str:
        """What keeps it in order: see :func:`event.lane_of`."""
        return self.id if self.key is None else self.same.lane + self.key

    @property
    def created_at(self) -> dt.datetime:
        """When it was written, UTC."""
        if isinstance(self.created, bytes):
            return _Y2K + dt.timedelta(0, 0, int.from_bytes(self.created, signed=True))
        moment = dt.datetime.fromisoformat(self.created)
        return moment.astimezone(dt.UTC) if moment.tzinfo else moment.replace(tzinfo=dt.UTC)

    def to_event(self) -> Event:
        """The event, decoded.

        :raises EventError: where the row is not one (a type code of a newer version, a hand-written row).
        """
        about = self.same
        payload, metadata = decode_values(self.payload, self.metadata, about.types)
        if type(metadata) is not dict:
            raise EventError(f"metadata is {metadata!r}; it must be a dict")
        event: Event = (about.example or _example(about)).__copy__()  # type: ignore[attr-defined]  # msgspec has it
        _set(event, "id", _uuid(f'"{self.id}"'))
        _set(event, "seq", self.seq)
        _set(event, "key", self.key)
        _set(event, "created_at", self.created_at)
        _set(event, "payload", payload)
        _set(event, "metadata", metadata)
        if self.session_id is not None:
            _set(event, "session_id", self.session_id)
        if self.user_id is not None:
            _set(event, "user_id", user_id_from_text(self.user_id))
        return event

    def to_message(self) -> Message:
        """The wire form, which :func:`event.decode` makes the same event of as :meth:`to_event`."""
        key = self.key
        own = "" if key is None else f'"key":"{key}",' if key.isalnum() else f'"key":{_text(key)},'
        if self.user_id is not None:
            own += f'"user_id":{_text(user_id_from_text(self.user_id))},'
        if self.session_id is not None:
            own += f'"session_id":{_text(self.session_id)},'
        if self.metadata is not None:
            own += f'"metadata":{self.metadata},'
        about = self.same
        body = f'{{"id":"{self.id}","seq":{self.seq},"created_at":"{self._time()}",{about.wire}{own}"payload":{self.payload}}}'
        return Message(self.id, about.type, self.lane, body.encode(), self.seq)

    def _time(self) -> str:
        """RFC 3339. From tables: formatting six digits takes longer than all the rest."""
        if isinstance(self.created, str):
            return self.created_at.isoformat()
        milli, micro = divmod(int.from_bytes(self.created, signed=True), 1000)
        second, milli = divmod(milli, 1000)
        return f"{_seconds[second]}.{_THREE[milli]}{_THREE[micro]}Z"

    def known(self) -> Event:
        """The event for whoever looks at it: of one that cannot be decoded, all but payload and metadata."""
        try:
            return self.to_event()
        except EventError:
            return self._without_payload().to_event()

    def _without_payload(self) -> Row:
        bare = msgspec.structs.replace(self.same, types=None)
        return Row(self.seq, self.id, bare, self.key, self.user_id, self.session_id, None, self.created, "null")


_Y2K = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_json = msgspec.json.Encoder()
_uuid = msgspec.json.Decoder(uuid.UUID).decode
"""A fifth of the time of ``uuid.UUID(text)``."""
_set = msgspec.structs.force_setattr


def _example(about: Same) -> Event:
    event = Event(
        type=about.type,
        source=about.source,  # type: ignore[arg-type]  # __post_init__ turns text into a member
        instance_id=about.instance_id,
        schema=about.schema,
        entity=about.entity,
        operation=about.operation,
        schema_version=about.schema_version,
    )
    _set(about, "example", event)
    return event


class _Seconds(dict[int, str]):
    """Seconds since 2000 as text; forgotten all together when there are very many."""

    def __missing__(self, since: int) -> str:
        if len(self) >= 4096:
            self.clear()
        self[since] = text = (_Y2K + dt.timedelta(seconds=since)).isoformat()[:19]
        return text


_seconds = _Seconds()
_THREE = tuple(f"{number:03d}" for number in range(1000))


def _text(value: str | int) -> str:
    return _json.encode(value).decode()

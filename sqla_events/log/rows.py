"""A row of the log as the reader gets it, and the two things it can become: an Event, or its wire form.

The wire form is put together from texts: payload, types and metadata are JSON in the log already and pass through as
they are. Everything that repeats from row to row (type, source, sidecar …) is encoded once and kept.
"""

from __future__ import annotations

import datetime as dt
import uuid
from functools import lru_cache

import msgspec

from ..event import Event, decode_values, lane_of, user_id_from_text
from ..provider import Message


class Row(msgspec.Struct, array_like=True, gc=False):
    """One row of ``events``, in the order of the read's columns. Texts are as the database has them."""

    seq: int
    id: str
    type: str
    source: str
    schema: str | None
    entity: str | None
    operation: str | None
    key: str | None
    payload: str
    types: str | None
    metadata: str | None
    user_id: str | None
    session_id: str | None
    instance_id: str | None
    schema_version: int
    created_at: str
    """RFC 3339, UTC."""

    @property
    def lane(self) -> str:
        """What keeps it in order: see :func:`event.lane_of`."""
        return lane_of(self.schema, self.entity, self.key, self.id)

    def to_event(self) -> Event:
        """The event, decoded.

        :raises EventError: where the row is not one (a type code of a newer version, a hand-written row).
        """
        payload, metadata = decode_values(self.payload, self.metadata, self.types)
        return Event(
            type=self.type,
            id=uuid.UUID(self.id),
            source=self.source,  # type: ignore[arg-type]  # __post_init__ turns text into a member
            payload=payload,
            user_id=self.user_id,
            session_id=self.session_id,
            instance_id=self.instance_id,
            schema=self.schema,
            entity=self.entity,
            operation=self.operation,
            created_at=dt.datetime.fromisoformat(self.created_at),
            metadata=metadata,
            key=self.key,
            seq=self.seq,
            schema_version=self.schema_version,
        )

    def to_message(self) -> Message:
        """The wire form, which :func:`event.decode` makes the same event of as :meth:`to_event`."""
        same = _same(
            self.type, self.source, self.schema, self.entity, self.operation, self.instance_id, self.schema_version, self.types
        )
        body = (
            f'{{"id":"{self.id}","seq":{self.seq},"created_at":"{self.created_at}",{same}{self._own()}"payload":{self.payload}}}'
        )
        return Message(self.id, self.type, self.lane, body.encode(), self.seq)

    def _own(self) -> str:
        own = "" if self.key is None else f'"key":{_text(self.key)},'
        if self.user_id is not None:
            own += f'"user_id":{_text(user_id_from_text(self.user_id))},'
        if self.session_id is not None:
            own += f'"session_id":{_text(self.session_id)},'
        if self.metadata is not None:
            own += f'"metadata":{self.metadata},'
        return own


_json = msgspec.json.Encoder()


def _text(value: str | int) -> str:
    return _json.encode(value).decode()


@lru_cache(maxsize=4096)
def _same(
    kind: str,
    source: str,
    schema: str | None,
    entity: str | None,
    operation: str | None,
    instance_id: str | None,
    schema_version: int,
    types: str | None,
) -> str:
    """The members that many rows have in common, as JSON with a comma behind each."""
    members: dict[str, str | int | None] = {
        "type": kind,
        "source": source,
        "schema": schema,
        "entity": entity,
        "operation": operation,
        "instance_id": instance_id,
    }
    if schema_version != 1:
        members["schema_version"] = schema_version
    text = "".join(f'"{name}":{_text(value)},' for name, value in members.items() if value is not None)
    return f'{text}"types":{types},' if types else text

"""One event in the hands of a consumer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

from ...errors import EventError
from ...event import Event, lane_of
from ...provider import ONLY, Failure, only_of
from ...wire import unpacked
from .connection import Headers

OWN = "nats-"
"""Headers of NATS begin with it, in lower case."""
TAG = "sqla-relay"
"""The header that says which relay published a message, and the event's number in its log."""
NOBODY: frozenset[str] = frozenset()


def own_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    """What came with the event, names in lower case: without what NATS and our publisher have put beside it."""
    found: dict[str, str] = {}
    for name, value in headers.items() if headers else ():
        lower = name.lower()
        if not lower.startswith(OWN) and lower != TAG:
            found[lower] = value
    return found


def addressed(headers: Mapping[str, str] | None) -> bool:
    """Whether there may be an addressee among them."""
    if isinstance(headers, Headers):
        return ONLY.encode() in headers.raw.lower()
    return bool(headers)


class Settling(Protocol):
    """Where a delivery is settled."""

    def acknowledged(self, delivery: NatsDelivery) -> None: ...

    def failed(self, delivery: NatsDelivery, failure: Failure, *, buried: bool) -> None: ...


class NatsDelivery:
    """See provider.Delivery."""

    __slots__ = ("_event", "_given", "_headers", "_settling", "attempts", "body", "buried", "due", "only", "reply", "seq", "type")

    def __init__(self, settling: Settling, seq: int, reply: str, event_type: str, message: Any, group: str) -> None:
        self._settling = settling
        self.seq = seq
        """In the stream."""
        self.reply = reply
        """Where acknowledgements go."""
        self.type = event_type
        self.body: bytes = message.data
        self._given: Mapping[str, str] | None = message.headers
        self._headers: dict[str, str] | None = None
        self.only = only_of(self.headers, group) if addressed(message.headers) else None
        self.attempts: dict[str, int] = {}
        self.due: dict[str, float] = {}
        self.buried = NOBODY
        self._event: Event | EventError | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What came with the event."""
        if self._headers is None:
            self._headers = own_headers(self._given)
        return self._headers

    @property
    def message_id(self) -> str:
        """What it was published as."""
        return (self._given or {}).get("Nats-Msg-Id") or str(self.seq)

    @property
    def lane(self) -> str:
        """That of the event; one that cannot be read has a lane of its own."""
        try:
            event = self.event()
        except EventError:
            return self.message_id
        return lane_of(event.schema, event.entity, event.key, str(event.id))

    def event(self) -> Event:
        """The event, decoded once."""
        if self._event is None:
            try:
                self._event = unpacked(self.body, self.headers)
            except EventError as error:
                self._event = error
        if isinstance(self._event, EventError):
            raise self._event
        return self._event

    def ack(self) -> None:
        self._settling.acknowledged(self)

    def retry(self, failure: Failure, delay: float) -> None:
        self.attempts = {**self.attempts, failure.subscription: failure.attempts}
        self.due = {**self.due, failure.subscription: time.time() + delay}
        self._settling.failed(self, failure, buried=False)

    def bury(self, failure: Failure) -> None:
        self.buried |= {failure.subscription}
        self._settling.failed(self, failure, buried=True)

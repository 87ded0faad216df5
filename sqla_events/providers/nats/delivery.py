"""One event in the hands of a consumer."""

from __future__ import annotations

from typing import Any, Protocol

from ...errors import EventError
from ...event import Event, lane_of
from ...provider import Failure, only_of
from ...wire import unpacked

OWN = "nats-"
"""Headers of NATS begin with it, in lower case."""


def own_headers(headers: dict[str, str] | None) -> dict[str, str]:
    """What came with the event, names in lower case: without what NATS and our publisher have put beside it."""
    if not headers:
        return {}
    named = ((name.lower(), value) for name, value in headers.items())
    return {name: value for name, value in named if not name.startswith(OWN) and name != "sqla-relay"}


class Settling(Protocol):
    """Where a delivery is settled."""

    def acknowledged(self, delivery: NatsDelivery) -> None: ...

    def failed(self, delivery: NatsDelivery, failure: Failure, *, buried: bool) -> None: ...


class NatsDelivery:
    """See provider.Delivery."""

    __slots__ = ("_event", "_settling", "attempts", "body", "buried", "headers", "message_id", "only", "reply", "seq", "type")

    def __init__(self, settling: Settling, seq: int, reply: str, event_type: str, message: Any, group: str) -> None:
        self._settling = settling
        self.seq = seq
        """In the stream."""
        self.reply = reply
        """Where acknowledgements go."""
        self.type = event_type
        self.body: bytes = message.data
        given = message.headers or {}
        self.message_id: str = given.get("Nats-Msg-Id") or str(seq)
        self.headers = own_headers(given)
        self.only = only_of(self.headers, group)
        self.attempts: dict[str, int] = {}
        self.buried: frozenset[str] = frozenset()
        self._event: Event | EventError | None = None

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
        self._settling.failed(self, failure, buried=False)

    def bury(self, failure: Failure) -> None:
        self.buried |= {failure.subscription}
        self._settling.failed(self, failure, buried=True)

"""One entry of a stream in a consumer's hands."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import msgspec

from ...event import Event
from ...provider import Failure
from ...wire import unpacked

NO_ATTEMPTS: dict[str, int] = {}
NOBODY: frozenset[str] = frozenset()
NEVER: Mapping[str, float] = MappingProxyType({})

_headers = msgspec.json.Decoder(dict[str, str])


def headers_of(text: bytes) -> dict[str, str]:
    """Headers as they were published; none where the entry is somebody else's and has others."""
    try:
        return _headers.decode(text) if text else {}
    except msgspec.DecodeError:
        return {}


class Settler(Protocol):
    """Whoever collects what became of deliveries."""

    def acknowledged(self, delivery: RedisDelivery) -> None: ...

    def failed(self, delivery: RedisDelivery, failure: Failure, delay: float | None) -> None: ...


class RedisDelivery(msgspec.Struct, gc=False):
    """A provider.Delivery over an entry. A struct that the garbage collector does not follow, as log.delivery's."""

    settler: Settler
    entry: bytes
    """Its id."""
    type: str
    lane: str
    headers: bytes
    """JSON."""
    body: bytes
    attempts: dict[str, int] = NO_ATTEMPTS
    buried: frozenset[str] = NOBODY
    only: str | None = None
    due: Mapping[str, float] = NEVER

    def event(self) -> Event:
        return unpacked(self.body, headers_of(self.headers))

    def ack(self) -> None:
        self.settler.acknowledged(self)

    def retry(self, failure: Failure, delay: float) -> None:
        self.settler.failed(self, failure, delay)

    def bury(self, failure: Failure) -> None:
        self.settler.failed(self, failure, None)

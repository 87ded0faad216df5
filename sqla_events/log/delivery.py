"""One event of the log in a consumer's hands."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import msgspec

from ..event import Event
from ..provider import Failure
from .rows import Row

NO_ATTEMPTS: dict[str, int] = {}
NOBODY: frozenset[str] = frozenset()
NEVER: Mapping[str, float] = MappingProxyType({})


class Settler(Protocol):
    """Whoever collects what became of deliveries."""

    def acknowledged(self, delivery: LogDelivery) -> None: ...

    def failed(self, delivery: LogDelivery, failure: Failure, again_at: float | None) -> None: ...


class LogDelivery(msgspec.Struct, gc=False):
    """A provider.Delivery over a row; ``only`` names the one subscription of a dead letter that is redriven.

    A struct that the garbage collector does not follow: fifty thousand of them a second would make it run all the time.
    """

    settler: Settler
    row: Row
    attempts: dict[str, int] = NO_ATTEMPTS
    buried: frozenset[str] = NOBODY
    only: str | None = None
    due: Mapping[str, float] = NEVER

    @property
    def type(self) -> str:
        return self.row.type

    @property
    def lane(self) -> str:
        return self.row.lane

    def event(self) -> Event:
        return self.row.to_event()

    def ack(self) -> None:
        self.settler.acknowledged(self)

    def retry(self, failure: Failure, delay: float) -> None:
        self.settler.failed(self, failure, time.time() + delay)

    def bury(self, failure: Failure) -> None:
        self.settler.failed(self, failure, None)

"""Facts: what the parts report having done, as frozen values. Metrics, logging and tracing listen; logic never calls them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

logger = logging.getLogger("sqla_events")


class Fact(msgspec.Struct, frozen=True):
    """The root of the facts below."""


class Published(Fact, frozen=True):
    """Events were written to the log, or to a provider that has none. Captured ones count when their transaction commits."""

    source: str
    type: str
    count: int = 1


class Processed(Fact, frozen=True):
    """One subscription is through with one event. ``status`` is completed or failed, ``duration`` the last attempt's seconds."""

    source: str
    type: str
    status: str
    duration: float
    group: str
    subscription: str


class Retrying(Fact, frozen=True):
    """A handler failed and will have the event again in ``delay`` seconds."""

    type: str
    group: str
    subscription: str
    attempts: int
    delay: float
    error: str


class Buried(Fact, frozen=True):
    """A subscription, or a relay, gave up on an event: it is a dead letter now."""

    type: str
    group: str
    subscription: str
    error: str


class Queued(Fact, frozen=True):
    """How many deliveries of a group are in hand in this process."""

    group: str
    size: int


class Relayed(Fact, frozen=True):
    """A relay published a batch and committed its position."""

    group: str
    partition: int
    count: int
    duration: float


class Leased(Fact, frozen=True):
    """A partition's lease was taken (``held``) or given up or lost."""

    group: str
    partition: int
    epoch: int
    held: bool


class Unavailable(Fact, frozen=True):
    """Something outside does not answer; it is tried again in ``delay`` seconds."""

    what: str
    error: str
    delay: float


class Gap(Fact, frozen=True):
    """A write passed that capture cannot turn into events (text SQL, some data-modifying CTEs)."""

    statement: str
    reason: str
    table: str


Listeners = tuple[Callable[[Any], object], ...]


class Signals:
    """Listeners of facts. A listener that raises is logged and disturbs nobody."""

    def __init__(self) -> None:
        self._listeners: Listeners = ()
        self._of: dict[type[Fact], Listeners] = {}
        """Those of one kind of facts, and of all."""

    def __bool__(self) -> bool:
        """Whether anybody listens: who has many facts to tell asks before making them."""
        return bool(self._listeners) or any(self._of.values())

    def subscribe(self, listener: Callable[[Any], object], kind: type[Fact] | None = None) -> Callable[[], None]:
        """Call ``listener`` with every fact, or those of one kind, on whatever thread it happens; returns what ends that."""
        one = partial(listener)  # of this subscription, whoever else subscribes the same
        self._change(lambda listeners: (*listeners, one), kind)
        return lambda: self._change(lambda listeners: tuple(other for other in listeners if other is not one), kind)

    def _change(self, change: Callable[[Listeners], Listeners], kind: type[Fact] | None) -> None:
        if kind is None:
            self._listeners = change(self._listeners)
            self._of = {one: change(listeners) for one, listeners in self._of.items()}
        else:
            self._of = {**self._of, kind: change(self._of.get(kind, self._listeners))}

    def emit(self, fact: Fact) -> None:
        """Tell every listener."""
        for listener in self._of.get(type(fact), self._listeners):
            try:
                listener(fact)
            except Exception:
                logger.exception("a listener of facts failed on %r", fact)

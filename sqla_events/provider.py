"""The contract between the broker and what carries its events. Implementations live in ``providers/``.

Why so small: five members are enough for Watermill to run one conformance suite over all its brokers
(``message/pubsub.go``), and every member more is one more thing that four implementations get subtly wrong.
``Features`` says what a provider promises beyond the minimum and so chooses which conformance tests it must pass
(``sqla_events.testing.ProviderConformance``).

Why replay is not a member: a replay is ``history`` (or the log) read from somewhere, and ``publish`` of marked copies
with a header that names the one subscription they are for. A provider that carries headers has nothing more to do.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol
from urllib.parse import quote, unquote

import msgspec

from .event import Event
from .schema import Tables
from .signals import Signals

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Message(msgspec.Struct, frozen=True, gc=False):
    """One event on its way out: what a transport routes by, and the wire form, which it never looks into.

    Not followed by the garbage collector, which would run for every seven hundred of them: a quarter of the relay's time.
    """

    id: str
    """Names the message to the transport (it may drop a second one of the same id): the event's id, or of a replayed
    event ``<event id>:<replay id>…``, so that a replay is no duplicate."""
    type: str
    lane: str
    """Messages of one lane keep their order: schema, entity and key of the event as one text."""
    body: bytes
    """Wire form, UTF-8 JSON."""
    seq: int | None = None
    headers: Mapping[str, str] = NO_HEADERS
    """What stands beside the body (``content-encoding``, ``ce-…``, ``sqla-only``), names in lower case; a transport carries
    them along, and reads the event with ``wire.unpacked(body, headers)``."""


ONLY = "sqla-only"
"""The header of a message that is for one subscription of one group alone: a replay, a redriven dead letter."""


def only_header(group: str, subscription: str) -> dict[str, str]:
    """The header that says so. ASCII, whatever the names.

    >>> only_header("default", "app.mail")
    {'sqla-only': 'default/app.mail'}
    """
    return {ONLY: f"{quote(group, safe='')}/{quote(subscription, safe='')}"}


def addressee(headers: Mapping[str, str]) -> tuple[str, str] | None:
    """Group and subscription that a message is for; None: every one that matches."""
    if ONLY not in headers:
        return None
    group, _, subscription = headers[ONLY].partition("/")
    return unquote(group), unquote(subscription)


def only_of(headers: Mapping[str, str], group: str) -> str | None:
    """What :attr:`Delivery.only` is where this group gets a message with these headers.

    A message for another group is for the subscription ``""`` here, which nobody has: the consumer acknowledges it at
    once, and a provider may as well do that itself.
    """
    meant = addressee(headers)
    if meant is None:
        return None
    return meant[1] if meant[0] == group else ""


class Batch(msgspec.Struct, frozen=True):
    """Messages in log order, with where they come from.

    ``group``, ``partition`` of ``partitions`` and ``epoch`` name the relay's lease; ``position`` is what the relay will
    commit once the batch is published. A provider with ``Features.idempotent_publish`` stores it together with the
    messages, under group, partition and ``partitions``, and refuses an older epoch, so that a relay killed between
    publish and commit publishes nothing twice. ``partitions`` belongs to the name because partition 1 of 2 and
    partition 1 of 3 have different events: a position of the one must never be read as one of the other. When their
    number changes, every epoch of the group is higher than all before: a batch of another number is a zombie's unless
    its epoch is higher than all that were seen.
    """

    messages: Sequence[Message]
    group: str = ""
    partition: int = 0
    epoch: int = 0
    position: str = ""
    partitions: int = 1


class Kept(msgspec.Struct, frozen=True):
    """What a transport has of a relay's log."""

    position: str = ""
    """The :attr:`Batch.position` that was stored last; empty: none."""
    seq: int | None = None
    id: str = ""
    """Number and event id of the newest message that was ever stored with it."""


@dataclass(frozen=True)
class Features:
    """What a provider promises. Every provider: order per lane, at least once, groups are independent of each other."""

    durable: bool
    """Events survive a restart of every process of ours, and a group created later sees what is still kept."""
    shared_groups: bool
    """Several processes may consume one group and share its events."""
    cross_process: bool
    """Events reach other processes."""
    log_is_transport: bool = False
    """The events table itself carries the events: no relay, ``publish`` writes to the log."""
    idempotent_publish: bool = False
    """Publishing a batch again adds nothing."""
    one_writer: bool = False
    """Appending goes no faster from several places at once: the relay has one partition, whatever ``partitions`` says."""
    keeps_position: bool = False
    """``publish`` stores the batch's position with its messages, all or nothing, and ``resume`` tells it."""
    retry_survives_restart: bool = False
    """Attempts and the time of the next one are kept with the event."""
    provider_filter: bool = False
    """Patterns are matched before events travel: a consumer gets no event that its patterns do not match."""
    history: bool = False
    """Events that were delivered are kept for a while, and ``history`` gives them."""
    max_message_bytes: int | None = None
    """Larger bodies are PublishRejected; None: no limit of its own."""


@dataclass(frozen=True)
class Failure:
    """Why a handler did not take an event."""

    subscription: str
    error: str
    traceback: str
    attempts: int


class Delivery(Protocol):
    """One event handed to a consumer, which settles it exactly once: ``ack`` or, after trouble, ``bury`` then ``ack``.

    The three calls do not wait: a provider collects them and makes them durable in order, soon, and at ``close``.
    Settling in any order is fine. What is not settled comes back after a crash, to this consumer or another.
    """

    @property
    def type(self) -> str: ...

    @property
    def lane(self) -> str: ...

    @property
    def attempts(self) -> dict[str, int]:
        """Failed attempts so far by subscription name, where ``retry_survives_restart``; else empty."""
        ...

    @property
    def due(self) -> Mapping[str, float]:
        """When the next attempt of such a subscription is due (Unix seconds): the consumer waits until then. Else empty."""
        ...

    @property
    def buried(self) -> frozenset[str]:
        """Subscriptions that have given up on this event already."""
        ...

    @property
    def only(self) -> str | None:
        """The one subscription this delivery is for (a redriven dead letter, a replay); None: every matching one.

        A transport that redrives and replays by publishing says it with a header: see :func:`only_of`.
        """
        ...

    def event(self) -> Event:
        """The event itself, decoded on demand.

        :raises EventError: where the body is not an event; the consumer buries it.
        """
        ...

    def ack(self) -> None:
        """Done: never deliver it to this group again."""
        ...

    def retry(self, failure: Failure, delay: float) -> None:
        """Still in hand, will be tried again in ``delay`` seconds: remember the attempt, keep it from others meanwhile."""
        ...

    def bury(self, failure: Failure) -> None:
        """One subscription gives up: make it a dead letter of that subscription. ``ack`` still follows."""
        ...


@dataclass(frozen=True)
class Interest:
    """What a consumer wants: a group's events that match any of the patterns."""

    group: str
    patterns: tuple[str, ...]
    consumer: str
    """This process's name within the group."""
    prefetch: int
    """At most this many unsettled deliveries are out at a time; the provider waits for ``ack`` beyond it."""


@dataclass(frozen=True)
class DeadLetter:
    """An event that a subscription gave up on."""

    id: str
    """Opaque; names this dead letter to ``redrive`` and ``discard``."""
    group: str
    subscription: str
    event: Event
    error: str
    traceback: str
    attempts: int
    first_failed_at: dt.datetime
    last_failed_at: dt.datetime


class DeadLetters(Protocol):
    """The dead letters of one provider. ``ids=None`` means every one of the group that matches ``pattern``."""

    async def list(
        self, *, group: str | None = None, pattern: str = "*", limit: int = 100, after: str | None = None
    ) -> Sequence[DeadLetter]:
        """Oldest first; ``after`` is the id of the last one already seen."""
        ...

    async def redrive(self, ids: Sequence[str] | None = None, *, group: str | None = None, pattern: str = "*") -> int:
        """Deliver them again, each to the subscription that gave up, with attempts counted afresh; returns how many."""
        ...

    async def discard(self, ids: Sequence[str] | None = None, *, group: str | None = None, pattern: str = "*") -> int:
        """Forget them; returns how many."""
        ...


@dataclass(frozen=True)
class ProviderContext:
    """What a provider may use of the broker it is made for."""

    database: Any
    """bridge.Database, or None in a process without one."""
    tables: Tables
    instance_id: str
    signals: Signals
    doorbell: Any
    """bridge.Doorbell: rung when there may be new events in the log."""


class Provider(Protocol):
    """What carries events. Made from configuration by its factory, then ``open``, any number of calls, ``close``."""

    @property
    def features(self) -> Features: ...

    @property
    def dead_letters(self) -> DeadLetters: ...

    async def open(self) -> None:
        """Connect and create what is missing.

        :raises ProviderUnavailable: if the transport does not answer; the broker tries again with back-off.
        """
        ...

    async def publish(self, batch: Batch) -> None:
        """Store every message, in order; return when all are as safe as the transport makes them.

        :raises ProviderUnavailable: some or none are stored, the caller publishes the whole batch again.
        :raises PublishRejected: names one message; none of the batch counts as published, the caller publishes it
            again without that one.
        :raises LeaseLost: a newer epoch has published (only with ``idempotent_publish``), or the transport has not what
            it had when this epoch published last (only with ``keeps_position``).
        """
        ...

    def consume(self, interest: Interest) -> AsyncIterator[Sequence[Delivery]]:
        """Deliver the group's events from where it left off, oldest first, in batches, for ever.

        Per lane, a delivery comes only after those before it were delivered to this consumer or settled by another: of
        several consumers of a group, no two ever hold events of one lane, also after one of them died. Closing the
        iterator settles what was acked and gives the rest back. Reconnects by itself; raises only what trying again cannot mend.
        """
        ...

    def history(self, since: dt.datetime | None = None, position: str | None = None) -> AsyncIterator[Sequence[Message]]:
        """What the transport still keeps, oldest first, in batches, up to what was newest when this was called; then it ends.

        From a time on (what was published or created then or later), or from a position on (included), as the transport
        numbers its messages: the log's seq, the id of a Redis entry, the sequence of a NATS stream. Messages come with
        body and headers as they were published; the caller makes a replay of them by publishing marked copies. Leaves
        no trace: no group, no acknowledgement. Only called where ``Features.history``.

        :raises ProviderUnavailable: if the transport does not answer; the caller begins again.
        :raises EventError: for a position that is none of this transport's.
        """
        ...

    async def close(self) -> None:
        """Make every settled delivery durable and let go of every connection. May be called twice."""
        ...


class PositionKeeper(Protocol):
    """What a provider has besides, where ``Features.keeps_position``."""

    async def resume(self, lease: Batch, replace: bool = False) -> Kept:
        """What the transport has of the log of this relay, which ``lease``, a batch without messages, names.

        From now on nothing of an older epoch is stored; messages of the log (those with a ``seq``) that the kept
        position covers are not stored again, and every batch's position is joined to it. With ``replace``, the position
        of ``lease`` takes its place first. Called when an epoch begins, and now and then while there is nothing to publish.

        Positions of the same group for another number of partitions are void: the transport forgets them, and of each
        partition of the new number it takes the position that its first call names as the one that it keeps.

        :raises ProviderUnavailable: if the transport does not answer.
        :raises LeaseLost: as for ``publish``.
        """
        ...

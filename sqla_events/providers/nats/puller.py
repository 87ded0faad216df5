"""One durable consumer, read in order by whoever holds its lease.

JetStream gives a message to any consumer and, when it is not acknowledged, gives it again some time later, when those after
it are through. Three things keep the order of a row all the same:

- one process at a time reads a durable consumer (a lease), and no retry goes back to the server: it waits in the process,
  which tells the server every third of ``ack_wait`` that it still works;
- deliveries are numbered. A number that is missing was delivered elsewhere: to a process that died, or on a connection
  that broke. Nothing more is handed out then until the server has no message outstanding but those that are here;
- what is outstanding elsewhere is asked for at once (a negative acknowledgement of each number that may be), not after
  ``ack_wait``; and it is handed out in the order of the stream.

So after a crash a row's events come again from the first that was not acknowledged, and none comes after a newer one.
Why no nak with a delay: the delayed event would come back behind later events of its row.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ...errors import ProviderUnavailable
from ...filter import PatternTree
from ...provider import Failure
from ...retry import FOREVER
from ...signals import logger
from .connection import Inbox, Out
from .delivery import NatsDelivery
from .jetstream import CONSUMER_MISSING, Bucket, JetStream, Refused
from .lease import Lease
from .letters import CONSUMER, NatsDeadLetters
from .settler import NAK, Settler
from .streams import nanoseconds

PULL_SECONDS = 5.0
"""For which one request for messages stands; a request that was lost delays the next ones by so much."""
RECOVER_SECONDS = 1.0
"""The same, while messages are collected that were delivered elsewhere."""
NAK_MOST = 10_000
"""Numbers that are asked for again at once; beyond them the server's own time-out brings them."""
REMEMBERED = 10_000
"""Acknowledged messages that are known here, should the server give one again because the acknowledgement was lost."""
GLANCE_SECONDS = 1.0
"""Between looks at lease and connection while nothing comes."""
TYPES = 10_000
"""Event types whose answer is remembered."""
CLOSE_SECONDS = 5.0
"""For which closing tries to make settled deliveries durable."""


@dataclass(frozen=True)
class Pulling:
    """What one consumer reads."""

    stream: str
    durable: str
    definition: dict[str, Any]
    """Of the durable consumer."""
    group: str
    prefix: str
    patterns: tuple[str, ...]
    limit: int
    """Deliveries that may be out."""
    ack_wait: float
    max_deliver: int | None
    mine: Callable[[NatsDelivery], bool] | None = None
    """Which of the group's deliveries this partition has; None: all."""


class Puller:
    """Reads one durable consumer while its lease is held."""

    def __init__(self, jetstream: JetStream, bucket: Bucket, letters: NatsDeadLetters, lease: Lease, what: Pulling) -> None:
        self._jetstream = jetstream
        self._connection = jetstream.connection
        self._lease = lease
        self._what = what
        self._patterns: PatternTree[bool] = PatternTree()
        for pattern in what.patterns:
            self._patterns.add(pattern, True)
        self._wanted: dict[str, bool] = {}
        """Answers of the patterns, by type."""
        self._inbox: Inbox | None = None
        self._generation = 0
        """Of the connection."""
        self._pulls = 0
        self._outstanding = 0
        """Messages that the request under way may still bring, and until when (monotonic)."""
        self._until = 0.0
        self._settler = Settler(self._connection, bucket, letters, what.group, what.durable, what.ack_wait)
        self._in_hand = self._settler.in_hand
        self._ready: deque[NatsDelivery] = deque()
        """Of what is in hand, what is not handed out yet."""
        self._next = 0
        """The number of the next delivery; 0: anything may have been delivered elsewhere."""
        self._acked: OrderedDict[int, None] = OrderedDict()
        self._room = asyncio.Event()
        self._known: dict[int, Any] = {}
        """Failures of earlier processes, by number in the stream."""

    # Handing out -------------------------------------------------------------------------------------------------

    async def batches(self) -> AsyncGenerator[Sequence[NatsDelivery], None]:
        """What the group has not settled, oldest first, until another claims the lease and nothing is out.

        :raises LeaseLost: when another has the lease.
        """
        settler = asyncio.create_task(self._settler.run(), name=f"sqla-events-settle-{self._what.durable}")
        try:
            await self._patiently(self._begin)
            while True:
                await self._patiently(self._lease.check)
                if self._lease.claimed and len(self._in_hand) == len(self._ready):
                    return
                if batch := self._handed_out():
                    yield batch
                else:
                    await self._patiently(self._receive)
        finally:
            settler.cancel()
            await asyncio.gather(settler, return_exceptions=True)
            await self._end()

    async def _patiently(self, call: Callable[[], Awaitable[None]]) -> None:
        failures = 0
        while True:
            try:
                return await call()
            except ProviderUnavailable as error:
                failures += 1
                delay = min(FOREVER.delay(failures), 1.0)
                logger.warning("consumer %s waits for NATS, next try in %.2f s: %s", self._what.durable, delay, error)
                self._next = self._outstanding = 0
                await asyncio.sleep(delay)

    def _handed_out(self) -> list[NatsDelivery]:
        """As many as may be out, unless some before them are missing, or another is to have what follows."""
        room = self._what.limit - (len(self._in_hand) - len(self._ready))
        if not self._next or room <= 0 or self._lease.claimed:
            return []
        return [self._ready.popleft() for _ in range(min(room, len(self._ready)))]

    async def _receive(self) -> None:
        """Wait for what comes next: messages, or room for them."""
        if self._lease.claimed:
            await self._wait_for_room()
        elif self._inbox is None or not self._inbox.usable:
            await self._begin()
        elif self._generation != self._connection.generation:
            self._generation = self._connection.generation
            self._next = self._outstanding = 0  # what was under way to us is lost, if anything was
        elif not self._next:
            await self._recover()
        elif self._outstanding:
            await self._collect()
        elif (room := self._what.limit - len(self._in_hand)) > 0:
            await self._pull(room, PULL_SECONDS)
        else:
            await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        self._room.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(GLANCE_SECONDS):
                await self._room.wait()

    # Beginning, and beginning again ------------------------------------------------------------------------------

    async def _begin(self) -> None:
        await self._define()
        if self._inbox is None or not self._inbox.usable:
            self._inbox = await self._connection.inbox()
        self._known = await self._settler.failures((await self._state())["ack_floor"]["stream_seq"])
        self._next = self._outstanding = 0

    async def _define(self) -> None:
        """Make the durable consumer, or bring it to what it should be; where it began stays as it is."""
        what = self._what
        there = await self._there()
        wanted = {name: value for name, value in what.definition.items() if there is None or name != "deliver_policy"}
        if there is not None:
            filterless = {name: value for name, value in there.items() if not name.startswith("filter_subject")}
            if {**filterless, **wanted} == there:
                return
            wanted = {**filterless, **wanted}
        request = {"stream_name": what.stream, "config": wanted}
        await self._jetstream.need(f"CONSUMER.DURABLE.CREATE.{what.stream}.{what.durable}", request)

    async def _there(self) -> dict[str, Any] | None:
        """The definition of the durable consumer, if there is one."""
        try:
            return dict((await self._jetstream.call(f"CONSUMER.INFO.{self._what.stream}.{self._what.durable}"))["config"])
        except Refused as error:
            if error.number != CONSUMER_MISSING:
                raise ProviderUnavailable(f"consumer {self._what.durable!r}: {error}") from error
            return None

    async def _state(self) -> dict[str, Any]:
        try:
            return await self._jetstream.need(f"CONSUMER.INFO.{self._what.stream}.{self._what.durable}")
        except ProviderUnavailable:
            await self._let_go()  # it may be gone: it is made again then, and begins with the stream
            raise

    async def _let_go(self) -> None:
        inbox, self._inbox = self._inbox, None
        if inbox is not None:
            await inbox.close()

    async def _recover(self) -> None:
        """One step towards having all that the server has delivered and that is not settled."""
        self._take_all(await self._inbox_now())
        state = await self._state()
        missing = state["num_ack_pending"] - len(self._in_hand)
        if missing <= 0:
            self._ready = deque(sorted(self._ready, key=lambda one: one.seq))
            self._next = state["delivered"]["consumer_seq"] + 1
            return
        await self._demand(state)
        await self._pull(missing, RECOVER_SECONDS)
        while self._outstanding:
            await self._collect()

    async def _demand(self, state: dict[str, Any]) -> None:
        """Ask for what was delivered elsewhere. The server ignores numbers that are not outstanding."""
        floor, top = state["ack_floor"]["stream_seq"], state["delivered"]["stream_seq"]
        delivered = state["delivered"]["consumer_seq"]
        name = f"$JS.ACK.{self._what.stream}.{self._what.durable}"
        missing = (seq for seq in range(floor + 1, min(top, floor + NAK_MOST) + 1) if seq not in self._in_hand)
        await self._connection.write([Out(f"{name}.1.{seq}.{delivered}.0.0", NAK) for seq in missing])

    # Messages ----------------------------------------------------------------------------------------------------

    async def _pull(self, count: int, seconds: float) -> None:
        assert self._inbox is not None
        self._pulls += 1
        self._outstanding = count
        self._until = time.monotonic() + seconds + 1
        request = b'{"batch":%d,"expires":%d}' % (count, nanoseconds(seconds))
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._what.stream}.{self._what.durable}"
        await self._connection.write([Out(subject, request, reply=f"{self._inbox.subject}.{self._pulls}")])

    async def _collect(self) -> None:
        """Take in what has arrived, waiting for the first a moment."""
        assert self._inbox is not None
        arrived = await self._inbox.some(GLANCE_SECONDS)
        if not arrived and time.monotonic() > self._until:
            self._outstanding = 0  # the request was lost
        self._take_all(arrived)

    async def _inbox_now(self) -> list[Any]:
        assert self._inbox is not None
        return await self._inbox.some(0)

    def _take_all(self, messages: list[Any]) -> None:
        for message in messages:
            self._took(message)

    def _took(self, message: Any) -> None:
        if not message.reply.startswith("$JS.ACK."):
            self._status(message)
            return
        self._outstanding = max(0, self._outstanding - 1)
        delivered, seq, number = numbers(message.reply)
        if self._next:
            self._next = number + 1 if number == self._next else 0
        if seq in self._in_hand:
            self._in_hand[seq].reply = message.reply
        elif seq in self._acked:
            self._settler.acknowledge(message.reply)
        else:
            self._take_in(message, delivered, seq)

    def _status(self, message: Any) -> None:
        """The end of a request: 408 after its time; 409 and 503 where consumer, leader or server went away."""
        code = (message.headers or {}).get("Status", "")
        if code == "100" or message.subject != f"{self._inbox.subject}.{self._pulls}":  # type: ignore[union-attr]
            return
        self._outstanding = 0
        if code not in ("404", "408"):
            self._next = 0

    def _take_in(self, message: Any, delivered: int, seq: int) -> None:
        kind = message.subject[len(self._what.prefix) + 1 :]
        one = NatsDelivery(self, seq, message.reply, kind, message, self._what.group)
        if not self._wants(kind) or one.only == "" or (self._what.mine and not self._what.mine(one)):
            self._settler.acknowledge(message.reply)
            return
        if (known := self._known.pop(seq, None)) is not None:
            one.attempts, one.buried, one.due = known["attempts"], frozenset(known["buried"]), known.get("due", {})
        self._in_hand[seq] = one
        if self._what.max_deliver and delivered > self._what.max_deliver:
            logger.error("%s made a dead letter: it was delivered %d times and never settled", one.type, delivered)
            one.bury(Failure(CONSUMER, f"delivered {delivered} times and never settled", "", delivered))
            one.ack()
        else:
            self._ready.append(one)

    def _wants(self, kind: str) -> bool:
        wanted = self._wanted.get(kind)
        if wanted is None:
            if len(self._wanted) > TYPES:
                self._wanted.clear()
            wanted = self._wanted[kind] = bool(self._patterns.match(kind))
        return wanted

    # Settling ----------------------------------------------------------------------------------------------------

    def acknowledged(self, delivery: NatsDelivery) -> None:
        """A delivery is through."""
        if self._in_hand.pop(delivery.seq, None) is None:
            return
        self._acked[delivery.seq] = None
        if len(self._acked) > REMEMBERED:
            self._acked.popitem(last=False)
        self._settler.acknowledge(delivery.reply, delivery.seq)
        self._room.set()

    def failed(self, delivery: NatsDelivery, failure: Failure, *, buried: bool) -> None:
        """A handler failed; buried: for good."""
        if delivery.seq in self._in_hand:
            self._settler.note(delivery, failure if buried else None)

    async def _end(self) -> None:
        """Make what is settled durable, and give back the rest."""
        with suppress(TimeoutError, ProviderUnavailable):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._settler.write()
                if not self._lease.lost:
                    await self._settler.give_back()
                await self._connection.flush()
        self._in_hand.clear()
        await self._let_go()


def numbers(reply: str) -> tuple[int, int, int]:
    """How often a message was delivered, its number in the stream, and the number of this delivery.

    >>> numbers("$JS.ACK.S.c.2.17.23.1700000000000000000.0")
    (2, 17, 23)
    >>> numbers("$JS.ACK._.hash.S.c.2.17.23.1700000000000000000.0.token")
    (2, 17, 23)
    """
    tokens = reply.split(".")
    first = 4 if len(tokens) == 9 else 6
    return int(tokens[first]), int(tokens[first + 1]), int(tokens[first + 2])

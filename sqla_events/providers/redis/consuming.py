"""Consuming: one partition of a group, by the one consumer that has its lease.

Why a lease, where Redis lets any number of consumers of a group read the same stream: they would get the events of one
row side by side. So consumers share a group by partitions, and whoever has the lease of one reads it alone. When it is
gone for longer than the lease, the next one claims what it had not acknowledged and gets that first, then what is new:
the order of a row holds across a crash.

Why every read is a script: a consumer that was paused beyond its lease must not take entries away from its successor. A
script checks the lease's epoch and reads in one step; a bare XREADGROUP that waits in the server would not. Waiting is
done with XREAD, which takes nothing. What the patterns exclude is acknowledged in the server and does not travel.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from ...errors import LeaseLost, ProviderUnavailable
from ...filter import PatternTree
from ...provider import Failure, Interest, only_header, only_of
from ...retry import until_available
from ...signals import Leased, Signals, Unavailable, logger
from .delivery import RedisDelivery, headers_of
from .keys import Keys, order
from .link import Link, script
from .outcomes import Outcomes, known

T = TypeVar("T")

ACQUIRE = script("fence", "share", "acquire")
TAKE = script("fence", "take")
SETTLE = script("fence", "share", "settle")
RELEASE = script("fence", "release")
LOST, SURPLUS = 0, 2

STANDBY_SECONDS = 0.25
"""Between attempts to take a lease that another holds."""
NEWS_SECONDS = 1.0
"""For which the server is asked to wait for something new, at most."""
ROOM_SECONDS = 0.01
"""For which a read is put off while more than half of the prefetch is out."""
BEGINNING, NEW = b"0-0", b">"


async def available(call: Callable[[], Awaitable[T]], signals: Signals) -> T:
    """Call until the server answers, for ever."""

    def unavailable(delay: float, error: BaseException) -> None:
        logger.warning("a consumer waits, next try in %.2f s: %s", delay, error)
        signals.emit(Unavailable("redis", str(error), delay))

    result: T = await until_available(call, ProviderUnavailable, asyncio.sleep, unavailable)
    return result


class Room:
    """How many more deliveries of a group may be out; shared by its partitions."""

    def __init__(self, prefetch: int, batch: int) -> None:
        self._prefetch = prefetch
        self._batch = batch
        self._free = prefetch
        self._some = asyncio.Event()

    async def take(self) -> int:
        """As many as may be read now, at least one; waits a moment longer for a read that is worth its while."""
        if self._free * 2 < self._prefetch:
            await asyncio.sleep(ROOM_SECONDS)
        while not self._free:
            self._some.clear()
            await self._some.wait()
        count = min(self._free, self._batch)
        self._free -= count
        return count

    def put(self, count: int) -> None:
        """So many are settled, or were not there."""
        self._free += count
        self._some.set()


@dataclass(frozen=True)
class Part:
    """What one consumer wants to have: a partition of a group."""

    interest: Interest
    partition: int
    owner: str
    """Unique among all consumers."""
    lease: float
    """Seconds."""


class Share:
    """A partition of a group, while its lease is ours. Made by :func:`held`."""

    def __init__(
        self, link: Link, keys: Keys, part: Part, room: Room, signals: Signals, epoch: int, last: bytes, past: Outcomes
    ) -> None:
        self._link = link
        self._part = part
        self._group = part.interest.group
        self._stream = keys.stream(part.partition)
        self._leases = keys.leases(self._group)
        self._consumers = keys.consumers(self._group)
        self._places = [self._leases, self._consumers, self._stream, keys.retries(self._group, part.partition), keys.dead]
        self._partitions = keys.partitions
        self._room = room
        self._signals = signals
        self._fence = _fence(part, epoch)
        self._wants = _wanting(part.interest.patterns)
        self._choice = (_address(self._group), *_lua(part.interest.patterns))
        self._last = last
        self._after = BEGINNING
        self._outcomes = past
        self._out = 0
        self._dirty = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._flush: list[Any] | None = None
        self._flushes = 0
        self._leaving = 0.0
        """Until then nothing is read, so that others get this partition once nothing of it is in hand."""
        self._ended: BaseException | None = None

    # Reading -----------------------------------------------------------------------------------------------------

    async def batches(self) -> AsyncGenerator[Sequence[RedisDelivery], None]:
        """What a consumer before us left, then what is new, until other consumers should have it.

        :raises LeaseLost: when another consumer has the lease.
        """
        while True:
            count = await self._room.take()
            if time.monotonic() < self._leaving:
                self._room.put(count)
                if await self._emptied():
                    return
                continue
            read, deliveries = await self._next(count)
            if self._ended is not None:
                raise self._ended
            if deliveries:
                yield deliveries
            elif not read and self._after == NEW:
                await self._available(self._news)
            elif not read:
                self._after = NEW

    async def _emptied(self) -> bool:
        await asyncio.sleep(ROOM_SECONDS)
        return not self._out

    async def _next(self, count: int) -> tuple[int, list[RedisDelivery]]:
        """How many entries there were, and those that are for us."""
        found: list[RedisDelivery] = []
        try:
            read, found = await self._available(lambda: self._take(count))
        finally:
            self._room.put(count - len(found))
        self._out += len(found)
        return read, found

    async def _take(self, count: int) -> tuple[int, list[RedisDelivery]]:
        try:
            read, last, gone, parts = await self._read(count)
        except ProviderUnavailable:
            if self._after == NEW:  # what was read and did not reach us is ours in the server, and comes before what is new
                self._after = self._last
            raise
        if gone:
            _tell_gone(self._group, gone)
        if read:
            self._last = max(self._last, last, key=order)
            self._after = NEW if self._after == NEW else last
        return read, self._deliveries(parts)

    async def _read(self, count: int) -> tuple[int, bytes, int, list[bytes]]:
        asked = time.monotonic()
        arguments = (*self._fence, count, self._after, *self._choice)
        answer = await self._link.run(TAKE, [self._leases, self._stream], arguments)
        if answer == LOST:
            raise self._lost()
        if time.monotonic() > asked + self._part.lease:
            await self._write([""])  # we were paused: whose these are now is for the server to say
        read, last, gone, parts = answer
        return read, last, gone, parts

    def _deliveries(self, parts: list[bytes]) -> list[RedisDelivery]:
        found = []
        for at in range(0, len(parts), 5):
            entry, kind, lane, headers, body = parts[at : at + 5]
            delivery = RedisDelivery(self, entry, _text(kind), lane.decode("utf-8", "replace"), headers, body)
            if headers:
                delivery.only = only_of(headers_of(headers), self._group)
            delivery.attempts, delivery.buried, delivery.due = self._outcomes.past(entry)
            if delivery.only is not None or self._wants(delivery.type):
                found.append(delivery)
            else:
                self._settled(entry)
        return found

    async def _news(self) -> None:
        """Wait until something is added, not for long."""
        milliseconds = int(min(NEWS_SECONDS, self._part.lease / 3) * 1000)
        await self._link.call("xread", {self._stream: self._last}, count=1, block=milliseconds)

    # Settling ----------------------------------------------------------------------------------------------------

    def acknowledged(self, delivery: RedisDelivery) -> None:
        """A delivery is through."""
        if self._out:  # else it was given back meanwhile, and is somebody else's
            self._out -= 1
            self._room.put(1)
            self._settled(delivery.entry)

    def _settled(self, entry: bytes) -> None:
        self._outcomes.acknowledged(entry)
        self._dirty.set()

    def failed(self, delivery: RedisDelivery, failure: Failure, delay: float | None) -> None:
        """A handler failed; it will be tried again after so many seconds, or never (None)."""
        self._outcomes.failed(delivery, failure, delay)
        self._dirty.set()

    async def keep(self) -> None:
        """Write outcomes as they come, and renew the lease; runs beside :meth:`batches`."""
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._part.lease / 3):
                        await self._dirty.wait()
                await self._available(self._settle)
        except Exception as error:
            self._ended = self._ended or error

    async def _settle(self) -> None:
        async with self._flushing:
            self._dirty.clear()
            if self._flush is None and (lists := self._outcomes.take()) is not None:
                self._flushes += 1
                self._flush = [f"{self._fence[3]}.{self._flushes}", *lists]
            await self._write(self._flush or [""])
            self._flush = None

    async def _write(self, flush: Sequence[Any]) -> None:
        answer = await self._link.run(SETTLE, self._places, [*self._fence, self._partitions, *flush])
        if answer == LOST:
            raise self._lost()
        if answer == SURPLUS and time.monotonic() > self._leaving + self._part.lease:  # not all the time: it may not succeed
            self._leaving = time.monotonic() + self._part.lease

    def _lost(self) -> LeaseLost:
        self._ended = LeaseLost(
            f"{self._part.owner} lost partition {self._part.partition} of group {self._group!r} to another consumer"
        )
        return self._ended

    async def _available(self, call: Callable[[], Awaitable[T]]) -> T:
        return await available(call, self._signals)

    async def close(self) -> None:
        """Write what is settled and give the lease back, so that a standby takes it at once."""
        self._room.put(self._out)
        self._out = 0
        if isinstance(self._ended, LeaseLost):
            return
        try:
            if self._flush is not None:
                await self._settle()  # what an attempt before could not write
            await self._settle()
            await self._link.run(RELEASE, [self._leases, self._consumers], [*self._fence, ""])
        except (LeaseLost, ProviderUnavailable) as error:
            logger.warning("the lease of group %r was not given back: %s", self._group, error)


@asynccontextmanager
async def held(link: Link, keys: Keys, part: Part, room: Room, signals: Signals) -> AsyncIterator[Share]:
    """A share once the lease is ours; on leaving, what is settled is written and the lease given back."""
    epoch, last, gone, past = await _acquired(link, keys, part, signals)
    group, partition = part.interest.group, part.partition
    if gone:
        _tell_gone(group, gone)
    share = Share(link, keys, part, room, signals, epoch, last, Outcomes(group, known(past)))
    signals.emit(Leased(group, partition, epoch, held=True))
    keeper = asyncio.create_task(share.keep(), name=f"sqla-events-redis-{group}-{partition}")
    try:
        yield share
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        await share.close()
        signals.emit(Leased(group, partition, epoch, held=False))


async def _acquired(link: Link, keys: Keys, part: Part, signals: Signals) -> tuple[int, bytes, int, list[bytes]]:
    """Epoch, the last entry that was ever delivered, how many unsettled ones were trimmed, and failed attempts so far."""
    group = part.interest.group
    places = [
        *(keys.leases(group), keys.consumers(group)),
        *(keys.stream(part.partition), keys.retries(group, part.partition)),
    ]

    async def ask() -> Any:
        return await link.run(ACQUIRE, places, [*_fence(part, 0), keys.partitions])

    while True:
        epoch, *state = await available(ask, signals)
        if epoch:
            return epoch, *state
        await asyncio.sleep(min(STANDBY_SECONDS, part.lease / 4))


async def left(link: Link, keys: Keys, group: str, owner: str) -> None:
    """A consumer wants no partition any more: the others may have them all."""
    with suppress(LeaseLost, ProviderUnavailable):  # it expires
        await link.run(RELEASE, [keys.leases(group), keys.consumers(group)], [group, owner, -1, -1, 0, "1"])


def _fence(part: Part, epoch: int) -> tuple[str, str, int, int, int]:
    """What scripts know a consumer by."""
    return part.interest.group, part.owner, part.partition, epoch, int(part.lease * 1000)


def _tell_gone(group: str, count: int) -> None:
    logger.error("group %r lost %d entries: they were removed from the stream before they were acknowledged", group, count)


# Patterns -----------------------------------------------------------------------------------------------------------


def _address(group: str) -> str:
    """What the header of messages for this group alone begins with."""
    (value,) = only_header(group, "").values()
    return value


def _lua(patterns: Sequence[str]) -> list[str]:
    """Lua patterns that match whatever these match, and perhaps more; none: everything.

    >>> _lua(["public.user_*.create", "*.*.delete"])
    ['^public%.user_[^.]*%.create$', '^[^.]+%.[^.]+%.delete$']
    """
    if "*" in patterns:
        return []
    return ["^" + "%.".join(map(_lua_segment, pattern.split("."))) + "$" for pattern in patterns]


def _lua_segment(segment: str) -> str:
    if segment == "*" or any(sign in segment for sign in "?["):
        return "[^.]+"
    return "".join("[^.]*" if sign == "*" else _lua_literal(sign) for sign in segment)


def _lua_literal(sign: str) -> str:
    return f"%{sign}" if sign.isascii() and not sign.isalnum() and sign != "_" else sign


def _wanting(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a type matches; remembered, for there are few."""
    if "*" in patterns:
        return lambda kind: True
    tree: PatternTree[bool] = PatternTree()
    for pattern in patterns:
        tree.add(pattern, True)
    return lru_cache(maxsize=4096)(lambda kind: bool(tree.match(kind)))


@lru_cache(maxsize=4096)
def _text(kind: bytes) -> str:
    return kind.decode("utf-8", "replace")

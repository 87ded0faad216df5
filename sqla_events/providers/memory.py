"""Memory: handlers in this process. What was captured is in the log and survives a restart.

Without a database there is no log: events that are published then go through a bounded buffer in this process. They are
lost with the process, and the oldest of them when a group is slower than the buffer is long.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any, NamedTuple

from ..errors import EventError
from ..event import Event, lane_of, now
from ..filter import matches
from ..provider import Batch, DeadLetter, Failure, Features, Interest, Message, Provider, ProviderContext, only_of
from ..signals import logger
from ..wire import unpacked
from .log import LogProvider


def MemoryProvider(config: Any, context: ProviderContext) -> Provider:  # noqa: N802 - stands where a class does
    """The log, read in this process; without a database, a buffer."""
    return BufferProvider(config, context) if context.database is None else LogProvider(config, context)


class Kept(NamedTuple):
    """One event in the buffer."""

    number: int
    event: Event
    message: Message


class BufferDelivery:
    """One event in the hands of one group."""

    def __init__(self, group: _Group, number: int, event: Event, only: str | None = None) -> None:
        self._group = group
        self._event = event
        self.number = number
        self.only = only
        self.attempts: dict[str, int] = {}
        self.due: dict[str, float] = {}
        self.buried: frozenset[str] = frozenset()

    @property
    def type(self) -> str:
        return self._event.type

    @property
    def lane(self) -> str:
        return lane_of(self._event.schema, self._event.entity, self._event.key, str(self._event.id))

    def event(self) -> Event:
        return self._event

    def ack(self) -> None:
        self._group.settle(self)

    def retry(self, failure: Failure, delay: float) -> None:
        self.attempts[failure.subscription] = failure.attempts
        self.due[failure.subscription] = time.time() + delay

    def bury(self, failure: Failure) -> None:
        self.buried |= {failure.subscription}
        self._group.letters.add(self._group.name, self._event, failure)


class BufferProvider:
    """A buffer of the last ``buffer_size`` events, for processes that have no database."""

    features = Features(durable=False, shared_groups=False, cross_process=False, history=True)

    def __init__(self, config: Any, context: ProviderContext) -> None:
        self._buffer: deque[Kept] = deque(maxlen=config.buffer_size)
        self._batch = config.batch_size
        self._count = 0
        self._groups: dict[str, _Group] = {}
        self.dead_letters = BufferLetters(self._groups)

    async def open(self) -> None:
        """Nothing to connect."""

    async def publish(self, batch: Batch) -> None:
        """Put the messages into the buffer."""
        for message in batch.messages:
            self._count += 1
            self._buffer.append(Kept(self._count, unpacked(message.body, message.headers), message))
        for group in self._groups.values():
            group.some.set()

    async def consume(self, interest: Interest) -> AsyncGenerator[Sequence[BufferDelivery], None]:
        """Deliver what the buffer holds and what comes; a group's first consumer begins with what is there."""
        group = self._groups.setdefault(interest.group, _Group(interest.group, self._buffer, self.dead_letters))
        try:
            while True:
                room = min(self._batch, interest.prefetch - len(group.in_hand))
                deliveries = group.take(room)
                if deliveries:
                    yield deliveries
                else:
                    await group.some.wait()
        finally:
            group.give_back()

    async def history(
        self, since: dt.datetime | None = None, position: str | None = None
    ) -> AsyncGenerator[Sequence[Message], None]:
        """What the buffer holds; positions count what was published in this process."""
        first = _number(position)
        meant = [one for one in self._buffer if one.number >= first and (since is None or one.event.created_at >= since)]
        if meant:
            yield [one.message for one in meant]

    async def close(self) -> None:
        """Nothing to let go."""


def _number(position: str | None) -> int:
    if position is not None and not position.isdecimal():
        raise EventError(f"the position is {position!r}; in the buffer it is a number")
    return int(position or 0)


class _Group:
    def __init__(self, name: str, buffer: deque[Kept], letters: BufferLetters) -> None:
        self.name = name
        self.letters = letters
        self.in_hand: dict[int, BufferDelivery] = {}
        self.waiting: deque[BufferDelivery] = deque()
        self.some = asyncio.Event()
        self._buffer = buffer
        self._read = 0

    def take(self, room: int) -> list[BufferDelivery]:
        """At most so many, those that were given back first."""
        self.some.clear()
        deliveries = [self.waiting.popleft() for _ in range(min(room, len(self.waiting)))]
        deliveries += [
            BufferDelivery(self, one.number, one.event, only_of(one.message.headers, self.name))
            for one in self._next(room - len(deliveries))
        ]
        self.in_hand |= {id(one): one for one in deliveries}
        return deliveries

    def _next(self, room: int) -> list[Kept]:
        if not self._buffer or room <= 0:
            return []
        missed = self._buffer[0].number - self._read - 1
        if missed > 0 and self._read:
            logger.warning("group %r was slower than the buffer is long: %d events are lost", self.name, missed)
        start = max(0, self._read + 1 - self._buffer[0].number)
        found = [self._buffer[index] for index in range(start, min(start + room, len(self._buffer)))]
        self._read = found[-1].number if found else self._read
        return found

    def settle(self, delivery: BufferDelivery) -> None:
        """One is through."""
        self.in_hand.pop(id(delivery), None)
        self.some.set()

    def give_back(self) -> None:
        """What is in hand comes again, in its order."""
        self.waiting.extendleft(sorted(self.in_hand.values(), key=lambda one: one.number, reverse=True))
        self.in_hand.clear()


Letters = list[DeadLetter]


class BufferLetters:
    """Dead letters in memory, oldest first, the last ten thousand."""

    def __init__(self, groups: dict[str, _Group]) -> None:
        self._groups = groups
        self._letters: dict[str, DeadLetter] = {}
        self._count = 0

    def add(self, group: str, event: Event, failure: Failure) -> None:
        """A subscription gave up."""
        self._count += 1
        moment, number = now(), str(self._count)
        named = (group, failure.subscription, event, failure.error, failure.traceback, failure.attempts)
        self._letters[number] = DeadLetter(number, *named, moment, moment)
        if len(self._letters) > 10_000:
            del self._letters[next(iter(self._letters))]

    async def list(
        self, *, group: str | None = None, pattern: str = "*", limit: int = 100, after: str | None = None
    ) -> Sequence[DeadLetter]:
        """Oldest first; ``after`` is the id of the last one already seen."""
        found = [one for one in self._meant(None, group, pattern) if after is None or int(one.id) > int(after)]
        return found[:limit]

    async def redrive(self, ids: Sequence[str] | None = None, *, group: str | None = None, pattern: str = "*") -> int:
        """Deliver them again, each to the subscription that gave up; returns how many."""
        letters = self._taken(ids, group, pattern)
        for letter in letters:
            place = self._groups[letter.group]
            place.waiting.append(BufferDelivery(place, 0, letter.event, only=letter.subscription))
            place.some.set()
        return len(letters)

    async def discard(self, ids: Sequence[str] | None = None, *, group: str | None = None, pattern: str = "*") -> int:
        """Forget them; returns how many."""
        return len(self._taken(ids, group, pattern))

    def _meant(self, ids: Iterable[str] | None, group: str | None, pattern: str) -> Letters:
        if ids is not None:
            return [self._letters[one] for one in ids if one in self._letters]
        return [
            one for one in self._letters.values() if group in (None, one.group) and matches(pattern, one.event.type)
        ]

    def _taken(self, ids: Iterable[str] | None, group: str | None, pattern: str) -> Letters:
        letters = self._meant(ids, group, pattern)
        for letter in letters:
            del self._letters[letter.id]
        return letters

"""Publishing by hand, and waiting for handlers: receipts, the writer that joins many publishes in one transaction, waiters.

Why a writer: an event published on its own costs a commit. Publishes that come while one commit is under way share the
next one, so a burst costs a few commits instead of thousands; a single one waits for nobody.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from threading import Lock
from typing import Any, Generic, TypeVar

import msgspec

from .errors import DeliveryFailed, EventError, ProviderUnavailable
from .event import Event

Sink = Callable[[Sequence[Event]], Awaitable[None]]
"""Stores events durably, all or none."""


P = TypeVar("P", Event, list[Event])


class Receipt(Generic[P]):
    """What publishing returns: what was published, and when it is stored (or handled). Await it, or ask ``result``."""

    def __init__(self, event: P, outcome: Future[None] | Callable[[], Awaitable[None]] | None = None) -> None:
        self.event: P = event
        """The event; of ``publish_many`` the list of events."""
        self._outcome = outcome

    def result(self, timeout: float | None = None) -> P:
        """Block until done, at most ``timeout`` seconds, and return the event; raises what went wrong.

        :raises EventError: if the session it was published in is asynchronous: await the receipt instead.
        """
        if isinstance(self._outcome, Future):
            self._outcome.result(timeout)
        elif self._outcome is not None:
            raise EventError(f"{self._named} was published in an async session; await what publish() returned")
        return self.event

    @property
    def _named(self) -> str:
        return f"event {self.event.id}" if isinstance(self.event, Event) else f"a batch of {len(self.event)} events"

    def __await__(self) -> Generator[Any, Any, P]:
        """Wait on the running loop; gives the event."""
        return self._awaited().__await__()

    async def _awaited(self) -> P:
        outcome, self._outcome = self._outcome, None
        if isinstance(outcome, Future):
            await asyncio.wrap_future(outcome)
        elif outcome is not None:
            await outcome()
        return self.event

    def __del__(self) -> None:
        if callable(self._outcome) and not isinstance(self._outcome, Future):
            import warnings

            warnings.warn(
                f"{self._named} was never published: await what publish(…, session=…) returned",
                RuntimeWarning,
                stacklevel=2,
            )


class Writer:
    """Joins what is published at the same time into one call of the sink. Lives on one loop; ``put`` is thread-safe."""

    def __init__(self, sink: Sink, limit: int) -> None:
        self._sink = sink
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[Sequence[Event], Future[None]]] = []
        self._count = 0
        self._lock = Lock()
        self._some = asyncio.Event()
        self._closed = False
        self._task = asyncio.create_task(self._work(), name="sqla-events-writer")

    def put(self, events: Sequence[Event]) -> Future[None]:
        """Have events stored, together; the future is done when they are.

        :raises ProviderUnavailable: if others wait and these would make them more than ``limit``, or the broker is
            stopping.
        """
        stored: Future[None] = Future()
        with self._lock:
            if self._closed:
                raise ProviderUnavailable(f"{_named(events)} not published: the broker is stopping")
            if self._waiting and self._count + len(events) > self._limit:
                raise ProviderUnavailable(
                    f"{_named(events)} not published: {self._count} events wait to be stored (buffer_size); try again later"
                )
            self._waiting.append((events, stored))
            self._count += len(events)
        self._loop.call_soon_threadsafe(self._some.set)
        return stored

    async def _work(self) -> None:
        while not (self._closed and not self._waiting):
            await self._some.wait()
            self._some.clear()
            with self._lock:
                batch, self._waiting, self._count = self._waiting, [], 0
            if batch:
                await self._store(batch)

    async def _store(self, batch: list[tuple[Sequence[Event], Future[None]]]) -> None:
        try:
            await self._sink([event for events, _ in batch for event in events])
        except Exception as error:
            if len(batch) > 1:  # one bad event must not fail its neighbours
                for one in batch:
                    await self._store([one])
            else:
                batch[0][1].set_exception(error)
            return
        for _, stored in batch:
            stored.set_result(None)

    async def close(self, seconds: float) -> None:
        """Store what waits, at most for so long, then end; what could not be stored is told so."""
        with self._lock:
            self._closed = True
        self._some.set()
        await asyncio.wait({self._task}, timeout=seconds)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for events, stored in self._waiting:
            stored.set_exception(ProviderUnavailable(f"{_named(events)} not published: the broker stopped"))


def _named(events: Sequence[Event]) -> str:
    return f"event {events[0].id} was" if len(events) == 1 else f"{len(events)} events were"


Wanted = tuple[uuid.UUID, str]
"""An event and a group that is to be through with it."""


class Waiters:
    """Who waits for which events to be handled. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: dict[Wanted, _Countdown] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def expect(self, wanted: Iterable[Wanted]) -> Future[None]:
        """A future that is done when each group is through with its event; it fails if a subscription gave up on one."""
        countdown = _Countdown(set(wanted))
        with self._lock:
            self._waiting.update(dict.fromkeys(countdown.left, countdown))
        return countdown.done

    def settled(self, group: str, event: Event, error: BaseException | None) -> None:
        """One group is through with one event."""
        if not self._waiting:  # without the lock: who waits for an event said so before it was committed
            return
        with self._lock:
            countdown = self._waiting.pop((event.id, group), None)
        if countdown is not None:
            countdown.note((event.id, group), event, error)

    def ids(self) -> list[uuid.UUID]:
        """What is waited for now."""
        with self._lock:
            return [event_id for event_id, _ in self._waiting]

    def forget(self, done: Future[None]) -> None:
        """Nobody waits for this any more."""
        with self._lock:
            self._waiting = {key: other for key, other in self._waiting.items() if other.done is not done}


class _Countdown:
    def __init__(self, wanted: set[Wanted]) -> None:
        self.left = wanted
        self.done: Future[None] = Future()
        self._failed: list[str] = []
        if not wanted:
            self.done.set_result(None)

    def note(self, one: Wanted, event: Event, error: BaseException | None) -> None:
        self.left.discard(one)
        if error is not None:
            self._failed.append(f"{event.type} {event.id}: {type(error).__name__}: {error}")
        if self.left or self.done.done():
            return
        if self._failed:
            self.done.set_exception(DeliveryFailed(f"a handler gave up on {'; '.join(self._failed)}"))
        else:
            self.done.set_result(None)


def make_event(event: Event | str, payload: Any, fields: dict[str, Any]) -> Event:
    """The event that ``publish`` was asked for.

    :raises EventError: for a field that no event has, or a value that does not fit its field.
    """
    if isinstance(event, Event):
        if payload is not None or fields:
            raise EventError("publish got an Event and further fields; put them into the event: event.replace(…)")
        return event
    unknown = fields.keys() - set(Event.__struct_fields__)
    if unknown:
        raise EventError(
            f"an event has no field {', '.join(sorted(unknown))}; its fields are {', '.join(Event.__struct_fields__)}"
        )
    return Event(type=event, payload=payload, **fields)


def filled(event: Event, defaults: dict[str, Any]) -> Event:
    """The event with what it leaves open taken from ``defaults``; metadata is merged, the event's own wins."""
    changes = {
        name: value
        for name, value in defaults.items()
        if name != "metadata" and getattr(event, name) is None and value is not None
    }
    if defaults.get("metadata"):
        changes["metadata"] = {**defaults["metadata"], **event.metadata}
    return msgspec.structs.replace(event, **changes) if changes else event

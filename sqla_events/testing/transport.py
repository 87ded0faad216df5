"""What the conformance suite is given, and what it does everything with: a transport, streams, a process to kill."""

from __future__ import annotations

import asyncio
import inspect
import multiprocessing
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, cast

from ..bridge import Database, Doorbell, LoopThread, engine_of, in_thread
from ..config import Config
from ..errors import ProviderUnavailable
from ..event import Event
from ..provider import Batch, Delivery, Interest, Message, Provider, ProviderContext
from ..providers import load
from ..retry import until_available
from ..runtime import message_of
from ..schema import Names, Tables
from ..signals import Signals

SECONDS = 60.0
"""For which the suite waits for anything before it says that it does not come."""

Opener = Callable[[], AbstractAsyncContextManager[Provider]]


@dataclass(frozen=True)
class Transport:
    """Where the provider under test lives, and what can be done to it."""

    make: Opener
    """Gives a new provider, not opened yet, as another process would have it; leaving the context lets go of what it was
    made with. It must survive pickling, as :func:`configured` and a ``functools.partial`` of a module's function do: a
    process that is killed makes its provider with it."""
    stop: Callable[[], None] | None = None
    """Ends the server as a crash does; None: there is none, or it cannot be stopped, and tests that need it are skipped.

    Both are called on the thread of the test: on Linux a child can be made to die with the thread that started it."""
    start: Callable[[], None] | None = None
    """Starts it again, with what it had stored, and returns when it answers."""
    redelivery: float = 1.0
    """Seconds after which the transport, as configured here, takes a consumer for dead. Small ones make quick tests."""


def configured(settings: Mapping[str, Any], database_url: str | None = None) -> Opener:
    """Providers made as a broker makes them: from its settings, and the URL of its database if it has one."""
    return partial(_made, dict(settings), database_url)


@asynccontextmanager
async def _made(settings: dict[str, Any], database_url: str | None) -> AsyncIterator[Provider]:
    config = Config.load(settings)
    tables = Tables(Names(config.database.table_name, config.database.schema))
    database = None if database_url is None else Database(engine_of(database_url))
    try:
        yield load(config, ProviderContext(database, tables, config.instance_id, Signals(), Doorbell()))
    finally:
        if database is not None:
            await database.close()


# Publishing ---------------------------------------------------------------------------------------------------------


async def publish(provider: Provider, *events: Event) -> None:
    """As one batch; waits as long as the transport does not answer."""
    batch = Batch([message_of(event) for event in events])
    async with asyncio.timeout(SECONDS):
        await until_available(
            lambda: provider.publish(batch), ProviderUnavailable, asyncio.sleep, lambda delay, error: None
        )


async def history(provider: Provider, **start: Any) -> list[Message]:
    """Everything that the provider's history gives from there on."""
    async with asyncio.timeout(SECONDS):
        return [message async for batch in provider.history(**start) for message in batch]


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until it holds; it may be a coroutine function.

    :raises AssertionError: after :data:`SECONDS`.
    """
    deadline = asyncio.get_running_loop().time() + SECONDS
    while True:
        answer = condition()
        if await answer if inspect.isawaitable(answer) else answer:
            return
        assert asyncio.get_running_loop().time() < deadline, f"it is not so after {SECONDS:g} s"
        await asyncio.sleep(0.01)


# Consuming ----------------------------------------------------------------------------------------------------------


class Stream:
    """One consumer: what was delivered to it so far, oldest first."""

    def __init__(self, provider: Provider, interest: Interest, settle: Callable[[Delivery], object]) -> None:
        self.deliveries: list[Delivery] = []
        self._settle = settle
        self._some = asyncio.Event()
        source = cast("AsyncGenerator[Sequence[Delivery], None]", provider.consume(interest))
        self._task = asyncio.create_task(self._consume(source), name="conformance-stream")

    async def _consume(self, source: AsyncGenerator[Sequence[Delivery], None]) -> None:
        try:
            async with aclosing(source) as batches:
                async for batch in batches:
                    for delivery in batch:
                        self.deliveries.append(delivery)
                        self._settle(delivery)
                    self._some.set()
        finally:
            self._some.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for more deliveries until it holds.

        :raises AssertionError: after :data:`SECONDS`.
        """
        try:
            async with asyncio.timeout(SECONDS):
                while not condition():
                    self._some.clear()
                    await self._some.wait()
                    if self._task.done():
                        self._task.result()
        except TimeoutError:
            raise AssertionError(f"after {SECONDS:g} s there were {len(self.deliveries)} deliveries") from None

    async def take(self, count: int) -> list[Delivery]:
        """What was delivered so far; at least so many."""
        await self.until(lambda: len(self.deliveries) >= count)
        return list(self.deliveries)

    @property
    def ids(self) -> list[str]:
        """Of the events, in the order they came."""
        return [str(delivery.event().id) for delivery in self.deliveries]

    @property
    def events(self) -> list[Event]:
        """The events, in the order they came."""
        return [delivery.event() for delivery in self.deliveries]

    async def close(self) -> None:
        """Close the iterator, as a consumer does that stops."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def ack(delivery: Delivery) -> None:
    """Settle at once."""
    delivery.ack()


def hold(delivery: Delivery) -> None:
    """Leave it in hand."""


@asynccontextmanager
async def consuming(
    provider: Provider,
    settle: Callable[[Delivery], object] = ack,
    group: str = "group",
    patterns: tuple[str, ...] = ("*",),
    consumer: str = "one",
    prefetch: int = 1000,
) -> AsyncIterator[Stream]:
    """A stream that is closed at the end."""
    stream = Stream(provider, Interest(group, patterns, consumer, prefetch), settle)
    try:
        yield stream
    finally:
        await stream.close()


@asynccontextmanager
async def opened(transport: Transport) -> AsyncIterator[Provider]:
    """A provider between open and close."""
    async with transport.make() as provider:
        await provider.open()
        try:
            yield provider
        finally:
            await provider.close()


def lanes(events: Iterable[Event]) -> dict[str | None, list[Any]]:
    """Payloads by key, in the order given; each event once, where it came first."""
    found: dict[str | None, dict[Any, Any]] = defaultdict(dict)
    for event in events:
        found[event.key].setdefault(event.id, event.payload)
    return {key: list(payloads.values()) for key, payloads in found.items()}


# A process to kill --------------------------------------------------------------------------------------------------


class Victim:
    """A consumer in a process of its own."""

    def __init__(self, process: BaseProcess, answers: Connection) -> None:
        self._process = process
        self._answers = answers

    async def ids(self) -> list[str]:
        """Of the events that it has in hand, those that it acknowledged first; waits until it has them."""
        there = await in_thread(self._answers.poll, SECONDS)
        assert there, f"the other process got no events within {SECONDS:g} s"
        return cast("list[str]", self._answers.recv())

    def kill(self) -> None:
        """As ``kill -9`` does: nothing is closed, given back or said."""
        self._process.kill()
        self._process.join()


@contextmanager
def victim(transport: Transport, group: str, count: int, acked: int) -> Any:
    """A process that takes ``count`` events of a group, acknowledges the first ``acked`` of them, and then does nothing."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_suffer, args=(transport.make, group, count, acked, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Victim(process, ours)
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()


def _suffer(make: Opener, group: str, count: int, acked: int, answers: Connection) -> None:
    LoopThread("victim").call(_take_and_wait(make, group, count, acked, answers)).result()


async def _take_and_wait(make: Opener, group: str, count: int, acked: int, answers: Connection) -> None:
    transport = Transport(make)
    async with opened(transport) as provider, consuming(provider, hold, group, consumer="victim", prefetch=count) as stream:
        taken = await stream.take(count)
        for delivery in taken[:acked]:
            delivery.ack()
        answers.send(stream.ids[:count])
        await asyncio.Event().wait()

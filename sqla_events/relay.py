"""The relay: from the log to a provider that is a transport of its own. A consumer group of the log for each provider.

    lease -> read -> wire form -> publish -> settle -> commit    the next wire forms and the read after them overlap this

One batch at a time is with the transport: a second one behind it would be stored although the first one failed, and the
events of one row would change places.

A transport that is down is tried for ever, with the log as the buffer. An event that it will never take becomes a failed
delivery at once, and the rest of its batch goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, cast

import msgspec

from .bridge import Database, Doorbell
from .errors import LeaseLost, ProviderUnavailable, PublishRejected
from .log.delivery import LogDelivery
from .log.reader import Reader, leased
from .log.settings import ReaderSettings
from .log.spread import Spread, spread
from .position import Position
from .provider import Batch, Failure, Kept, Message, PositionKeeper, Provider
from .retry import until_available
from .schema import Tables
from .signals import Buried, Relayed, Signals, Unavailable, logger
from .wire import Pack

T = TypeVar("T")

SUBSCRIPTION = "relay"
"""The name under which the relay's dead letters stand."""
LOOK_SECONDS = 2.0
"""Of silence, after which the relay makes sure that the transport still has what it was given."""


class _Stopping(Exception):
    pass


class _Work(msgspec.Struct, frozen=True):
    """A batch and the message of each of its deliveries."""

    deliveries: Sequence[LogDelivery]
    messages: Sequence[Message]

    def without(self, ids: Collection[str]) -> _Work:
        """What is left when these events are left out."""
        if not ids:
            return self
        kept = [pair for pair in zip(self.deliveries, self.messages, strict=True) if pair[0].row.id not in ids]
        return _Work([one for one, _ in kept], [message for _, message in kept])


class Relay:
    """Publishes one partition of the log to one provider."""

    def __init__(
        self,
        database: Database,
        tables: Tables,
        provider: Provider,
        settings: ReaderSettings,
        signals: Signals,
        doorbell: Doorbell,
        pack: Pack | None = None,
        group: Spread | None = None,
    ) -> None:
        self._database = database
        self._tables = tables
        self._provider = provider
        self._settings = settings
        self._signals = signals
        self._doorbell = doorbell
        self._pack = pack
        self._group = group
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End after the batch that is being published, or at once while the transport is down."""
        self._stopping.set()

    async def run(self) -> None:
        """Wait for the lease, then relay until :meth:`stop`, or until another process has the lease for its share.

        :raises LeaseLost: when another relay has the lease.
        """
        work: asyncio.Future[Any] = asyncio.ensure_future(self._run())
        stopping: asyncio.Future[Any] = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not self._reading:
                work.cancel()  # still waiting for the lease
            await asyncio.wait({work})
            if not work.cancelled() and not isinstance(work.exception(), _Stopping):
                work.result()
        finally:
            for task in (work, stopping):
                task.cancel()
            await asyncio.gather(work, stopping, return_exceptions=True)

    _reading = False

    async def _run(self) -> None:
        async with leased(
            self._database, self._tables, self._settings, self._signals, self._doorbell, group=self._group
        ) as reader:
            self._reading = True
            try:
                await self._relay(reader)
            finally:
                self._reading = False

    async def _relay(self, reader: Reader) -> None:
        if self._provider.features.keeps_position:
            await self._agree(reader)
        stream = _ahead(reader.batches())
        coming = asyncio.ensure_future(self._next(stream))
        try:
            while (work := await self._unless_stopped(reader, coming)) is not None:
                coming = asyncio.ensure_future(self._next(stream))
                await self._publish(reader, work)
        finally:
            await _ended(coming, stream)

    async def _next(self, stream: AsyncGenerator[Sequence[LogDelivery], None]) -> _Work:
        deliveries = await anext(stream)
        messages = [_message(one) for one in deliveries]
        return _Work(deliveries, messages if self._pack is None else list(map(self._pack, messages)))

    async def _unless_stopped(self, reader: Reader, coming: asyncio.Future[_Work]) -> _Work | None:
        stopping: asyncio.Future[Any] = asyncio.ensure_future(self._stopping.wait())
        look = LOOK_SECONDS if self._provider.features.keeps_position else None
        try:
            while not (await asyncio.wait((coming, stopping), timeout=look, return_when=asyncio.FIRST_COMPLETED))[0]:
                await self._look(reader)
        finally:
            stopping.cancel()
        if self._stopping.is_set() or isinstance(coming.exception(), StopAsyncIteration):
            return None
        return coming.result()

    # What the transport has --------------------------------------------------------------------------------------

    async def _agree(self, reader: Reader) -> None:
        """Begin where both the transport and the log's position are.

        :raises LeaseLost: when the position had to be set back; the next lease begins there.
        """
        kept = await self._until_available(lambda: self._resume(reader))
        theirs, ours = Position.from_text(kept.position), reader.position
        if (lost := ours.beyond(theirs)) and await reader.has_any(lost):  # numbers of rolled-back transactions have no rows
            logger.warning("%s: the transport lost events; the log is read again from %d on", reader.lease.group, lost[0][0])
            await reader.rewind(theirs)
        if theirs.beyond(ours) and not (kept.seq is not None and await reader.has_row(kept.seq, kept.id)):
            logger.warning("%s: the log was set back; what the transport has of it counts no more", reader.lease.group)
            await self._until_available(lambda: self._resume(reader, replace=True))

    async def _look(self, reader: Reader) -> None:
        try:
            await self._resume(reader)
        except ProviderUnavailable as error:
            self._unavailable(LOOK_SECONDS, error)

    async def _resume(self, reader: Reader, replace: bool = False) -> Kept:
        keeper = cast("PositionKeeper", self._provider)
        return await keeper.resume(self._named(reader, (), reader.position_after(())), replace)

    # One batch ---------------------------------------------------------------------------------------------------

    async def _publish(self, reader: Reader, work: _Work) -> None:
        started = time.perf_counter()
        deliveries = work.deliveries
        left = work.without({one.row.id for one in deliveries if SUBSCRIPTION in one.buried})
        while left.messages:
            batch = self._batch(reader, left)
            try:
                await self._until_published(batch)
                break
            except PublishRejected as error:
                left = self._without_rejected(reader, left, error)
        self._settle(reader, deliveries)
        if self._signals:
            self._signals.emit(
                Relayed(self._settings.group, self._settings.partition, len(left.messages), time.perf_counter() - started)
            )

    async def _until_published(self, batch: Batch) -> None:
        await self._until_available(lambda: self._provider.publish(batch))

    async def _until_available(self, call: Callable[[], Awaitable[T]]) -> T:
        result: T = await until_available(call, ProviderUnavailable, self._pause, self._unavailable)
        return result

    def _batch(self, reader: Reader, work: _Work) -> Batch:
        position = ""
        if self._provider.features.idempotent_publish:
            position = reader.position_after([one.row.seq for one in work.deliveries])
        return self._named(reader, work.messages, position)

    def _named(self, reader: Reader, messages: Sequence[Message], position: str) -> Batch:
        settings = self._settings
        return Batch(
            messages, settings.group, settings.partition, reader.lease.epoch, position, settings.partitions
        )

    def _settle(self, reader: Reader, deliveries: Sequence[LogDelivery]) -> None:
        """Many at once where there was no trouble, which is nearly always."""
        if any(one.only is not None or one.attempts or one.buried for one in deliveries):
            for one in deliveries:
                one.ack()
        else:
            reader.settle([one.row.seq for one in deliveries])

    def _without_rejected(self, reader: Reader, work: _Work, error: PublishRejected) -> _Work:
        rejected = [one for one in work.deliveries if one.row.id == error.event_id]
        if not rejected:  # a provider that names an event we did not give it: nothing would ever get past
            raise ProviderUnavailable(f"the provider rejected an event that was not in its batch: {error}") from error
        for one in rejected:
            reader.failed(one, Failure(SUBSCRIPTION, error.reason, "", 1), None)
            logger.error("%s made a dead letter of %s (row %s): %s", self._settings.group, one.type, one.lane, error.reason)
            self._signals.emit(Buried(one.type, self._settings.group, SUBSCRIPTION, error.reason))
        return work.without({error.event_id})

    # A transport that is down ------------------------------------------------------------------------------------

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return
        raise _Stopping

    def _unavailable(self, delay: float, error: BaseException) -> None:
        logger.warning("%s does not answer, next try in %.2f s: %s", self._settings.group, delay, error)
        self._signals.emit(Unavailable(self._settings.group, str(error), delay))


def _message(delivery: LogDelivery) -> Message:
    """What was rejected once counts as done in every position since; redriven, it must not be taken for published."""
    message = delivery.row.to_message()
    return message if delivery.only is None else msgspec.structs.replace(message, seq=None)


async def _ahead(batches: AsyncGenerator[Sequence[LogDelivery], None]) -> AsyncGenerator[Sequence[LogDelivery], None]:
    """The same batches; while one gets its wire form, the database works on the next."""
    coming = asyncio.ensure_future(anext(batches))
    try:
        while True:
            try:
                batch = await coming
            except StopAsyncIteration:
                return
            coming = asyncio.ensure_future(anext(batches))
            yield batch
    finally:
        await _ended(coming, batches)


async def _ended(
    coming: asyncio.Future[Any], stream: AsyncGenerator[Sequence[LogDelivery], None]
) -> None:
    coming.cancel()
    await asyncio.gather(coming, return_exceptions=True)
    await stream.aclose()


class Relays:
    """Publishes the log to one provider: a :class:`Relay` for each partition that this process has the lease of."""

    def __init__(
        self,
        database: Database,
        tables: Tables,
        provider: Provider,
        settings: ReaderSettings,
        signals: Signals,
        doorbell: Doorbell,
        pack: Pack | None = None,
    ) -> None:
        self._about = (database, tables, settings, signals)
        self._make = partial(Relay, database, tables, provider, signals=signals, doorbell=doorbell, pack=pack)
        self._settings = settings
        self._working: dict[int, Relay] = {}
        self._stopping = False

    def stop(self) -> None:
        """End each partition as :meth:`Relay.stop` does."""
        self._stopping = True
        for relay in self._working.values():
            relay.stop()

    async def run(self) -> None:
        """Relay until :meth:`stop`."""
        try:
            async with spread(*self._about) as group, asyncio.TaskGroup() as tasks:
                for number in range(self._settings.partitions):
                    tasks.create_task(self._partition(group, number))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors

    async def _partition(self, group: Spread, number: int) -> None:
        while not self._stopping:
            relay = self._working[number] = self._make(replace(self._settings, partition=number), group=group)
            try:
                await relay.run()
            except LeaseLost as error:
                logger.warning("%s; waiting for the lease", error)

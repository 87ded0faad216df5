"""The relay: from the log to a provider that is a transport of its own. One consumer group of the log per provider.

    lease -> read -> publish -> commit         the next read overlaps this publish

A broker that is down is tried for ever, with the log as the buffer. An event that it will never take becomes a failed
delivery at once, and the rest of its batch goes on.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Sequence

from .bridge import Database, Doorbell
from .errors import ProviderUnavailable, PublishRejected
from .log.delivery import LogDelivery
from .log.reader import Reader, leased
from .log.settings import ReaderSettings
from .provider import Batch, Failure, Provider
from .retry import until_available
from .schema import Tables
from .signals import Buried, Relayed, Signals, Unavailable, logger

SUBSCRIPTION = "relay"
"""The name under which the relay's dead letters stand."""


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
    ) -> None:
        self._database = database
        self._tables = tables
        self._provider = provider
        self._settings = settings
        self._signals = signals
        self._doorbell = doorbell
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End after the batch that is being published."""
        self._stopping.set()

    async def run(self) -> None:
        """Relay until :meth:`stop`.

        :raises LeaseLost: when another relay has the lease.
        """
        async with leased(self._database, self._tables, self._settings, self._doorbell, self._signals) as reader:
            stopping = asyncio.create_task(self._stopping.wait())
            stream = reader.batches()
            coming = asyncio.ensure_future(anext(stream))
            try:
                while not stopping.done():
                    await asyncio.wait({coming, stopping}, return_when=asyncio.FIRST_COMPLETED)
                    if not coming.done():
                        break
                    batch = coming.result()
                    coming = asyncio.ensure_future(anext(stream))
                    await self._publish(reader, batch)
            finally:
                for task in (coming, stopping):
                    task.cancel()
                await asyncio.gather(coming, stopping, return_exceptions=True)
                await stream.aclose()

    async def _publish(self, reader: Reader, deliveries: Sequence[LogDelivery]) -> None:
        started = time.perf_counter()
        left = list(deliveries)
        while left:
            batch = self._batch(reader, left)
            try:
                await until_available(lambda: self._provider.publish(batch), ProviderUnavailable, self._pause, self._unavailable)  # noqa: B023
                break
            except PublishRejected as error:
                left = [one for one in left if not self._rejected(reader, one, error)]
        for one in deliveries:
            one.ack()
        self._signals.emit(Relayed(self._settings.group, self._settings.partition, len(left), time.perf_counter() - started))

    def _batch(self, reader: Reader, deliveries: Sequence[LogDelivery]) -> Batch:
        s = self._settings
        messages = [one.row.to_message() for one in deliveries]
        return Batch(messages, s.group, s.partition, reader.lease.epoch, "")

    def _rejected(self, reader: Reader, delivery: LogDelivery, error: PublishRejected) -> bool:
        if delivery.row.id != error.event_id:
            return False
        failure = Failure(SUBSCRIPTION, error.reason, "".join(traceback.format_exception(error)), 1)
        reader.failed(delivery, failure, None)
        self._signals.emit(Buried(delivery.type, self._settings.group, SUBSCRIPTION, error.reason))
        return True

    async def _pause(self, seconds: float) -> None:
        """Wait before the next attempt; a stop ends the waiting, and what is not published stays in the log."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return
        raise asyncio.CancelledError

    def _unavailable(self, delay: float, error: BaseException) -> None:
        logger.warning("%s does not answer, next try in %.2f s: %s", self._settings.group, delay, error)
        self._signals.emit(Unavailable(self._settings.group, str(error), delay))

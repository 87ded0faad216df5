"""The log as the transport: what ``memory`` and ``database`` share.

Nothing is copied: a consumer group is a position, its consumer a leased reader. So what was captured survives a
restart of every process, every group sees everything, and order is the log's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from ..bridge import Database, Doorbell
from ..deliveries import LogDeadLetters
from ..errors import LeaseLost
from ..event import decode
from ..log import append
from ..log.delivery import LogDelivery
from ..log.reader import leased
from ..log.settings import ReaderSettings
from ..provider import Batch, Features, Interest, ProviderContext
from ..signals import logger


class LogProvider:
    """Delivers from the events table of the application's own database."""

    features = Features(
        durable=True, shared_groups=True, cross_process=True, log_is_transport=True, retry_survives_restart=True
    )

    def __init__(self, config: Any, context: ProviderContext) -> None:
        self._config = config
        self._context = context
        self._database: Database = context.database
        self._bell: Doorbell = context.doorbell
        self._remote = Doorbell()
        """Rung for commits of other processes; not the one above, whose ring is passed on to them."""
        self.dead_letters = LogDeadLetters(self._database, context.tables, self._bell.ring)

    async def open(self) -> None:
        """Nothing to connect: readers do when they start."""

    async def publish(self, batch: Batch) -> None:
        """Append to the log in one transaction."""
        events = [decode(message.body) for message in batch.messages]
        await self._database.run(append, self._context.tables, events)
        self._bell.ring()

    async def consume(self, interest: Interest) -> AsyncGenerator[Sequence[LogDelivery], None]:
        """Deliver what the group's position lacks; several partitions are several leases, each read as it is won."""
        of = self._config.partitions
        streams = [
            self._partition(reader_settings(self._config, interest.group, interest.consumer, n, of, interest.prefetch))
            for n in range(of)
        ]
        async with aclosing(merged(streams)) as stream:  # closed with us, not by the garbage collector some time later
            async for batch in stream:
                yield batch

    async def _partition(self, settings: ReaderSettings) -> AsyncGenerator[Sequence[LogDelivery], None]:
        """One lease after the other: whoever lost it waits for it again."""
        while True:
            try:
                async with leased(
                    self._database, self._context.tables, settings, self._context.signals, self._bell, self._remote
                ) as reader, aclosing(reader.batches()) as stream:
                    async for batch in stream:
                        yield batch
            except LeaseLost as error:
                logger.warning("%s; waiting for the lease", error)

    async def close(self) -> None:
        """Readers end with their consumers."""


def reader_settings(config: Any, group: str, owner: str, number: int, of: int, prefetch: int) -> ReaderSettings:
    """What a configuration says about reading."""
    return ReaderSettings(
        group=group,
        owner=owner,
        partition=number,
        partitions=of,
        lease=config.lease,
        batch_size=config.batch_size,
        prefetch=prefetch,
        poll_interval=config.database.poll_interval or config.poll_interval,
    )


async def merged(streams: Sequence[AsyncGenerator[Sequence[Any], None]]) -> AsyncGenerator[Sequence[Any], None]:
    """Whatever comes next from any of the streams; closing it closes them all."""
    waiting = {asyncio.ensure_future(anext(stream)): stream for stream in streams}
    try:
        while True:
            ready, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for one in ready:
                stream = waiting.pop(one)
                batch = one.result()
                waiting[asyncio.ensure_future(anext(stream))] = stream
                yield batch
    finally:
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for stream in streams:
            await stream.aclose()

"""The log as the transport: what ``memory`` and ``database`` share.

Nothing is copied: a consumer group is a position, its consumer a leased reader. So what was captured survives a
restart of every process, every group sees everything, and order is the log's.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from sqlalchemy.engine import Connection

from ..bridge import Database, Doorbell
from ..deliveries import LogDeadLetters
from ..errors import LeaseLost, PublishRejected
from ..event import REPLAY, Event
from ..log import append, replays
from ..log.delivery import LogDelivery
from ..log.reader import leased
from ..log.replays import Span
from ..log.settings import ReaderSettings
from ..log.spread import Spread, spread
from ..provider import ONLY, Batch, Features, Interest, Message, ProviderContext, addressee
from ..schema import Tables
from ..signals import logger
from ..wire import unpacked

PAGE = 500
"""Events of one read of a history."""


class LogProvider:
    """Delivers from the events table of the application's own database."""

    features = Features(
        durable=True,
        shared_groups=True,
        cross_process=True,
        log_is_transport=True,
        retry_survives_restart=True,
        provider_filter=True,
        history=True,
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
        """Append to the log in one transaction; what is for one subscription is in the log already and comes to it again."""
        copies = [message for message in batch.messages if ONLY in message.headers]
        events = [unpacked(one.body, one.headers) for one in batch.messages if ONLY not in one.headers]
        await self._database.run(_publish, self._context.tables, events, list(map(_replay, copies)))
        self._bell.ring()

    async def history(
        self, since: dt.datetime | None = None, position: str | None = None
    ) -> AsyncGenerator[Sequence[Message], None]:
        """The log from there on; positions are the seqs of events."""
        async for messages in log_history(self._database, self._context.tables, since, position):
            yield messages

    async def consume(self, interest: Interest) -> AsyncGenerator[Sequence[LogDelivery], None]:
        """Deliver what the group's position lacks; of several partitions, those that are this process's share."""
        settings = reader_settings(self._config, interest.group, interest.consumer, interest.prefetch, interest.patterns)
        context = self._context
        async with spread(self._database, context.tables, settings, context.signals) as group:
            streams = [self._partition(group, replace(settings, partition=n)) for n in range(settings.partitions)]
            async with aclosing(merged(streams)) as stream:  # closed with us, not by the garbage collector some time later
                async for batch in stream:
                    yield batch

    def _partition(self, group: Spread, settings: ReaderSettings) -> AsyncGenerator[Sequence[LogDelivery], None]:
        context, bells = self._context, (self._bell, self._remote)
        return leases(partial(leased, self._database, context.tables, settings, context.signals, *bells, group=group))

    async def close(self) -> None:
        """Readers end with their consumers."""


async def log_history(
    database: Database,
    tables: Tables,
    since: dt.datetime | None = None,
    position: str | None = None,
    pattern: str = "*",
) -> AsyncGenerator[Sequence[Message], None]:
    """What the log holds, page by page, up to what is newest now; also some that the pattern does not match.

    :raises EventError: for a position that is no seq.
    """
    wanted: Span | None = await database.run(replays.span, tables, since, position, pattern)
    while wanted is not None:
        messages = await database.run(replays.page, tables, wanted, PAGE)
        if messages:
            yield messages
        last = messages[-1].seq if len(messages) == PAGE else None
        wanted = None if last is None else Span(last + 1, wanted.last, wanted.since, pattern)


def _publish(connection: Connection, tables: Tables, events: Sequence[Event], again: Sequence[replays.Replay]) -> None:
    append(connection, tables, events)
    replays.replay(connection, tables, again)


def _replay(message: Message) -> replays.Replay:
    """What a message asks for that has an address.

    :raises PublishRejected: for an event that the log does not have.
    """
    meant = addressee(message.headers)
    if meant is None or message.seq is None:
        raise PublishRejected(message.id, "it has no seq, and only what is in the log can be delivered from it again")
    event = unpacked(message.body, message.headers)
    return replays.Replay(meant[0], message.seq, meant[1], str(event.metadata.get(REPLAY, message.id)))


def reader_settings(
    config: Any, group: str, owner: str, prefetch: int, patterns: tuple[str, ...] = ("*",)
) -> ReaderSettings:
    """What a configuration says about reading."""
    return ReaderSettings(
        group=group,
        owner=owner,
        partitions=config.partitions,
        lease=config.lease,
        batch_size=config.batch_size,
        prefetch=prefetch,
        poll_interval=config.database.poll_interval or config.poll_interval,
        patterns=patterns,
    )


class Reading(Protocol):
    """What a lease entitles to."""

    def batches(self) -> AsyncGenerator[Sequence[Any], None]: ...


async def leases(lease: Callable[[], AbstractAsyncContextManager[Reading]]) -> AsyncGenerator[Sequence[Any], None]:
    """One lease after the other: whoever lost it, or gave it up, waits for it again."""
    while True:
        try:
            async with lease() as reading, aclosing(reading.batches()) as stream:
                async for batch in stream:
                    yield batch
        except LeaseLost as error:
            logger.warning("%s; waiting for the lease", error)


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

"""Redis Streams: a stream for each partition, consumer groups, and beside them a relay's position, leases and dead letters.

    address      settings to a client            link         calls, scripts, errors
    publishing   the batch and its position      keys         names of keys
    consuming    leases, reading, settling       outcomes     what is written when something is settled
    letters      dead letters                    trimming     what goes, and when
    history      what a stream still has         layout       into how many partitions it is split

docs/redis.md says what is promised and how to look at it with redis-cli.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from ...provider import Batch, Features, Interest, Kept, Message, ProviderContext
from ..log import leases, merged
from .consuming import Part, Room, available, held, left
from .delivery import RedisDelivery
from .history import history
from .layout import Layout
from .letters import RedisDeadLetters
from .link import Link
from .publishing import Publishing
from .trimming import trim_for_ever


class RedisProvider:
    """Delivers over Redis Streams, 6.2 or newer.

    :raises ConfigError: for a URL or stream name that cannot be used.
    """

    def __init__(self, config: Any, context: ProviderContext) -> None:
        self._config = config
        self._signals = context.signals
        self._link = Link(config.redis)
        self._layout = Layout(self._link, config.redis.stream_name, config.partitions)
        self._publishing = Publishing(self._link, self._layout, config.redis.max_event_bytes)
        self._trimming: asyncio.Task[None] | None = None
        self.dead_letters = RedisDeadLetters(self._link, self._layout)
        self.features = Features(
            durable=True,
            shared_groups=True,
            cross_process=True,
            idempotent_publish=True,
            keeps_position=True,
            retry_survives_restart=True,
            provider_filter=True,
            history=True,
            max_message_bytes=config.redis.max_event_bytes,
        )

    async def open(self) -> None:
        """Connect."""
        keys, settings = await self._layout.keys(), self._config.redis
        if self._trimming is None and (settings.max_len is not None or settings.max_age is not None):
            self._trimming = asyncio.create_task(
                trim_for_ever(self._link, keys, settings), name="sqla-events-redis-trim"
            )

    async def publish(self, batch: Batch) -> None:
        """One call of the server: the whole batch, with a relay's position, or nothing."""
        await self._publishing.publish(batch)

    async def resume(self, lease: Batch, replace: bool = False) -> Kept:
        """What the stream has of a relay's log."""
        return await self._publishing.resume(lease, replace)

    async def history(
        self, since: dt.datetime | None = None, position: str | None = None
    ) -> AsyncGenerator[Sequence[Message], None]:
        """What the stream still has; positions are ids of entries."""
        async with aclosing(history(self._link, await self._layout.keys(), since, position)) as pages:
            async for page in pages:
                yield page

    async def consume(self, interest: Interest) -> AsyncGenerator[Sequence[RedisDelivery], None]:
        """Deliver what the group has not acknowledged; each partition as its lease is won."""
        keys = await available(self._layout.keys, self._signals)
        room = Room(interest.prefetch, self._config.batch_size)
        owner = f"{interest.consumer}-{secrets.token_hex(4)}"
        parts = [Part(interest, partition, owner, self._config.lease) for partition in range(keys.partitions)]
        try:
            shares = [leases(partial(held, self._link, keys, part, room, self._signals)) for part in parts]
            async with aclosing(merged(shares)) as stream:
                async for batch in stream:
                    yield batch
        finally:
            await left(self._link, keys, interest.group, owner)

    async def close(self) -> None:
        """Let go of every connection; consumers have written what they settled when their iterators were closed."""
        if self._trimming is not None:
            self._trimming.cancel()
            await asyncio.gather(self._trimming, return_exceptions=True)
            self._trimming = None
        await self._link.close()

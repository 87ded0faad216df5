"""Database: the log itself carries the events, to any process that has its URL.

Polling finds everything; LISTEN only makes it prompt. The doorbell is NOTIFY from a connection of our own, after the
commit and many commits at a time: inside the business transaction it would take a lock that all commits share (measured
with 32 committing connections: 3,600-4,100 commits a second instead of 8,000-12,500; rung like this: 9,600-10,000).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection

from ..bridge import Ear
from ..errors import ConfigError, ProviderUnavailable
from ..log.delivery import LogDelivery
from ..provider import Interest, ProviderContext
from ..retry import FOREVER
from ..signals import logger
from .log import LogProvider

COALESCE, COALESCE_AT_MOST = 0.005, 0.02
"""Seconds between two notifications: commits in between ring once. As long as there are some in every pause, pauses get
longer: whoever listens looks every few milliseconds by itself while events keep coming."""


class DatabaseProvider(LogProvider):
    """The log, read by any process, with a doorbell between processes where PostgreSQL has one.

    :raises ConfigError: without a database, or for a channel that is no identifier.
    """

    def __init__(self, config: Any, context: ProviderContext) -> None:
        if context.database is None:
            raise ConfigError("provider 'database' needs an engine: the events are in its tables")
        super().__init__(config, context)
        self._channel: str = config.database.channel
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,62}", self._channel):
            raise ConfigError(
                f"database.channel is {self._channel!r}; it must be a plain identifier of at most 63 characters"
            )
        self._listen = config.database.listen and self._database.dialect == "postgresql"
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def open(self) -> None:
        """Start to notify."""
        self._start("notify", self._ring)

    def consume(self, interest: Interest) -> AsyncGenerator[Sequence[LogDelivery], None]:
        """See provider.Provider. Only who consumes listens: being woken for nothing costs a busy process commits."""
        self._start("listen", self._hear)
        return super().consume(interest)

    async def close(self) -> None:
        """Stop listening and notifying."""
        tasks, self._tasks = self._tasks, {}
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)

    def _start(self, name: str, work: Any) -> None:
        if self._listen and name not in self._tasks:
            self._tasks[name] = asyncio.create_task(self._for_ever(work), name=f"sqla-events-{name}")

    async def _for_ever(self, work: Any) -> None:
        failures = 0
        while True:
            try:
                await work()
            except ProviderUnavailable as error:
                failures += 1
                delay = FOREVER.delay(failures)
                logger.warning(
                    "the doorbell of channel %r is out for %.2f s, polling goes on: %s", self._channel, delay, error
                )
                await asyncio.sleep(delay)
            except ConfigError as error:
                logger.warning("no doorbell: %s", error)
                return

    async def _hear(self) -> None:
        await self._database.listen(self._channel, self._remote.ring)

    async def _ring(self) -> None:
        ear, pause = Ear(self._context.doorbell), COALESCE
        try:
            async with self._database.hold(autocommit=True) as held:
                while True:
                    if not ear.rung:
                        pause = COALESCE
                    if await ear.wait(None):
                        await held.run(_notify, self._channel)
                        await asyncio.sleep(pause)
                        pause = min(2 * pause, COALESCE_AT_MOST)
        finally:
            ear.close()


def _notify(connection: Connection, channel: str) -> None:
    connection.execute(_NOTIFY, {"channel": channel})


_NOTIFY = text("SELECT set_config('synchronous_commit', 'off', true), pg_notify(:channel, '')")
"""A notification gets a transaction id, and so would wait for the disk, which it has no need of. Local to the statement's
transaction, so it works through a transaction pooler."""

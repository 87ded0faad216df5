"""One consumer at a time: a lease in the bucket, taken, renewed and released by revision.

No clock is compared with another: who waits for a lease watches its revision, and takes it when that has not changed for
as long as its holder said, by the watcher's own clock. The holder counts from before it renewed.
"""

from __future__ import annotations

import asyncio
import time
from typing import Self

from ...errors import LeaseLost, ProviderUnavailable
from ...signals import Leased, Signals, logger
from .jetstream import Bucket, Conflict

STANDBY_SECONDS = 0.25
"""Between looks at a lease that another holds."""


class Lease:
    """Held from :meth:`taken` until :meth:`release`."""

    def __init__(self, bucket: Bucket, key: str, owner: str, seconds: float, about: Leased, signals: Signals) -> None:
        self._bucket = bucket
        self._key = key
        self._owner = owner
        self._seconds = seconds
        self._about = about
        self._signals = signals
        self._revision = 0
        self._valid_until = 0.0
        self._keeper: asyncio.Task[None] | None = None
        self._lost = False
        self._renewing = asyncio.Lock()

    @property
    def lost(self) -> bool:
        """Whether another has it."""
        return self._lost

    async def taken(self) -> Self:
        """Wait until it is ours."""
        seen, since = 0, 0.0
        while True:
            try:
                holder, revision = await self._bucket.get(self._key)
                if revision != seen or not since:
                    seen, since = revision, time.monotonic()
                if await self._tried(holder, revision, time.monotonic() - since):
                    break
            except ProviderUnavailable as error:
                logger.debug("the lease %s cannot be read: %s", self._key, error)
                since = 0.0
            await asyncio.sleep(min(STANDBY_SECONDS, self._seconds / 4))
        self._keeper = asyncio.create_task(self._keep(), name=f"sqla-events-{self._key}")
        self._signals.emit(self._about)
        return self

    async def _tried(self, holder: dict[str, object] | None, revision: int, unchanged: float) -> bool:
        if holder and holder["owner"] and unchanged < float(str(holder["seconds"])):
            return False
        self._revision = revision
        try:
            await self._put(self._owner)
        except Conflict:
            return False
        return True

    async def _put(self, owner: str) -> None:
        asked = time.monotonic()
        value = {"owner": owner, "seconds": self._seconds}
        self._revision = await self._bucket.put(self._key, value, self._revision)
        self._valid_until = asked + self._seconds

    async def _keep(self) -> None:
        while not self._lost:
            await asyncio.sleep(self._seconds / 3)
            try:
                await self.renew()
            except (ProviderUnavailable, LeaseLost) as error:
                logger.debug("the lease %s was not renewed: %s", self._key, error)

    async def renew(self) -> None:
        """Hold it for longer.

        :raises LeaseLost: if another has it.
        :raises ProviderUnavailable: if NATS does not answer; try again.
        """
        async with self._renewing:
            if not self._lost:
                await self._renew()
        if self._lost:
            raise LeaseLost(f"{self._owner} lost {self._key}")

    async def _renew(self) -> None:
        try:
            await self._put(self._owner)
        except Conflict:  # another's write, or ours, of which the answer was lost
            holder, revision = await self._bucket.get(self._key)
            self._lost = not holder or holder["owner"] != self._owner
            self._revision = revision

    async def check(self) -> None:
        """Return while it is ours; where it ran out, renew it first.

        :raises LeaseLost: if another has it.
        """
        if self._lost or time.monotonic() > self._valid_until:
            await self.renew()

    async def release(self) -> None:
        """Let another have it at once."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if not self._lost:
            try:
                await self._put("")
            except (Conflict, ProviderUnavailable) as error:
                logger.debug("the lease %s was not given back: %s", self._key, error)

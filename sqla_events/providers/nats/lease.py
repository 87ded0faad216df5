"""One consumer at a time: a lease in the bucket, taken, renewed and released by revision; and a fair share of them.

No clock is compared with another: who waits for a lease watches its revision, and takes it when that has not changed for
as long as its holder said, by the watcher's own clock. The holder counts from before it renewed.

A process takes what is free. Where another holds at least two more of a group's leases, it writes its name as claimant into
half of the difference; the holder sees that when it renews, lets what it has handed out be settled, and gives the lease
back, which the claimant may take then before anybody else.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from ...errors import LeaseLost, ProviderUnavailable
from ...signals import Leased, Signals, logger
from .jetstream import Bucket, Conflict

STANDBY_SECONDS = 0.25
"""Between looks at a lease that another holds."""
REFUSED_LEASES = 10
"""A claim that cannot be met within a lease is refused for so many."""

Value = dict[str, Any]
"""``owner`` (empty: free), ``seconds``, ``claimant``."""


@dataclass
class Share:
    """A process among those that consume a group: its name, the group's leases, and which of them it waits for."""

    bucket: Bucket
    owner: str
    keys: Sequence[str]
    waiting: set[str] = field(default_factory=set)

    async def claim(self, key: str) -> None:
        """Ask for this lease, if it is among those that would make our share even with that of whoever has most."""
        if len(self.keys) == 1:
            return
        found = dict(zip(self.keys, await asyncio.gather(*map(self.bucket.get, self.keys)), strict=True))
        if key in to_claim({one: value or {} for one, (value, _) in found.items()}, self.owner, self.waiting):
            value, revision = found[key]
            with suppress(Conflict):
                await self.bucket.put(key, {**value, "claimant": self.owner}, revision)


def to_claim(leases: dict[str, Value], me: str, waiting: set[str]) -> list[str]:
    """Leases of whoever has most, so many that we would have as many; what is claimed counts as moved."""
    counts = Counter(one.get("claimant") or one.get("owner") or "" for one in leases.values())
    mine, _ = counts.pop(me, 0), counts.pop("", 0)
    richest = max(counts, key=lambda owner: (counts[owner], owner), default="")
    share = max((counts[richest] - mine) // 2, 0)
    theirs = [key for key, one in leases.items() if one.get("owner") == richest and not one.get("claimant") and key in waiting]
    return theirs[:share]


class Lease:
    """Held from :meth:`taken` until :meth:`release`."""

    def __init__(self, share: Share, key: str, seconds: float, about: Leased, signals: Signals) -> None:
        self._share = share
        self._bucket = share.bucket
        self._key = key
        self._owner = share.owner
        self._seconds = seconds
        self._about = about
        self._signals = signals
        self._revision = 0
        self._valid_until = 0.0
        self._keeper: asyncio.Task[None] | None = None
        self._lost = False
        self._renewing = asyncio.Lock()
        self._claimant = ""
        self._claimed_at = 0.0
        self._refused_until = 0.0

    @property
    def lost(self) -> bool:
        """Whether another has it."""
        return self._lost

    @property
    def claimed(self) -> bool:
        """Whether another is to have it as soon as what is in hand is settled."""
        return bool(self._claimant)

    async def taken(self) -> Self:
        """Wait until it is ours."""
        self._share.waiting.add(self._key)
        try:
            await self._wait()
        finally:
            self._share.waiting.discard(self._key)
        self._keeper = asyncio.create_task(self._keep(), name=f"sqla-events-{self._key}")
        self._signals.emit(self._about)
        return self

    async def _wait(self) -> None:
        seen, since, renewals = 0, 0.0, 0
        while True:
            try:
                holder, revision = await self._bucket.get(self._key)
                if revision != seen or not since:
                    seen, since, renewals = revision, time.monotonic(), renewals + 1
                if await self._tried(holder or {}, revision, time.monotonic() - since):
                    return
                if renewals > 2:  # it is held by somebody who lives
                    await self._share.claim(self._key)
            except ProviderUnavailable as error:
                logger.debug("the lease %s cannot be read: %s", self._key, error)
                since = 0.0
            await asyncio.sleep(min(STANDBY_SECONDS, self._seconds / 4))

    async def _tried(self, holder: Value, revision: int, unchanged: float) -> bool:
        """Take it, if it is free or ran out. What is free is the claimant's for a while."""
        barred = holder.get("owner") or (holder.get("claimant") or self._owner) != self._owner
        if barred and unchanged < float(holder["seconds"]):
            return False
        self._revision = revision
        try:
            await self._put(self._owner)
        except Conflict:
            return False
        return True

    async def _put(self, owner: str) -> None:
        asked = time.monotonic()
        value = {"owner": owner, "seconds": self._seconds, "claimant": self._claimant}
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
        if self._claimant and time.monotonic() > self._claimed_at + self._seconds:
            self._claimant = ""  # what is in hand takes its time
            self._refused_until = time.monotonic() + REFUSED_LEASES * self._seconds
        try:
            await self._put(self._owner)
        except Conflict:  # a claim, another's write, or ours, of which the answer was lost
            holder, revision = await self._bucket.get(self._key)
            self._lost = not holder or holder["owner"] != self._owner
            self._revision = revision
            if not self._lost:
                self._note_claim(str(holder.get("claimant") or ""))

    def _note_claim(self, claimant: str) -> None:
        if claimant and not self._claimant and time.monotonic() > self._refused_until:
            self._claimant, self._claimed_at = claimant, time.monotonic()

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

"""Who reads which partitions of a group: each process takes what is free, and asks for its share of what others have.

Nobody keeps a list of the processes. The rows of the group say who holds how many leases; whoever has at least two fewer
than somebody else claims half of the difference from it. The owner sees the claim at its next commit, lets what it has in
hand finish, and gives the lease back, which only the claimant may take then. So leases differ by at most one between the
processes that want them, and a lone process has them all at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

from sqlalchemy.engine import Connection

from ..bridge import Database
from ..errors import ProviderUnavailable
from ..retry import FOREVER
from ..schema import Tables
from ..signals import Signals, Unavailable, logger
from . import leases
from .cut import cut
from .leases import Lease, Seat
from .settings import ReaderSettings

STANDBY_SECONDS = 0.25
"""Between looks at leases that others hold."""


@dataclass(frozen=True)
class Won:
    """A lease that is ours."""

    lease: Lease
    asked: float
    """When it was asked for (monotonic): it lasts from then."""


@dataclass(frozen=True)
class Sought:
    """What one look brought."""

    won: Sequence[Lease] = ()
    claims: Sequence[int] = ()
    fits: bool = True
    """Whether the group is cut as we are configured; if not, others still read it otherwise."""


def seek(connection: Connection, tables: Tables, settings: ReaderSettings, wanted: Collection[int]) -> Sought:
    """Take what is free of the wanted partitions; where nothing is, claim a share of what others have."""
    seats = leases.survey(connection, tables, settings.group)
    if any(seat.partitions != settings.partitions for seat in seats) or len(seats) < settings.partitions:
        if not cut(connection, tables, settings):
            return Sought(fits=False)
        seats = leases.survey(connection, tables, settings.group)
    numbers = to_take(seats, settings.owner, wanted)
    tries = [leases.acquire(connection, tables, replace(settings, partition=number)) for number in numbers]
    won = [lease for lease in tries if lease is not None]
    claims = [] if won else to_claim(seats, settings.owner, wanted)
    for number in claims:
        leases.claim(connection, tables, replace(settings, partition=number))
    return Sought(won, claims)


def to_take(seats: Sequence[Seat], me: str, wanted: Collection[int]) -> list[int]:
    """The wanted partitions that are free for us."""
    return [one.partition for one in seats if one.partition in wanted and {one.owner, one.claimant} <= {None, me}]


def to_claim(seats: Sequence[Seat], me: str, wanted: Collection[int]) -> list[int]:
    """Wanted partitions of whoever has most, so many that we would have as many as it. What is claimed counts as moved."""
    counts = Counter(one.claimant or one.owner for one in seats)
    mine = counts.pop(me, 0)
    counts.pop(None, None)
    richest = max(counts, key=lambda owner: (counts[owner], str(owner)), default=None)
    share = max((counts[richest] - mine) // 2, 0)
    theirs = [one.partition for one in seats if one.owner == richest and one.claimant is None and one.partition in wanted]
    return theirs[:share]


class Spread:
    """The partitions of one group for one process; made by :func:`spread`."""

    def __init__(self, database: Database, tables: Tables, settings: ReaderSettings, signals: Signals) -> None:
        self._database = database
        self._tables = tables
        self._settings = settings
        self._signals = signals
        self._wanted: dict[int, asyncio.Future[Won]] = {}
        self._asked = asyncio.Event()
        self._looking: asyncio.Future[Sought] | None = None
        self._interrupted = False
        self._claimed = False
        self._told = False

    async def won(self, partition: int) -> Won:
        """Wait for the lease of a partition.

        :raises SchemaError: if the tables are missing or outdated.
        """
        future: asyncio.Future[Won] = asyncio.get_running_loop().create_future()
        self._wanted[partition] = future
        self._asked.set()
        try:
            return await future
        except asyncio.CancelledError:
            self._wanted.pop(partition, None)
            if future.done() and not future.cancelled() and future.exception() is None:
                await self._give_back(future.result().lease)
            raise

    async def run(self) -> None:
        """Look at once when a partition is wanted, and every now and then while one is."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            await asyncio.sleep(0)  # whoever else asks at the same moment
            await self._look_or_fail()
            if self._wanted:
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(STANDBY_SECONDS, self._settings.lease / 4)):
                        await self._asked.wait()
                self._asked.set()

    async def _look_or_fail(self) -> None:
        self._interrupted = True
        try:
            await self._look()
        except Exception as error:
            self._fail(error)
        self._interrupted = False

    async def _look(self) -> None:
        asked = time.monotonic()
        sought = await self._sought()
        self._tell(sought)
        self._claimed |= bool(sought.claims)
        for lease in sought.won:
            future = self._wanted.pop(lease.partition, None)
            if future is None or future.done():
                await self._give_back(lease)
            else:
                future.set_result(Won(lease, asked))

    async def _sought(self) -> Sought:
        failures = 0
        while True:
            call = self._database.run(seek, self._tables, self._settings, frozenset(self._wanted))
            self._looking = asyncio.ensure_future(call)
            try:
                return await asyncio.shield(self._looking)
            except ProviderUnavailable as error:
                failures += 1
                delay = FOREVER.delay(failures)
                self._signals.emit(Unavailable("database", str(error), delay))
                await asyncio.sleep(delay)

    def _tell(self, sought: Sought) -> None:
        if not sought.fits and not self._told:
            logger.warning(
                "the setting 'partitions' is %d and others read group %r with another number; waiting until they have stopped",
                self._settings.partitions,
                self._settings.group,
            )
        self._told = not sought.fits

    async def leave(self) -> None:
        """Give back what a look that was interrupted has won, and withdraw our claims."""
        with suppress(Exception):  # what cannot be given back expires
            if self._interrupted and self._looking is not None:
                for lease in (await self._looking).won:
                    await self._give_back(lease)
            if self._claimed:
                await self._database.run(leases.withdraw, self._tables, self._settings)

    async def _give_back(self, lease: Lease) -> None:
        with suppress(ProviderUnavailable):  # it expires
            await self._database.run(leases.release, self._tables, lease)

    def _fail(self, error: Exception) -> None:
        wanted, self._wanted = self._wanted, {}
        for future in wanted.values():
            if not future.done():
                future.set_exception(error)


@asynccontextmanager
async def spread(
    database: Database, tables: Tables, settings: ReaderSettings, signals: Signals
) -> AsyncIterator[Spread]:
    """What of a group's partitions this process may read, as long as the block lasts."""
    one = Spread(database, tables, settings, signals)
    looking = asyncio.create_task(one.run(), name=f"sqla-events-spread-{settings.group}")
    try:
        yield one
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        await one.leave()

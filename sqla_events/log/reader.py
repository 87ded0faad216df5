"""A reader of the log: holds the lease of one partition of a group, hands out what its position lacks, commits.

One connection reads, in autocommit; commits come from the pool a few times a second, so reading overlaps everything. A
crash repeats what was settled since the last commit and nothing else.

Safe against pauses: nothing is handed out after the lease could have expired unless a commit, which names the epoch, has
renewed it first. Whoever lost the lease gets LeaseLost and stops.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from ..bridge import Database, Doorbell, Ear, Held
from ..errors import LeaseLost, ProviderUnavailable
from ..event import now
from ..position import Position, Ranges, ranges_of
from ..provider import Failure
from ..retry import FOREVER
from ..schema import Tables
from ..signals import Leased, Signals, logger
from . import leases
from .again import Again
from .delivery import LogDelivery
from .leases import Progress
from .ledger import Ledger
from .outcomes import Outcomes
from .pace import Pace
from .reading import Reading, Share
from .rows import Row
from .settings import ReaderSettings
from .spread import Spread, Won, spread
from .troubles import Past, attempts_of, buried_of, due_of, troubles_within
from .wanted import Wanted, wanted_by

COMMIT_SECONDS = 0.2
"""Between commits while busy; a position with very many gaps is written more seldom."""
GAPS_A_SECOND = 10_000
URGENT = 10_000
"""So many missing numbers that are read every time are worth a commit now, which gives them a horizon."""
DEAF_LEASES = 10
"""For so many times the lease a claim is not heard after one that could not be met: what is in hand takes long."""
ROOM_SECONDS = 0.01
"""For which a read is put off while more than half of the prefetch is out."""
BATCH_BYTES = 16_000_000
"""Payload of one read, about; batches of large events are shorter."""


class Reader:
    """Made by :func:`leased`, which waits for the lease and gives it back at the end."""

    def __init__(
        self,
        database: Database,
        held: Held,
        tables: Tables,
        settings: ReaderSettings,
        won: Won,
        ear: Ear,
    ) -> None:
        self.lease = lease = won.lease
        self._database = database
        self._held = held
        self._tables = tables
        self._settings = settings
        self._known: dict[int, Past] = {}
        self._ledger = Ledger(lease.position)
        self._outcomes = Outcomes({})
        share = Share(settings.partition, settings.partitions)
        self._reading = Reading(tables, database.dialect, database.driver, share, settings.patterns)
        everything = Reading(tables, database.dialect, database.driver, share)
        self._again = Again(self, held, tables, settings.group, everything)
        self._wanted = wanted_by(settings.patterns)
        self._skipped = False
        """Whether the last read found nothing but what nobody here wants."""
        self._ear = ear
        self._pace = Pace(settings.poll_interval)
        self._valid_until = won.asked + settings.lease
        self._ended: BaseException | None = None
        self._committing = asyncio.Lock()
        self._dirty = asyncio.Event()
        self._hurry = asyncio.Event()
        self._room = asyncio.Event()
        self._committed_at = 0.0
        self._started = now()
        self._failures = held.failures
        self._last: tuple[int, str] | None = None
        self._row_bytes = 0.0
        self._claimed = False
        self._deaf_until = 0.0

    async def recall(self) -> None:
        """Learn what is known about events that will be read again, before anything is read."""
        gaps = self.lease.position.gaps
        self._known = await self._held.run(troubles_within, self._tables, self.lease.group, gaps)
        self._outcomes = Outcomes(self._known)
        self._failures = self._held.failures

    # Reading -----------------------------------------------------------------------------------------------------

    async def batches(self) -> AsyncGenerator[Sequence[LogDelivery], None]:
        """What the position lacks, oldest first; ends when another process gets the lease for its share.

        :raises LeaseLost: when another owner has the lease.
        """
        while True:
            if self._claimed and await self._cleared():
                return
            await self._wait_for_room()
            deliveries = await self._available(self._next)
            if self._ended is not None:
                raise self._ended
            if deliveries:
                self._pace.found()
                yield deliveries
            elif self._skipped:
                self._skipped = False
            elif await self._ear.wait(self._pace.pause()):
                self._pace.rung()

    async def _cleared(self) -> bool:
        """Whether all that is in hand was settled while the claim lasts: the lease can go without anything coming twice."""
        deadline = time.monotonic() + self._settings.lease
        while self._in_hand and self._ended is None and (left := deadline - time.monotonic()) > 0:
            self._room.clear()
            await _wait(self._room, left)
        if self._in_hand:
            self._claimed, self._deaf_until = False, deadline + DEAF_LEASES * self._settings.lease
        return self._claimed and self._ended is None

    async def _next(self) -> Sequence[LogDelivery]:
        limit = max(1, min(self._settings.batch_size, self._settings.prefetch - self._in_hand))
        again = await self._again.read(self._outcomes, limit)
        fresh = await self._read()
        if (fresh or again) and time.monotonic() > self._valid_until:
            await self.commit()  # we may have been paused beyond the lease: renew it, or learn that it is gone
        return [*again, *fresh]

    async def _read(self) -> list[LogDelivery]:
        rows = await self._taken()
        if rows is None:
            rows = await self._taken(everything=True)
        if self._ledger.changed:
            self._dirty.set()
        if self._ledger.unproven > URGENT:
            self._hurry.set()
        return self._handed_out(rows) if rows else []

    async def _taken(self, everything: bool = False) -> list[Row] | None:
        if self._failures != self._held.failures:
            await self._resume()
        plan = self._ledger.plan(self._limit(), everything)
        return self._ledger.take(plan, await self._held.read(self._reading, plan))

    def _limit(self) -> int:
        room = self._settings.prefetch - self._in_hand
        limit = min(self._settings.batch_size, room) * self._settings.partitions
        return max(1, min(limit, int(BATCH_BYTES / self._row_bytes)) if self._row_bytes else limit)

    def _handed_out(self, rows: Sequence[Row]) -> list[LogDelivery]:
        if self._last is None or rows[-1].seq > self._last[0]:
            self._last = (rows[-1].seq, rows[-1].id)
        some = rows[:: len(rows) // 32 + 1]
        self._row_bytes = max(sum(len(row.payload) for row in some) / len(some), self._row_bytes / 2)
        if self._wanted is not None:
            rows = self._chosen(rows, self._wanted)
        if not self._known:
            return [LogDelivery(self, row) for row in rows]
        return [self._with_past(row) for row in rows]

    def _chosen(self, rows: Sequence[Row], wanted: Wanted) -> list[Row]:
        """What the group's patterns match; the rest is settled here and now."""
        unwanted = [row for row in rows if not wanted[row.type]]
        for row in unwanted:
            if row.seq in self._known:  # of a subscription that there was: what is known of its attempts goes
                self.acknowledged(self._with_past(row))
        self.settle([row.seq for row in unwanted])
        self._skipped = len(unwanted) == len(rows)
        return [row for row in rows if wanted[row.type]]

    def _with_past(self, row: Row) -> LogDelivery:
        past = self._known.pop(row.seq, None)
        if past is None:
            return LogDelivery(self, row)
        return LogDelivery(self, row, attempts_of(past), buried_of(past), due=due_of(past))

    async def _resume(self) -> None:
        """After the connection was lost: nothing is known about the server's transactions, and it may be another server.

        :raises LeaseLost: if the log is not what it was; the next owner begins with what it is now.
        """
        failures = self._held.failures
        self._ledger.forget_horizons()
        async with self._committing:
            highs, last = self._ledger.possible_highs, self._last_beyond()
            if not await self._held.run(leases.still_holds, self._tables, self.lease, highs, last):
                self._ended = LeaseLost(
                    f"the log changed while the connection of group {self.lease.group!r} was lost; reading begins anew"
                )
                raise self._ended
        self._failures = failures

    def _last_beyond(self) -> tuple[int, str] | None:
        """The last row read, where it is not committed yet (retention may have deleted it otherwise)."""
        return self._last if self._last and self._last[0] > self._ledger.last_committed.high else None

    # Settling ----------------------------------------------------------------------------------------------------

    def acknowledged(self, delivery: LogDelivery) -> None:
        """A delivery is through."""
        if delivery.only is not None:
            self._outcomes.redelivered(delivery.row.seq, delivery.only)
            self._changed()
        else:
            self._outcomes.acknowledged(delivery.row.seq)
            self._ledger.settle_one(delivery.row.seq)
            self._changed()

    def failed(self, delivery: LogDelivery, failure: Failure, again_at: float | None) -> None:
        """A handler failed; it will be tried again at that time (Unix seconds), or never (None)."""
        self._outcomes.failed(delivery.row.seq, failure, again_at, delivery.only is not None)
        self._changed()

    def settle(self, seqs: Sequence[int]) -> None:
        """Events are through, many at a time: for those that had no trouble here."""
        self._ledger.settle(seqs)
        self._changed()

    def _changed(self) -> None:
        self._dirty.set()
        if self._in_hand <= self._settings.prefetch // 2:
            self._room.set()

    @property
    def _in_hand(self) -> int:
        return len(self._ledger.in_hand) + len(self._outcomes.redriven)

    async def _wait_for_room(self) -> None:
        """Backpressure: wait while all is out, and a moment longer for a read that is worth its while."""
        while self._in_hand > self._settings.prefetch // 2 and self._ended is None:
            self._room.clear()
            await _wait(self._room, ROOM_SECONDS)
            if self._in_hand < self._settings.prefetch:
                return

    @property
    def position(self) -> Position:
        """What is done now, whether it is committed or not."""
        return self._ledger.position

    def position_after(self, seqs: Sequence[int]) -> str:
        """The position once these are settled, as JSON: ``{"high":…,"gaps":[[…]]}``."""
        return self._ledger.position.settle(ranges_of(seqs)).text

    async def rewind(self, kept: Position) -> None:
        """The transport has no more than ``kept`` of what it was given: have the next owner read the rest again.

        :raises LeaseLost: always; whoever begins anew begins there.
        :raises ProviderUnavailable: if the database does not answer; nothing has changed.
        """
        async with self._committing:
            position = self._ledger.position.merge(kept)
            await self._database.run(leases.rewind, self._tables, self.lease, position)
            self._ended = LeaseLost(f"group {self.lease.group!r} goes back to {position.high} and reads again from there")
        raise self._ended

    async def has_row(self, seq: int, identity: str) -> bool:
        """Whether the log has this event under this number; not so if the server fell back and gave the number out again."""
        return await self._database.run(leases.has_row, self._tables, seq, identity)

    async def has_any(self, seqs: Ranges) -> bool:
        """Whether the log has an event of our partition under any of these numbers."""
        if not await self._database.run(leases.has_any, self._tables, seqs):
            return False
        return self._settings.partitions == 1 or await self._held.run(self._reading.has_any, seqs)

    # Committing --------------------------------------------------------------------------------------------------

    async def commit(self) -> None:
        """Make what was settled so far durable and renew the lease.

        :raises LeaseLost: if another owner has the lease; nothing was written.
        :raises ProviderUnavailable: if the database does not answer; the next commit writes it.
        """
        async with self._committing:
            self._dirty.clear()
            self._hurry.clear()
            await self._commit()

    async def _commit(self) -> None:
        asked = time.monotonic()
        highs, last = self._ledger.possible_highs, self._last_beyond()
        commit, troubles = self._ledger.begin_commit(), self._outcomes.take()
        moved = bool(commit.settled) or commit.position.high != self._ledger.last_committed.high
        progress = Progress(commit.position, highs, last, commit.filled, self._started if moved else None, troubles)
        try:
            done = await self._database.run(leases.commit, self._tables, self.lease, progress, self._settings.lease)
        except BaseException:
            self._ledger.failed(commit)
            self._outcomes.give_back(troubles)
            self._dirty.set()
            raise
        self._ledger.committed(commit, done.horizon)
        self._outcomes.written(troubles)
        self._started = now()
        self._committed_at = time.monotonic()
        self._valid_until = asked + self._settings.lease
        if done.claimed and not self._claimed and self._committed_at > self._deaf_until:
            self._claimed = True
            self._ear.hear()

    async def keep(self) -> None:
        """Commit every now and then while there is something to commit, and renew the lease; runs beside :meth:`batches`."""
        try:
            while True:
                await self._until_due()
                await self._available(self.commit)
        except Exception as error:
            self._ended = self._ended or error
            self._room.set()
            self._ear.hear()

    async def _until_due(self) -> None:
        longest = self._settings.lease / 3
        await _wait(self._dirty, longest)
        if self._dirty.is_set():
            interval = min(max(COMMIT_SECONDS, self._ledger.missing / GAPS_A_SECOND), longest)
            await _wait(self._hurry, self._committed_at + interval - time.monotonic())

    async def _available(self, call: Callable[[], Awaitable[Sequence[LogDelivery] | None]]) -> Sequence[LogDelivery]:
        """Call until the database answers, for ever."""
        failures = 0
        while True:
            try:
                return await call() or ()
            except ProviderUnavailable as error:
                failures += 1
                self._failures = -1  # whoever reads next makes sure that the log is still the same
                delay = FOREVER.delay(failures)
                logger.warning("the log does not answer, next try in %.2f s: %s", delay, error)
                await asyncio.sleep(delay)
            if self._ended is not None:
                raise self._ended

    async def close(self) -> None:
        """Commit what is settled and give the lease back, so that a standby takes it at once."""
        self._ear.close()
        if isinstance(self._ended, LeaseLost):
            return
        try:
            await self.commit()
            await self._database.run(leases.release, self._tables, self.lease)
        except (LeaseLost, ProviderUnavailable) as error:
            logger.warning("the lease of group %r was not given back: %s", self.lease.group, error)


CLOSE_SECONDS = 5.0
"""How long whoever is cancelled while a lease is given back waits for that."""


async def _to_the_end(closing: Coroutine[Any, Any, None]) -> None:
    """Close, a cancellation meanwhile too: a lease that is given up must not be taken for held by a process that has ended."""
    task = asyncio.ensure_future(closing)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=CLOSE_SECONDS)
        raise


async def _wait(event: asyncio.Event, seconds: float) -> None:
    if seconds > 0 and not event.is_set():
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()


@asynccontextmanager
async def leased(
    database: Database,
    tables: Tables,
    settings: ReaderSettings,
    signals: Signals,
    *bells: Doorbell,
    group: Spread | None = None,
) -> AsyncIterator[Reader]:
    """A reader once the lease is ours; on leaving, what is settled is committed and the lease given back.

    :param group: where several partitions are wanted: what spreads them.
    """
    won = await (_won(database, tables, settings, signals) if group is None else group.won(settings.partition))
    lease = won.lease
    async with database.hold(autocommit=True) as held:
        reader = Reader(database, held, tables, settings, won, Ear(*bells))
        signals.emit(Leased(lease.group, lease.partition, lease.epoch, held=True))
        try:
            await reader.recall()
            keeper = asyncio.create_task(reader.keep(), name=f"sqla-events-lease-{settings.group}-{settings.partition}")
            try:
                yield reader
            finally:
                keeper.cancel()
                await asyncio.gather(keeper, return_exceptions=True)
        finally:
            await _to_the_end(reader.close())
            signals.emit(Leased(lease.group, lease.partition, lease.epoch, held=False))


async def _won(database: Database, tables: Tables, settings: ReaderSettings, signals: Signals) -> Won:
    async with spread(database, tables, settings, signals) as group:
        return await group.won(settings.partition)

"""From deliveries to handlers: match, line up, attempt, retry or bury, acknowledge.

Lanes. What must stay in order lines up: one lane for each subscription and row (:func:`event.lane_of`). Only the head
of a lane is ever with a worker, so events of one row never run out of order or at the same time, while a row that waits
for its retry holds up neither a worker, nor another row, nor another subscription of the same event.

A delivery is acknowledged when every subscription is through with it: completed, or buried as a dead letter.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from . import jobs
from .errors import Reject, RetryLater
from .event import Event
from .jobs import Job, Track, Upcast
from .provider import Delivery, Failure, Interest, Provider
from .retry import Attempts
from .signals import Buried, Processed, Queued, Retrying, Signals, logger
from .subscription import Subscription, Subscriptions
from .workers import Tasks, Threads


@dataclass(frozen=True)
class ConsumerSettings:
    """How one process consumes a group."""

    consumer: str
    """This process's name."""
    worker_count: int = 10
    """Handlers that run at the same time: so many coroutines, and so many threads for plain functions."""
    buffer_size: int = 1000
    """Deliveries in hand at most."""


class _Stopping(Exception):
    pass


class Consumer:
    """Runs the handlers of one group on one provider until it is stopped."""

    def __init__(
        self,
        provider: Provider,
        group: str,
        subscriptions: Subscriptions,
        settings: ConsumerSettings,
        signals: Signals,
        on_settled: Callable[[Event, BaseException | None], None] | None = None,
        upcast: Upcast | None = None,
    ) -> None:
        self._provider = provider
        self._group = group
        self._subscriptions = subscriptions
        self._settings = settings
        self._signals = signals
        self._on_settled = on_settled
        self._upcast = upcast
        self._held: dict[str, list[Job]] = {}
        """Attempts that wait until their subscription is resumed, by its name."""
        self._lanes: defaultdict[str, dict[str, Job]] = defaultdict(dict)
        """The last job of each lane, by the name of the subscription."""
        self._in_hand = 0
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = asyncio.Event()
        self._retries: set[asyncio.Task[None]] = set()
        self._tasks = Tasks(settings.worker_count, self._done)
        self._threads = Threads(settings.worker_count, self._done)

    async def run(self, drain: float = 30.0) -> None:
        """Consume until :meth:`stop`, then let what runs and what is lined up finish within ``drain`` seconds.

        What is not through by then, and what waits for a retry, is given back: it comes again after the next start.
        """
        stream = cast("AsyncGenerator[Sequence[Delivery], None]", self._provider.consume(self._interest()))
        try:
            await self._take_in(stream, drain)
        finally:
            await self._end(stream)

    def stop(self) -> None:
        """Take in nothing more; :meth:`run` ends when the rest is done. What a paused subscription holds is given back."""
        self._stopping.set()
        for job in (job for held in self._held.values() for job in held):
            if job.answer is not None:
                job.answer.cancel()

    def resume(self, name: str) -> None:
        """A subscription that was paused goes on where it stopped."""
        for job in self._held.pop(name, ()):
            self._start(job)

    @property
    def in_hand(self) -> int:
        """Deliveries that are not acknowledged yet."""
        return self._in_hand

    def _interest(self) -> Interest:
        return Interest(self._group, self._subscriptions.patterns, self._settings.consumer, self._settings.buffer_size)

    async def _take_in(self, stream: AsyncGenerator[Sequence[Delivery], None], drain: float) -> None:
        stopping = asyncio.create_task(self._stopping.wait())
        coming = asyncio.ensure_future(anext(stream))
        try:
            while True:
                await asyncio.wait({coming, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if stopping.done():
                    break
                self._receive(coming.result())
                coming = asyncio.ensure_future(anext(stream))
            await self._drained(drain)  # the stream stays open meanwhile, so that these are still acknowledged
        finally:
            stopping.cancel()
            coming.cancel()
            await asyncio.gather(coming, stopping, return_exceptions=True)

    async def _drained(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while self._running or self._retries:
                    await self._idle.wait()
                    if self._retries:  # those that sleep end at once, the others with the attempt they are in
                        await asyncio.wait(self._retries)
        except TimeoutError:
            return

    async def _end(self, stream: AsyncGenerator[Sequence[Delivery], None]) -> None:
        for task in list(self._retries):
            task.cancel()
        await self._tasks.stop()
        await self._threads.stop()
        await stream.aclose()
        self._signals.emit(Queued(self._group, 0))  # what is not through was given back

    # One delivery's way ------------------------------------------------------------------------------------------

    def _receive(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self._line_up(delivery)
        self._tell_size()

    def _tell_size(self) -> None:
        if self._signals:
            self._signals.emit(Queued(self._group, self._in_hand))

    def _line_up(self, delivery: Delivery) -> None:
        wanting = self._wanting(delivery)
        if not wanting:
            delivery.ack()
            return
        self._in_hand += 1
        track = Track(delivery, len(wanting), self._upcast)
        lane = delivery.lane
        for subscription in wanting:
            job = Job(track, subscription, lane)
            lanes = self._lanes[subscription.name]
            last = lanes.get(lane)
            lanes[lane] = job
            if last is None:
                self._start(job)
            else:
                last.following = job

    def _wanting(self, delivery: Delivery) -> Sequence[Subscription]:
        wanting: Sequence[Subscription] = self._subscriptions.matching(delivery.type)
        if delivery.only is not None:
            wanting = [one for one in wanting if one.name == delivery.only]
        if delivery.buried:
            wanting = [one for one in wanting if one.name not in delivery.buried]
        return wanting

    def _start(self, job: Job) -> None:
        if job.subscription.name in self._subscriptions.paused:
            self._held.setdefault(job.subscription.name, []).append(job)
            return
        due = job.track.delivery.due
        if due and job.answer is None and (seconds := due.get(job.subscription.name, 0.0) - time.time()) > 0:
            self._later(job, seconds)
            return
        self._running += 1
        self._idle.clear()
        (self._tasks if job.subscription.is_async else self._threads).put(job)

    def _later(self, job: Job, seconds: float) -> None:
        """Its next attempt, which an earlier process put off, is not due yet."""

        async def wait() -> None:
            with suppress(_Stopping):  # given back
                await self._pause(seconds)
                self._start(job)

        task = asyncio.create_task(wait(), name=f"sqla-events-retry-{job.subscription.name}")
        self._retries.add(task)
        task.add_done_callback(self._retries.discard)

    def _done(self, job: Job) -> None:
        """An attempt is over: on to its retry controller if it has one, else decide."""
        self._running -= 1
        if job.answer is None and job.error is None:
            self._through(job)
        else:
            self._decide(job)
        if not self._running:
            self._idle.set()

    def _decide(self, job: Job) -> None:
        if job.answer is not None:
            if not job.answer.done():
                job.answer.set_result(None)
        else:
            task = asyncio.create_task(self._retry(job), name=f"sqla-events-retry-{job.subscription.name}")
            self._retries.add(task)
            task.add_done_callback(self._retries.discard)

    async def _retry(self, job: Job) -> None:
        """Drive a job whose first attempt failed through tenacity until it is through; the lane waits, no worker does."""
        subscription, delivery = job.subscription, job.track.delivery
        attempts = Attempts(subscription.policy, delivery.attempts.get(subscription.name, 0), subscription.retry_on)

        async def attempt() -> None:
            if job.answer is None:
                job.answer = asyncio.get_running_loop().create_future()  # the first failure is in job.error already
            else:
                job.answer = asyncio.get_running_loop().create_future()
                job.failed = attempts.failed
                self._start(job)
                await job.answer
            if job.error is not None:
                attempts.note(job.error)
                raise job.error

        def before_sleep(delay: float, error: BaseException) -> None:
            delivery.retry(_failure(subscription, attempts.failed, error), delay)
            logger.info("%s failed, next try in %.2f s: %s", self._named(job), delay, _text(error))
            self._signals.emit(
                Retrying(delivery.type, self._group, subscription.name, attempts.failed, delay, _text(error))
            )

        try:
            await attempts.retrying(self._pause, before_sleep)(attempt)
        except (_Stopping, asyncio.CancelledError):
            job.error = None
            return  # given back: its lane stays held, so that nothing behind it overtakes
        except BaseException:
            self._bury(job, attempts.failed)
        self._through(job)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return
        raise _Stopping

    def _bury(self, job: Job, failed: int) -> None:
        assert job.error is not None
        subscription, delivery = job.subscription, job.track.delivery
        delivery.bury(_failure(subscription, failed, job.error))
        logger.error("%s made a dead letter: %s", self._named(job), _text(job.error))
        self._signals.emit(Buried(delivery.type, self._group, subscription.name, _text(job.error)))

    def _named(self, job: Job) -> str:
        return f"subscription {job.subscription.name!r} of group {self._group!r} on {job.track.delivery.type} (row {job.lane})"

    def _through(self, job: Job) -> None:
        """One subscription is through with one delivery: the next of its lane, and the acknowledgement if it was the last."""
        if self._signals:
            self._tell(job)
        if job.following is not None:
            self._start(job.following)
        else:
            del self._lanes[job.subscription.name][job.lane]
        track = job.track
        track.pending -= 1
        track.error, job.error = track.error or job.error, None
        if not track.pending:
            if self._on_settled is not None:
                self._report(track, track.error)
            track.error = None
            track.delivery.ack()
            self._in_hand -= 1
            if not self._in_hand % 100:  # what is received tells it as well, but nothing may come for long
                self._tell_size()

    def _report(self, track: Track, error: BaseException | None) -> None:
        assert self._on_settled is not None
        try:
            event = track.delivery.event() if self._upcast else track.event
        except Exception:
            return  # not decodable: buried as such, and nobody here published it
        self._on_settled(event, error)

    def _tell(self, job: Job) -> None:
        status = "completed" if job.error is None else "failed"
        try:
            source = str(job.track.event.source)
        except Exception:
            source = "unknown"
        subscription = job.subscription.name
        self._signals.emit(Processed(source, job.track.delivery.type, status, job.duration, self._group, subscription))


def _failure(subscription: Subscription, failed: int, error: BaseException) -> Failure:
    return Failure(subscription.name, _text(error), _trace(error), failed)


def _trace(error: BaseException) -> str:
    """From the handler on: the frames before it are ours and tenacity's."""
    frame = start = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == jobs.__file__:
            start = frame.tb_next or frame
        frame = frame.tb_next
    return "".join(traceback.format_exception(type(error), error, start))


def _text(error: BaseException) -> str:
    if isinstance(error, (Reject, RetryLater)) and error.args:
        return f"{type(error).__name__}: {error}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

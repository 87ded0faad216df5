"""The consumer alone, on a provider that only hands out what a test puts in."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from sqla_events.consumer import Consumer, ConsumerSettings
from sqla_events.errors import EventError, Reject, RetryLater
from sqla_events.event import Event
from sqla_events.provider import Failure, Interest
from sqla_events.retry import RetryPolicy
from sqla_events.signals import Fact, Queued, Signals
from sqla_events.subscription import Subscription, Subscriptions

FAST = RetryPolicy(max_retries=2, initial_delay=0.001, max_delay=0.002, jitter=0)


@dataclass(eq=False)
class Given:
    """A delivery that remembers what was done with it."""

    type: str = "public.users.create"
    lane: str = "1"
    number: int = 0
    attempts: dict[str, int] = field(default_factory=dict)
    due: dict[str, float] = field(default_factory=dict)
    buried: frozenset[str] = frozenset()
    only: str | None = None
    readable: bool = True
    acked: bool = False
    retried: list[Failure] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def event(self) -> Event:
        if not self.readable:
            raise EventError("not an event")
        return Event(type=self.type, payload=self.number)

    def ack(self) -> None:
        assert not self.acked, "acknowledged twice"
        self.acked = True

    def retry(self, failure: Failure, delay: float) -> None:
        self.retried.append(failure)

    def bury(self, failure: Failure) -> None:
        assert not self.acked
        self.failures.append(failure)


class Handing:
    """A provider with nothing but ``consume``."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Sequence[Given]] = asyncio.Queue()
        self.closed = False

    async def consume(self, interest: Interest) -> AsyncIterator[Sequence[Given]]:
        try:
            while True:
                yield await self.queue.get()
        finally:
            self.closed = True


class Bench:
    """A running consumer and what a test needs to look at it."""

    def __init__(
        self, *handlers: Callable[[Event], Any], workers: int = 4, policy: RetryPolicy = FAST, **rules: Any
    ) -> None:
        self.provider = Handing()
        self.subscriptions = Subscriptions()
        for number, handler in enumerate(handlers):
            self.subscriptions.add(Subscription(f"h{number}", ("*",), handler, "g", policy, **rules))
        settings = ConsumerSettings("me", worker_count=workers)
        self.signals = Signals()
        self.consumer = Consumer(self.provider, "g", self.subscriptions, settings, self.signals)  # type: ignore[arg-type]

    async def __aenter__(self) -> Bench:
        self.task = asyncio.create_task(self.consumer.run(drain=5))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.consumer.stop()
        await self.task

    def give(self, *deliveries: Given) -> None:
        self.provider.queue.put_nowait(deliveries)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def both_kinds(body: Callable[[Event], None]) -> list[Callable[[Event], Any]]:
    async def coroutine(event: Event) -> None:
        body(event)

    return [body, coroutine]


@pytest.mark.parametrize("kind", [0, 1])
async def test_order_is_kept_in_a_lane_and_everything_is_acknowledged(kind: int) -> None:
    """Each lane's events arrive in order, whatever the number of workers."""
    seen: dict[str, list[int]] = {}
    lock = threading.Lock()

    def note(event: Event) -> None:
        with lock:
            seen.setdefault(str(event.payload % 7), []).append(event.payload)

    given = [Given(lane=str(n % 7), number=n) for n in range(2000)]
    async with Bench(both_kinds(note)[kind]) as bench:
        bench.give(*given)
        await until(lambda: all(one.acked for one in given))
    assert seen == {str(lane): [n for n in range(2000) if n % 7 == lane] for lane in range(7)}


async def test_events_of_one_lane_never_run_at_the_same_time() -> None:
    """With many workers and a handler that waits, a lane has at most one event running."""
    running: dict[str, int] = {}
    worst = 0

    async def handler(event: Event) -> None:
        nonlocal worst
        lane = str(event.payload % 3)
        running[lane] = running.get(lane, 0) + 1
        worst = max(worst, running[lane])
        await asyncio.sleep(0.0005)
        running[lane] -= 1

    given = [Given(lane=str(n % 3), number=n) for n in range(90)]
    async with Bench(handler, workers=16) as bench:
        bench.give(*given)
        await until(lambda: all(one.acked for one in given))
    assert worst == 1


@pytest.mark.parametrize("kind", [0, 1])
async def test_a_failing_handler_is_retried_and_recovers(kind: int) -> None:
    """Two failures, then success: acknowledged, not buried, attempts reported to the provider."""
    calls = []

    def flaky(event: Event) -> None:
        calls.append(event.payload)
        if len(calls) < 3:
            raise ValueError("not yet")

    one = Given()
    async with Bench(both_kinds(flaky)[kind]) as bench:
        bench.give(one)
        await until(lambda: one.acked)
    assert len(calls) == 3
    assert [failure.attempts for failure in one.retried] == [1, 2]
    assert one.failures == []


async def test_retries_end_in_a_dead_letter_and_the_lane_goes_on() -> None:
    """max_retries=2 means three attempts; then the event is buried with error and traceback, and the next one runs."""
    calls = []

    def handler(event: Event) -> None:
        calls.append(event.payload)
        if event.payload == 0:
            raise ValueError("never")

    first, second = Given(number=0), Given(number=1)
    async with Bench(handler) as bench:
        bench.give(first, second)
        await until(lambda: second.acked)
    assert calls == [0, 0, 0, 1]
    assert first.acked
    (failure,) = first.failures
    assert (failure.subscription, failure.error, failure.attempts) == ("h0", "ValueError: never", 3)
    assert "in handler" in failure.traceback
    assert failure.traceback.count("File ") == 1, "frames of ours"


async def test_failures_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """An attempt that is repeated at INFO, a dead letter at ERROR, each with subscription, group, type and row."""

    def handler(event: Event) -> None:
        raise ValueError("never")

    caplog.set_level("INFO", "sqla_events")
    one = Given(number=0)
    async with Bench(handler) as bench:
        bench.give(one)
        await until(lambda: one.acked)
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in told] == ["INFO", "INFO", "ERROR"]
    assert told[-1][1] == f"subscription 'h0' of group 'g' on {one.type} (row {one.lane}) made a dead letter: ValueError: never"


async def test_the_size_of_the_queue_goes_down_when_nothing_more_comes() -> None:
    """It is told when events come, now and then while they are worked off, at the last, and 0 at the end of it all."""
    sizes: list[int] = []

    def tell(fact: Fact) -> None:
        if isinstance(fact, Queued):
            sizes.append(fact.size)

    many = [Given(number=number, lane=str(number)) for number in range(250)]
    async with Bench(lambda event: None) as bench:
        bench.signals.subscribe(tell)
        bench.give(*many)
        await until(lambda: all(one.acked for one in many))
        await until(lambda: len(sizes) > 3)
        assert sizes == [250, 200, 100, 0]
    assert sizes[-1] == 0


async def test_attempts_before_a_restart_count() -> None:
    """A delivery that comes with two failures of three allowed attempts has one left."""
    calls = []

    def handler(event: Event) -> None:
        calls.append(1)
        raise ValueError

    one = Given(attempts={"h0": 2})
    async with Bench(handler) as bench:
        bench.give(one)
        await until(lambda: one.acked)
    assert len(calls) == 1


async def test_a_waiting_retry_blocks_neither_other_lanes_nor_other_subscriptions() -> None:
    """One worker, one event that waits for its retry: everything else goes on, and its lane keeps its order."""
    seen: list[tuple[str, int]] = []
    release = asyncio.Event()

    async def stubborn(event: Event) -> None:
        if event.payload == 0 and not release.is_set():
            raise ValueError
        seen.append(("stubborn", event.payload))

    async def easy(event: Event) -> None:
        seen.append(("easy", event.payload))

    policy = RetryPolicy(max_retries=10_000, initial_delay=0.001, max_delay=0.001, jitter=0)
    blocked, behind, other = Given(number=0, lane="a"), Given(number=1, lane="a"), Given(number=2, lane="b")
    async with Bench(stubborn, easy, workers=1, policy=policy) as bench:
        bench.give(blocked, behind, other)
        await until(lambda: other.acked and ("easy", 1) in seen)
        assert not behind.acked
        release.set()
        await until(lambda: behind.acked)
    assert [entry for entry in seen if entry[0] == "stubborn"] == [("stubborn", 2), ("stubborn", 0), ("stubborn", 1)]


@pytest.mark.parametrize("kind", [0, 1])
async def test_reject_is_a_dead_letter_at_once(kind: int) -> None:
    """Reject skips the retries."""

    def handler(event: Event) -> None:
        raise Reject("unwanted")

    one = Given()
    async with Bench(both_kinds(handler)[kind]) as bench:
        bench.give(one)
        await until(lambda: one.acked)
    assert one.retried == []
    assert one.failures[0].error == "Reject: unwanted"


async def test_retry_later_waits_and_counts_nothing() -> None:
    """RetryLater may be raised more often than max_retries allows failures."""
    calls = []

    async def handler(event: Event) -> None:
        calls.append(1)
        if len(calls) <= 10:
            raise RetryLater(0.001)

    one = Given()
    async with Bench(handler) as bench:
        bench.give(one)
        await until(lambda: one.acked)
    assert one.failures == []
    assert {failure.attempts for failure in one.retried} == {0}


async def test_only_listed_exceptions_are_retried() -> None:
    """``retry_on`` decides; anything else is buried at once."""

    def handler(event: Event) -> None:
        raise KeyError("x")

    one = Given()
    async with Bench(handler, retry_on=(ValueError,)) as bench:
        bench.give(one)
        await until(lambda: one.acked)
    assert one.retried == []
    assert len(one.failures) == 1


async def test_timeout_is_a_failure() -> None:
    """A coroutine handler that takes too long is interrupted and retried."""

    async def handler(event: Event) -> None:
        await asyncio.Event().wait()

    one = Given()
    async with Bench(handler, timeout=0.001) as bench:
        bench.give(one)
        await until(lambda: one.acked)
    assert one.failures[0].error == "TimeoutError"


async def test_an_unreadable_event_is_buried_at_once() -> None:
    """Poison holds up nobody."""
    one, two = Given(readable=False), Given(number=2)
    async with Bench(lambda event: None) as bench:
        bench.give(one, two)
        await until(lambda: one.acked and two.acked)
    assert "cannot be decoded" in one.failures[0].error


async def test_a_plain_function_that_returns_a_coroutine_is_told() -> None:
    """A lambda around a coroutine function would silently do nothing: it is a dead letter that says so."""

    async def real(event: Event) -> None: ...

    one = Given()
    async with Bench(lambda event: real(event)) as bench:
        bench.give(one)
        await until(lambda: one.acked)
    assert "async def" in one.failures[0].error


@pytest.mark.parametrize("kind", [0, 1])
async def test_a_handler_whose_task_is_cancelled_fails_and_the_worker_lives(kind: int) -> None:
    """CancelledError from inside a handler is its failure."""

    def handler(event: Event) -> None:
        if event.payload == 0:
            raise asyncio.CancelledError

    one, two = Given(number=0), Given(number=1, lane="2")
    async with Bench(both_kinds(handler)[kind], workers=1) as bench:
        bench.give(one, two)
        await until(lambda: one.acked and two.acked)
    assert "cancelled" in one.failures[0].error


@pytest.mark.parametrize("kind", [0, 1])
async def test_system_exit_in_a_handler_ends_no_worker(kind: int) -> None:
    """A handler that calls sys.exit() makes a dead letter, not a dead consumer, and not a dead loop."""

    def handler(event: Event) -> None:
        if event.payload == 0:
            raise SystemExit(1)

    one, two = Given(number=0), Given(number=1)
    async with Bench(both_kinds(handler)[kind], workers=1) as bench:
        bench.give(one, two)
        await until(lambda: one.acked and two.acked)
    assert one.failures[0].error == "SystemExit: 1"


async def test_nobody_wants_it_it_is_acknowledged() -> None:
    """No subscription matches, or only one that gave up on it before."""
    one, two, three = Given(buried=frozenset({"h0"})), Given(only="someone else"), Given()
    seen: list[int] = []
    async with Bench(lambda event: seen.append(1)) as bench:
        bench.give(one, two, three)
        await until(lambda: one.acked and two.acked and three.acked)
    assert seen == [1]


async def test_stop_lets_running_handlers_finish_and_acknowledges_them() -> None:
    """Everything in hand is drained; what waits for a retry is given back without being buried or acknowledged."""
    started, proceed = asyncio.Event(), asyncio.Event()

    async def handler(event: Event) -> None:
        if event.payload == 9:
            raise ValueError
        started.set()
        await proceed.wait()

    policy = RetryPolicy(max_retries=5, initial_delay=60, max_delay=60, jitter=0)
    running, queued, waiting = Given(number=0), Given(number=1), Given(number=9, lane="w")
    bench = Bench(handler, policy=policy)
    task = asyncio.create_task(bench.consumer.run(drain=5))
    bench.give(running, queued, waiting)
    await started.wait()
    await until(lambda: waiting.retried)
    bench.consumer.stop()
    proceed.set()
    await task
    assert running.acked
    assert queued.acked
    assert not waiting.acked
    assert waiting.failures == []
    assert bench.provider.closed


async def test_stop_gives_up_on_a_stuck_handler_after_the_timeout() -> None:
    """A handler that never returns is cancelled and its delivery given back."""
    one = Given()
    started = asyncio.Event()

    async def stuck(event: Event) -> None:
        started.set()
        await asyncio.Event().wait()

    bench = Bench(stuck)
    task = asyncio.create_task(bench.consumer.run(drain=0.01))
    bench.give(one)
    await started.wait()
    bench.consumer.stop()
    await task
    assert not one.acked
    assert one.failures == []


def test_a_timeout_needs_a_coroutine_handler() -> None:
    """A plain function cannot be interrupted, so asking for it is an error that says what to do."""
    with pytest.raises(ValueError, match="coroutine function"):
        Subscription("n", ("*",), lambda event: None, "g", FAST, timeout=1)


async def test_a_paused_subscription_waits_and_the_others_go_on() -> None:
    """Its events wait in order; resumed, none is lost and none overtakes."""
    first: list[int] = []
    second: list[int] = []
    async with Bench(lambda event: first.append(event.payload), lambda event: second.append(event.payload)) as bench:
        bench.subscriptions.paused.add("h0")
        given = [Given(lane=str(n % 3), number=n) for n in range(30)]
        bench.give(*given)
        await until(lambda: len(second) == 30)
        assert first == []
        assert not any(one.acked for one in given)
        bench.subscriptions.paused.clear()
        bench.consumer.resume("h0")
        await until(lambda: all(one.acked for one in given))
    assert [[n for n in first if n % 3 == lane] for lane in range(3)] == [list(range(lane, 30, 3)) for lane in range(3)]


async def test_stopping_gives_back_what_a_paused_subscription_holds() -> None:
    """Also an attempt after the first: stopping does not wait for somebody to resume."""
    failing = asyncio.Event()

    async def handler(event: Event) -> None:
        failing.set()
        bench.subscriptions.paused.add("h0")
        raise ValueError

    given = [Given(number=1), Given(number=2)]
    async with Bench(handler) as bench:
        bench.give(*given)
        await failing.wait()
        await until(lambda: given[0].retried)
        await until(lambda: bench.consumer._held)
    assert not any(one.acked or one.failures for one in given)


async def test_an_event_that_cannot_be_upcast_is_a_dead_letter() -> None:
    """With the upcaster's words, at once and for this event only."""

    def upcast(event: Event) -> Event:
        if event.payload == 1:
            raise EventError("no upcaster to version 2")
        return event.replace(payload=event.payload * 10)

    seen: list[int] = []
    given = [Given(lane="a", number=1), Given(lane="a", number=2)]
    bench = Bench(lambda event: seen.append(event.payload))
    bench.consumer._upcast = upcast
    async with bench:
        bench.give(*given)
        await until(lambda: all(one.acked for one in given))
    assert seen == [20]
    assert "no upcaster to version 2" in given[0].failures[0].error
    assert given[0].retried == []


class Marked(Exception):
    """An error that a weak reference can be had of."""


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("stopped", [False, True])
async def test_an_error_that_is_told_is_forgotten(kind: int, stopped: bool) -> None:
    """Jobs are not followed by the garbage collector: an error that stayed in one would never go, nor what it refers to."""
    errors: list[weakref.ref[Marked]] = []

    def fail(event: Event) -> None:
        error = Marked("no")
        errors.append(weakref.ref(error))
        raise error

    policy = RetryPolicy(max_retries=1, initial_delay=60.0 if stopped else 0.001)
    given = [Given(lane=str(number)) for number in range(3)]
    async with Bench(both_kinds(fail)[kind], policy=policy) as bench:
        bench.give(*given)
        await until(lambda: all(one.retried if stopped else one.acked for one in given))
    gc.collect()
    assert len(errors) == (3 if stopped else 6)
    assert not [error for ref in errors if (error := ref()) is not None]


@pytest.mark.parametrize("kind", [0, 1])
async def test_a_handler_sees_how_often_it_failed(kind: int) -> None:
    """``retry_count``, also of failures before a restart; RetryLater is none."""
    seen: list[int] = []

    def failing(event: Event) -> None:
        seen.append(event.retry_count)
        if len(seen) < 5:
            raise RetryLater(0.001) if len(seen) == 3 else OSError("no")

    policy = RetryPolicy(max_retries=9, initial_delay=0.001, jitter=0)
    given = [Given(), Given(attempts={"h0": 7})]
    async with Bench(both_kinds(failing)[kind], policy=policy) as bench:
        bench.give(given[0])
        await until(lambda: given[0].acked)
        bench.give(given[1])
        await until(lambda: given[1].acked)
    assert seen == [0, 1, 2, 2, 3, 7]


async def test_an_attempt_that_was_put_off_before_a_restart_waits_until_it_is_due() -> None:
    """Its lane waits with it, other rows go on; stopping meanwhile gives it back untouched."""
    seen: list[int] = []
    put_off = Given(number=1, lane="a", attempts={"h0": 1}, due={"h0": time.time() + 0.3})
    behind, other = Given(number=2, lane="a"), Given(number=3, lane="b")
    async with Bench(lambda event: seen.append(event.payload)) as bench:
        bench.give(put_off, behind, other)
        await until(lambda: behind.acked)
        assert time.time() >= put_off.due["h0"]
    assert seen == [3, 1, 2]
    far = Given(number=4, attempts={"h0": 1}, due={"h0": time.time() + 3600})
    async with Bench(lambda event: seen.append(event.payload)) as bench:
        bench.give(far)
        await until(lambda: bench.consumer.in_hand == 1)
    assert not far.acked
    assert seen == [3, 1, 2]

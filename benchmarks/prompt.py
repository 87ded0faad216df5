"""How soon an event is with its handler at a light load, in one process and from another, and what waiting costs.

A latency runs from before COMMIT is sent until the handler is called, so it contains the commit itself (an fsync). Beside
it stand ``commit`` alone, with the same rows, and ``bare_read``: the reader's statement on an idle connection.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import sqlalchemy as sa
from sqlalchemy.orm import Session

from benchmarks.measured import Meter, apart
from benchmarks.model import item
from benchmarks.report import Figure
from sqla_events import Config, Event, install_crud_hooks
from sqla_events.broker import Broker
from sqla_events.log.ledger import Plan
from sqla_events.log.reading import Reading
from sqla_events.schema import Tables

RATE = 100
"""Commits a second."""
GROUP = "prompt"
FIRST = 10_000_000
IDLE_SECONDS = 20.0

Times = dict[str, float]
"""Key of a row -> seconds of the clock that all processes share."""


@dataclass(frozen=True)
class Written:
    """When each row's COMMIT was sent, and when it was back."""

    sent: Times
    back: Times


def figures(url: str, engine: sa.Engine, server: int, seconds: float) -> Iterator[Figure]:
    """In process, across processes with and without the doorbell, idle."""
    count = int(seconds * RATE)
    written, handled = apart(in_process, url, count)
    read = bare_read(engine)
    commits = [written.back[key] - sent for key, sent in written.sent.items()]
    bare = {p: _quantile(commits, p) + _quantile(read, p) for p in (50, 99)}
    for p in (50, 99):
        yield Figure(f"commit_p{p}", _quantile(commits, p), "ms")
        yield Figure(f"bare_read_p{p}", _quantile(read, p), "ms")
    yield from _latency("latency_in_process", written.sent, handled, bare)
    for name, listen in (("latency_across", True), ("latency_across_polling", False)):
        written, handled = across(url, engine, count, listen)
        yield from _latency(name, written.sent, handled, bare)
    for name, listen in (("idle_with_doorbell", True), ("idle_polling", False)):
        own, of_server = apart(idle, url, server, listen)
        yield Figure(f"{name}_cpu", own, "% of a core")
        yield Figure(f"{name}_cpu_with_postgres", own + of_server, "% of a core")


def _latency(name: str, sent: Times, handled: Times, bare: dict[int, float]) -> Iterator[Figure]:
    taken = [handled[key] - moment for key, moment in sent.items()]
    for p in (50, 99):
        value = _quantile(taken, p)
        yield Figure(f"{name}_p{p}", value, "ms", "commit + read", value / bare[p])
        yield Figure(f"{name}_over_bare_p{p}", value - bare[p], "ms")


def _quantile(values: Sequence[float], percent: int) -> float:
    """Milliseconds."""
    return statistics.quantiles(values, n=100)[percent - 1] * 1000


# Work ---------------------------------------------------------------------------------------------------------------


def write(engine: sa.Engine, first: int, count: int) -> Written:
    """Insert rows, one in a transaction, a hundred a second."""
    sent, back = {}, {}
    started = time.perf_counter()
    for number in range(first, first + count):
        time.sleep(max(0.0, started + (number - first) / RATE - time.perf_counter()))
        with Session(engine) as session:
            session.add(item(number))
            session.flush()
            sent[str(number)] = time.perf_counter()
            session.commit()
            back[str(number)] = time.perf_counter()
    return Written(sent, back)


def in_process(url: str, count: int) -> tuple[Written, Times]:
    """Writer and handler in one process."""
    engine = sa.create_engine(url)
    broker = install_crud_hooks(engine, consumer_group=GROUP)
    handled = _note(broker, count)
    broker.start()
    _wait(lambda: _leased(engine))
    write(engine, FIRST - 20, 20)  # connections are made, statements prepared
    written = write(engine, FIRST, count)
    _wait(lambda: len(handled) >= count)
    broker.stop()
    return written, handled


def across(url: str, engine: sa.Engine, count: int, listen: bool) -> tuple[Written, Times]:
    """The handler in another process."""
    first = FIRST * (2 if listen else 3)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        handling = pool.submit(handle, url, count, listen, first)
        _wait(lambda: handling.running() and _leased(engine))
        writing = pool.submit(write_hooked, url, first, count, listen)
        return writing.result(), handling.result()


def write_hooked(url: str, first: int, count: int, listen: bool) -> Written:
    """A process whose commits ring the doorbell of others, or do not."""
    engine = sa.create_engine(url)
    broker = install_crud_hooks(engine, {"provider": "database", "database": {"listen": listen}})
    broker.start()
    write(engine, first - 20, 20)
    written = write(engine, first, count)
    broker.stop()
    return written


def handle(url: str, count: int, listen: bool, first: int) -> Times:
    """A process that only consumes; when each row's event was with the handler."""
    broker = _consumer(url, listen)
    handled = _note(broker, count, first)
    broker.start()
    _wait(lambda: len(handled) >= count)
    broker.stop()
    return handled


def idle(url: str, server: int, listen: bool) -> tuple[float, float]:
    """Per cent of a core that a consumer and PostgreSQL use while nothing happens."""
    broker = _consumer(url, listen)
    _note(broker, 0)
    broker.start()
    time.sleep(8)  # until it has calmed down
    meter = Meter(server)
    time.sleep(IDLE_SECONDS)
    cost = meter.stop(1)
    broker.stop()
    return 100 * cost.cpu / cost.seconds, 100 * cost.server_cpu / cost.seconds


def _consumer(url: str, listen: bool) -> Broker:
    settings = {"provider": "database", "consumer_group": GROUP, "database": {"listen": listen}}
    return Broker(Config.load(settings), sa.create_engine(url))


def _note(broker: Broker, count: int, first: int = FIRST) -> Times:
    """When the event of each row is with a handler."""
    handled: Times = {}

    async def handler(event: Event) -> None:
        if int(event.key or 0) >= first:
            handled[event.key or ""] = time.perf_counter()

    broker.subscribe("public.items.create", handler=handler)
    return handled


def bare_read(engine: sa.Engine) -> list[float]:
    """Seconds of each of many single reads with the reader's statement, where there is one new row."""
    reading, taken = Reading(Tables(), "postgresql", "psycopg"), []
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        high = connection.scalar(sa.text("SELECT max(seq) FROM events")) - 1
        for _ in range(300):
            started = time.perf_counter()
            reading(connection, Plan(high, high + 1000, 1000))
            taken.append(time.perf_counter() - started)
            time.sleep(1 / RATE)
    return taken[50:]


def _leased(engine: sa.Engine) -> bool:
    """Whether somebody holds the group's lease."""
    query = sa.text('SELECT 1 FROM event_positions WHERE "group" = :group AND lease_expires > now()')
    with engine.connect() as connection:
        return connection.execute(query, {"group": GROUP}).first() is not None


def _wait(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    while not condition():
        pause.wait(0.05)

"""kill -9 at every step, and at random, and SIGSTOP: what is in the stream afterwards is the log, each event once.

KILL_SECONDS=60 makes the random part longer.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

import psycopg
import pytest
from redis import Redis

from tests.log.load import Writers
from tests.providers.redis_worker import HANDLED, SETTINGS, STEPS, main
from tests.servers.child import wait_until
from tests.servers.postgres import PostgresDatabase
from tests.servers.redis import RedisServer

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.providers.redis_worker"])
SECONDS = float(os.environ.get("KILL_SECONDS", "6"))
STREAMS = ("sqla-events", "{sqla-events}:1")


def start(kind: str, postgres: PostgresDatabase, redis: RedisServer, *rest: object) -> BaseProcess:
    """Forked from a process that has everything imported: there are many of them."""
    process = FORKS.Process(target=main, args=(kind, postgres.url(), redis.url, *map(str, rest)), daemon=True)
    process.start()
    return process


@contextmanager
def running(kind: str, postgres: PostgresDatabase, redis: RedisServer) -> Iterator[None]:
    """A process that is stopped in good order."""
    process = start(kind, postgres, redis)
    try:
        yield
    finally:
        process.terminate()
        process.join(60)


def published(redis: RedisServer) -> list[dict[str, Any]]:
    """What is in the streams, each in its order."""
    with Redis(port=redis.port, protocol=2) as client:
        return [json.loads(fields[b"body"]) for stream in STREAMS for _, fields in client.xrange(stream)]


def size(redis: RedisServer) -> int:
    with Redis(port=redis.port, protocol=2) as client:
        return sum(client.xlen(stream) for stream in STREAMS)


def in_order(events: list[tuple[str | None, int]]) -> bool:
    """Whether the versions of every row only grow."""
    newest: dict[str | None, int] = {}
    for key, version in events:
        if key is not None and version <= newest.get(key, 0):
            return False
        newest[key] = version
    return True


def check(redis: RedisServer, writers: Writers) -> str:
    """Nothing lost, nothing twice, nothing swapped, nothing that was rolled back."""
    events = published(redis)
    counts = Counter(event["id"] for event in events)
    repeated = sum(count - 1 for count in counts.values())
    lost = writers.truth.events.keys() - counts.keys()
    assert (len(lost), repeated, len(counts.keys() - writers.truth.events.keys())) == (0, 0, 0)
    assert in_order([(event.get("key"), event["payload"]["version"]) for event in events])
    return f"{len(events)} events, {len(lost)} lost, {repeated} twice"


@pytest.mark.parametrize("step", STEPS)
def test_a_relay_killed_at_a_step(postgres: PostgresDatabase, redis: RedisServer, step: str) -> None:
    """The first and the third time that it comes there; the next one goes on without a duplicate."""
    with Writers(postgres.connect, count=3, longest=0.2) as writers:
        wait_until(lambda: len(writers.truth.events) > 100)
        for occurrence in (1, 3) if "resume" not in step else (1, 2):  # each partition resumes once
            process = start("relay", postgres, redis, step, occurrence)
            process.join(60)
            assert process.exitcode == -signal.SIGKILL
        writers.stop()
        with running("relay", postgres, redis):
            wait_until(lambda: size(redis) >= len(writers.truth.events))
        print(step, check(redis, writers))  # noqa: T201


class Crowd:
    """Processes of one kind that die and are replaced."""

    def __init__(self, make: Callable[[int], BaseProcess], count: int) -> None:
        self._make = make
        self._made = count
        self.processes = [make(number) for number in range(count)]
        self.killed = self.paused = 0

    def pause(self, which: int) -> None:
        """For longer than a lease: it wakes up as a zombie."""
        pid = self.processes[which].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        time.sleep(1.5 * SETTINGS["lease"])
        os.kill(pid, signal.SIGCONT)
        self.paused += 1

    def kill(self, which: int) -> None:
        self.processes[which].kill()
        self.processes[which].join()
        self.processes[which] = self._make(self._made)
        self._made += 1
        self.killed += 1

    def end(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join(60)


@pytest.mark.timeout(SECONDS + 240)
def test_everybody_dies_or_sleeps(postgres: PostgresDatabase, redis: RedisServer) -> None:
    """Relays, consumers and the server, or sleep beyond their leases, at random under load: the stream is the log; every event is handled, and each
    row's events first in their order."""
    chance = random.Random(11)
    with postgres.connect() as link, Writers(postgres.connect, count=2, longest=0.3) as writers:
        link.execute(HANDLED)
        relays = Crowd(lambda _: start("relay", postgres, redis), 2)
        consumers = Crowd(lambda number: start("consumer", postgres, redis, number), 2)
        restarts = 0
        try:
            wait_until(lambda: handled(link) > 0)
            end = time.monotonic() + SECONDS
            while time.monotonic() < end or not (relays.killed and consumers.killed and restarts):
                what = chance.choice([relays.kill, consumers.kill, relays.pause, consumers.pause, None])
                if what is not None:
                    what(chance.randrange(2))
                else:
                    redis.restart()
                    restarts += 1
                time.sleep(chance.uniform(0, 1))
            writers.stop()
            wait_until(lambda: not missing(link, writers), 120, "everything is handled")
        finally:
            relays.end()
            consumers.end()
        said = f"killed: {relays.killed} relays, {consumers.killed} consumers, {restarts} servers"
        said += f"; paused: {relays.paused} relays, {consumers.paused} consumers"
        print(f"{check(redis, writers)}; {said}; {repeats(link)} handled again")  # noqa: T201
        assert in_order(first_handled(link))


def handled(link: psycopg.Connection) -> int:
    row = link.execute("SELECT count(DISTINCT id) FROM handled").fetchone()
    assert row is not None
    return int(row[0])


def repeats(link: psycopg.Connection) -> int:
    row = link.execute("SELECT count(*) - count(DISTINCT id) FROM handled").fetchone()
    assert row is not None
    return int(row[0])


def missing(link: psycopg.Connection, writers: Writers) -> set[str]:
    return writers.truth.events.keys() - {str(one) for (one,) in link.execute("SELECT DISTINCT id FROM handled")}


def first_handled(link: psycopg.Connection) -> list[tuple[str | None, int]]:
    rows = link.execute(
        "SELECT key, version FROM (SELECT DISTINCT ON (id) n, key, version FROM handled ORDER BY id, n) AS once ORDER BY n"
    )
    return [(row[0], row[1]) for row in rows]

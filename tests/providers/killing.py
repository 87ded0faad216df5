"""Processes to kill, and what must be true of the events afterwards, whatever the transport.

KILL_SECONDS=60 makes the random part longer.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

import psycopg

from tests.log.load import Writers
from tests.providers.redis_worker import SETTINGS
from tests.servers.nats import NatsServer
from tests.servers.postgres import PostgresDatabase
from tests.servers.redis import RedisServer

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.providers.nats_worker"])  # which imports the one of Redis
SECONDS = float(os.environ.get("KILL_SECONDS", "6"))


@dataclass
class Workers:
    """Makes processes of a worker module, forked from one that has everything imported: there are many of them."""

    main: Callable[..., None]
    postgres: PostgresDatabase
    transport: RedisServer | NatsServer

    def start(self, kind: str, *rest: object) -> BaseProcess:
        arguments = (kind, self.postgres.url(), self.transport.url, *map(str, rest))
        process = FORKS.Process(target=self.main, args=arguments, daemon=True)
        process.start()
        return process

    @contextmanager
    def running(self, kind: str) -> Iterator[None]:
        """A process that is stopped in good order."""
        process = self.start(kind)
        try:
            yield
        finally:
            process.terminate()
            process.join(60)

    def killed(self, step: str, occurrence: int) -> None:
        """A relay that dies at a step."""
        process = self.start("relay", step, occurrence)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL


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


def check(events: Sequence[dict[str, Any]], writers: Writers) -> str:
    """Nothing lost, nothing twice, nothing swapped, nothing that was rolled back."""
    counts = Counter(event["id"] for event in events)
    repeated = sum(count - 1 for count in counts.values())
    lost = writers.truth.events.keys() - counts.keys()
    assert (len(lost), repeated, len(counts.keys() - writers.truth.events.keys())) == (0, 0, 0)
    assert in_order([(event.get("key"), event["payload"]["version"]) for event in events])
    return f"{len(events)} events, {len(lost)} lost, {repeated} twice"


def in_order(events: list[tuple[str | None, int]]) -> bool:
    """Whether the versions of every row only grow."""
    newest: dict[str | None, int] = {}
    for key, version in events:
        if key is not None and version <= newest.get(key, 0):
            return False
        newest[key] = version
    return True


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

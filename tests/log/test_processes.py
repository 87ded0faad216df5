"""Four relay processes, four partitions, then three: killed, paused beyond the lease, stopped and started under load."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from tests.log.load import Writers, wait_for
from tests.log.test_concurrency import SECONDS
from tests.log.worker import LEASE, SINK
from tests.servers.postgres import PostgresDatabase

ROOT = Path(__file__).parents[2]
PARTITIONS, FEWER = 4, 3


class Relays:
    """Processes that come and go."""

    def __init__(self, url: str, count: int) -> None:
        self._url = url
        self.partitions = PARTITIONS
        self._names = itertools.count(1)
        self._running: list[subprocess.Popen[bytes]] = [self._start() for _ in range(count)]
        self.done: dict[str, int] = {}

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.log.worker", self._url, str(self.partitions), f"process-{next(self._names)}"]
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})

    def disturb(self, chance: random.Random) -> None:
        """Do something bad to one of them."""
        what = chance.choice([self._kill, self._pause, self._stop])
        self.done[what.__name__] = self.done.get(what.__name__, 0) + 1
        what(chance.randrange(len(self._running)))

    def _kill(self, which: int) -> None:
        self._running[which].kill()
        self._running[which].wait()
        self._running[which] = self._start()

    def _pause(self, which: int) -> None:
        self._running[which].send_signal(signal.SIGSTOP)
        time.sleep(LEASE * 1.5)  # what is tested is a pause
        self._running[which].send_signal(signal.SIGCONT)

    def _stop(self, which: int) -> None:
        self._running[which].terminate()
        assert self._running[which].wait(30) in (0, -signal.SIGTERM)  # the latter before it listened
        self._running[which] = self._start()

    def replace(self, chance: random.Random, partitions: int) -> None:
        """As a deployment that changes the number does, one process after the other, in whatever way they end."""
        self.partitions = partitions
        for which in range(len(self._running)):
            chance.choice([self._kill, self._stop])(which)

    def end(self) -> None:
        for process in self._running:
            process.terminate()
        for process in self._running:
            process.wait(30)


@pytest.mark.timeout(SECONDS + 180)
def test_relays_come_and_go_and_nothing_is_lost_or_swapped(postgres: PostgresDatabase) -> None:
    """What a zombie still publishes after its pause carries an old epoch and is refused; everybody else is in order."""
    chance = random.Random(7)
    with postgres.connect() as link, Writers(postgres.connect, count=4, longest=0.5) as writers:
        link.execute(SINK)
        relays = Relays(postgres.url(), 4)
        try:
            wait_for(lambda: len(working(link, PARTITIONS)) == PARTITIONS, 60)
            disturb(relays, chance, lambda: moved(link, PARTITIONS))
            relays.replace(chance, FEWER)
            disturb(relays, chance, lambda: moved(link, FEWER))
            writers.stop()
            wait_for(lambda: not missing(link, writers), 60)
        finally:
            relays.end()
        inversions = swapped(link)
        repeated = published(link) - len(writers.truth.events)
        print(f"{len(writers.truth.events)} events, {relays.done}, {repeated} repeated, {inversions} swapped, 0 lost")  # noqa: T201
        assert inversions == 0
        assert not phantoms(link, writers)


def disturb(relays: Relays, chance: random.Random, enough: Callable[[], bool]) -> None:
    """For a while, and until something has come of it."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end or (not enough() and time.monotonic() < end + 60):
        relays.disturb(chance)
        time.sleep(chance.uniform(0, LEASE))  # so that leases move
    assert enough(), "no lease changed hands: nothing was tested"


def working(link: psycopg.Connection, partitions: int) -> set[int]:
    """The partitions that have published, when there are so many."""
    return {n for (n,) in link.execute("SELECT partition FROM sink_epochs WHERE partitions = %s", (partitions,))}


def moved(link: psycopg.Connection, partitions: int) -> bool:
    """Whether a lease has changed hands since there are so many."""
    query = """SELECT 1 FROM sink WHERE epoch > (SELECT min(epoch) FROM sink WHERE partitions = %s) AND partitions = %s"""
    return link.execute(query, (partitions, partitions)).fetchone() is not None


def phantoms(link: psycopg.Connection, writers: Writers) -> set[str]:
    return writers.truth.rolled_back & {str(identity) for (identity,) in link.execute("SELECT DISTINCT id FROM sink")}


def published(link: psycopg.Connection) -> int:
    row = link.execute("SELECT count(*) FROM sink").fetchone()
    assert row is not None
    return int(row[0])


def missing(link: psycopg.Connection, writers: Writers) -> set[str]:
    return writers.truth.events.keys() - {str(identity) for (identity,) in link.execute("SELECT DISTINCT id FROM sink")}


def swapped(link: psycopg.Connection) -> int:
    """Events whose first publication came after that of a later version of their row, or repeated out of order."""
    row = link.execute(
        """SELECT count(*) FROM (
            SELECT version, max(version) OVER (PARTITION BY key, epoch ORDER BY n ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
            FROM sink WHERE key IS NOT NULL) AS ordered WHERE version <= before"""
    ).fetchone()
    first = link.execute(
        """SELECT count(*) FROM (
            SELECT version, max(version) OVER (PARTITION BY key ORDER BY n ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
            FROM (SELECT DISTINCT ON (id) n, key, version FROM sink WHERE key IS NOT NULL ORDER BY id, n) AS once) AS ordered
            WHERE version <= before"""
    ).fetchone()
    assert row is not None
    assert first is not None
    return int(row[0]) + int(first[0])

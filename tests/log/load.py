"""Writers that do everything a log must survive, and the tally of what readers made of it."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import psycopg

from sqla_events.log.rows import Row
from sqla_events.position import Position

KEYS = 12
INSERT = "INSERT INTO events (id, source, type, schema, entity, operation, key, payload) VALUES (%s, 'database', 'public.things.update', 'public', 'things', 'update', %s, %s)"


@dataclass
class Truth:
    """What was committed, by event id: the key and the version that the row's lock gave it (None: published without a row)."""

    events: dict[str, tuple[str, int] | None] = field(default_factory=dict)
    rolled_back: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, written: dict[str, tuple[str, int] | None], committed: bool) -> None:
        with self.lock:
            if committed:
                self.events.update(written)
            else:
                self.rolled_back.update(written)


class Writers:
    """Threads with contended rows, savepoints, rollbacks, bulk inserts, transactions held open, events as first write."""

    def __init__(
        self, connect: Callable[[], psycopg.Connection], count: int, longest: float = 1.0, seed: int = 0
    ) -> None:
        self.truth = Truth()
        self._connect = connect
        self._longest = longest
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(seed * 1000 + n,), daemon=True) for n in range(count)
        ]
        self._errors: list[BaseException] = []

    def __enter__(self) -> Writers:
        with self._connect() as link:
            link.execute("CREATE TABLE things (id int PRIMARY KEY, version int NOT NULL)")
            link.execute("INSERT INTO things SELECT n, 0 FROM generate_series(0, %s) n", (KEYS - 1,))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End after the transactions at hand."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def _work(self, seed: int) -> None:
        chance = random.Random(seed)
        try:
            with self._connect() as link:
                link.autocommit = False
                while not self._stop.is_set():
                    self._transaction(link, chance)
        except BaseException as error:
            self._errors.append(error)

    def _transaction(self, link: psycopg.Connection, chance: random.Random) -> None:
        written: dict[str, tuple[str, int] | None] = {}
        committed = False
        try:
            self._write(link, chance, written)
            if chance.random() < 0.04:
                self._stop.wait(chance.uniform(0, self._longest))
            if chance.random() < 0.15:
                link.rollback()
            else:
                link.commit()
                committed = True
        except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure):
            link.rollback()
        finally:
            self.truth.note(written, committed)

    def _write(
        self, link: psycopg.Connection, chance: random.Random, written: dict[str, tuple[str, int] | None]
    ) -> None:
        if chance.random() < 0.3:
            publish(link, None, 0, written)
        for key in sorted(chance.sample(range(KEYS), chance.choice([1, 1, 2, 4]))):
            if chance.random() < 0.15:
                self._savepoint(link, chance, key, written)
            else:
                self._update(link, key, written)
        if chance.random() < 0.03:
            for _ in range(chance.choice([50, 300])):
                publish(link, None, 0, written)

    def _update(self, link: psycopg.Connection, key: int, written: dict[str, tuple[str, int] | None]) -> None:
        row = link.execute("UPDATE things SET version = version + 1 WHERE id = %s RETURNING version", (key,)).fetchone()
        assert row is not None
        publish(link, key, row[0], written)

    def _savepoint(
        self, link: psycopg.Connection, chance: random.Random, key: int, written: dict[str, tuple[str, int] | None]
    ) -> None:
        inner: dict[str, tuple[str, int] | None] = {}
        link.execute("SAVEPOINT inside")
        self._update(link, key, inner)
        if chance.random() < 0.5:
            link.execute("ROLLBACK TO SAVEPOINT inside")
            self.truth.note(inner, committed=False)
        else:
            link.execute("RELEASE SAVEPOINT inside")
            written.update(inner)


def publish(
    link: psycopg.Connection, key: int | None, version: int, written: dict[str, tuple[str, int] | None]
) -> None:
    """One event, as capture writes it; without a key, as somebody publishes it by hand."""
    event = str(uuid.uuid4())
    link.execute(INSERT, (event, None if key is None else str(key), json.dumps({"version": version})))
    written[event] = None if key is None else (str(key), version)


@dataclass
class Tally:
    """What readers delivered, in order, over several lives of a reader."""

    first: dict[str, int] = field(default_factory=dict)
    """Event id -> when it was first delivered (a count)."""
    repeated: int = 0
    """Delivered again after a crash, as it must be: its position had not been committed."""
    duplicated: int = 0
    """Delivered again although it was done, or twice in one life."""
    inverted: int = 0
    """Delivered after a later version of its row, in one life."""
    lives: int = 0
    _count: itertools.count[int] = field(default_factory=itertools.count)

    def life(self, position: Position, truth: Truth) -> Life:
        """A reader starts from this position."""
        self.lives += 1
        return Life(self, position, truth)

    def lost(self, truth: Truth) -> set[str]:
        """Committed and never delivered."""
        return truth.events.keys() - self.first.keys()

    def phantoms(self, truth: Truth) -> set[str]:
        """Delivered and never committed."""
        return self.first.keys() & truth.rolled_back

    def summary(self, truth: Truth) -> str:
        """For the record."""
        return (
            f"{len(truth.events)} events committed, {len(truth.rolled_back)} rolled back, {self.lives} lives of readers, "
            f"{self.repeated} repeated after crashes; lost {len(self.lost(truth))}, phantoms {len(self.phantoms(truth))}, "
            f"duplicated {self.duplicated}, inverted {self.inverted}"
        )


class Life:
    """From one start of a reader to its end."""

    def __init__(self, tally: Tally, position: Position, truth: Truth) -> None:
        self._tally = tally
        self._position = position
        self._truth = truth
        self._seen: set[int] = set()
        self._versions: dict[str, int] = {}

    def deliver(self, rows: Iterable[Row]) -> None:
        """Count these, which came in this order."""
        for row in rows:
            self._order(row)
            tally = self._tally
            if row.seq in self._seen or self._position.done(row.seq):
                tally.duplicated += 1
            elif row.id in tally.first:
                tally.repeated += 1
            else:
                tally.first[row.id] = next(tally._count)
            self._seen.add(row.seq)

    def _order(self, row: Row) -> None:
        if row.key is None:
            return
        version = json.loads(row.payload)["version"]
        if version <= self._versions.get(row.key, 0):
            self._tally.inverted += 1
        self._versions[row.key] = max(version, self._versions.get(row.key, 0))


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Block until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.01)

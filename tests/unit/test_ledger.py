"""The ledger against a model of PostgreSQL: transaction ids, a sequence, row locks, snapshots, aborts, crashes of the reader."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqla_events.log.ledger import Commit, Found, Ledger, Plan, Snapshot
from sqla_events.position import Position


@dataclass(frozen=True)
class Row:
    seq: int
    key: int


@dataclass
class Transaction:
    xid: int
    rows: list[Row] = field(default_factory=list)


@dataclass
class Server:
    """As much of PostgreSQL as the ledger depends on."""

    xid: int = 100
    seq: int = 0
    completed: int = 99
    open: dict[int, Transaction] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def begin(self) -> Transaction:
        self.xid += 1
        self.open[self.xid] = Transaction(self.xid)
        return self.open[self.xid]

    def locked(self, key: int, by: Transaction) -> bool:
        return any(row.key == key for other in self.open.values() if other is not by for row in other.rows)

    def write(self, transaction: Transaction, key: int) -> None:
        self.seq += 1
        transaction.rows.append(Row(self.seq, key))

    def end(self, transaction: Transaction, commit: bool) -> None:
        del self.open[transaction.xid]
        self.completed = max(self.completed, transaction.xid)
        if commit:
            self.rows.extend(transaction.rows)

    def position_commit(self) -> int:
        transaction = self.begin()
        self.end(transaction, commit=True)
        return transaction.xid

    def read(self, plan: Plan) -> Found[Row]:
        xmax = self.completed + 1
        snapshot = Snapshot(xmax, frozenset(xid for xid in self.open if xid < xmax))
        rows = [row for row in self.rows if plan.high < row.seq <= plan.top]
        beyond = []
        for first, cut, last in plan.pieces:
            rows += [row for row in self.rows if first <= row.seq <= cut]
            beyond += [min(rest) for rest in [[row.seq for row in self.rows if cut < row.seq <= last]] if rest]
        above = min((row.seq for row in self.rows if row.seq > plan.top), default=None)
        return Found(rows, (), snapshot, above, beyond)


class Run:
    """Random writers and one reader that crashes now and then."""

    def __init__(self, chance: random.Random, reader: type[Ledger] = Ledger) -> None:
        self.chance = chance
        self.kind = reader
        self.server = Server()
        self.stored = Position()
        self.ledger = reader(self.stored)
        self.plan: Plan | None = None
        self.found: Found[Row] | None = None
        self.commit: Commit | None = None
        self.everything = False
        self.limit = chance.choice([1, 2, 5, 50])
        self.first_seen: list[Row] = []
        self.lifetime: set[int] = set()
        self.duplicates = 0

    def step(self) -> None:
        self.chance.choices(
            [
                self.write,
                self.finish,
                self.make_plan,
                self.read,
                self.take,
                self.begin_commit,
                self.end_commit,
                self.settle,
                self.crash,
            ],
            [30, 12, 15, 15, 15, 6, 8, 8, 0.4],
        )[0]()

    def write(self) -> None:
        some = list(self.server.open.values())
        transaction = self.chance.choice(some) if some and self.chance.random() < 0.7 else None
        if transaction is None:
            if len(some) > 6:
                return
            transaction = self.server.begin()
        for _ in range(self.chance.choice([1, 1, 1, 2, 12])):
            key = self.chance.randrange(4) if self.chance.random() < 0.5 else self.chance.randrange(10**6)
            if not self.server.locked(key, transaction):
                self.server.write(transaction, key)

    def finish(self) -> None:
        if self.server.open:
            transaction = self.chance.choice(list(self.server.open.values()))
            self.server.end(transaction, commit=self.chance.random() < 0.7)

    def make_plan(self) -> None:
        if self.plan is None:
            self.plan = self.ledger.plan(self.limit, self.everything)

    def read(self) -> None:
        if self.plan is not None and self.found is None:
            self.found = self.server.read(self.plan)

    def take(self) -> None:
        if self.plan is None or self.found is None:
            return
        rows = self.ledger.take(self.plan, self.found)
        self.plan = self.found = None
        self.everything = rows is None
        for row in rows or ():
            self.deliver(row)

    def deliver(self, row: Row) -> None:
        if row.seq in self.lifetime:
            self.duplicates += 1
        self.lifetime.add(row.seq)
        if row not in self.first_seen:
            self.first_seen.append(row)
        if self.stored.done(row.seq):
            self.duplicates += 1

    def begin_commit(self) -> None:
        if self.commit is None:
            self.commit = self.ledger.begin_commit()

    def end_commit(self) -> None:
        if self.commit is None:
            return
        if self.chance.random() < 0.1:
            self.ledger.failed(self.commit)
        else:
            horizon = self.server.position_commit()
            self.stored = self.commit.position
            self.ledger.committed(self.commit, horizon)
        if self.chance.random() < 0.05:
            self.ledger.forget_horizons()
        self.commit = None

    def settle(self) -> None:
        some = sorted(self.ledger.in_hand)
        self.ledger.settle(self.chance.sample(some, self.chance.randint(0, len(some))))

    def crash(self) -> None:
        self.plan = self.found = self.commit = None
        self.everything = False
        self.ledger = self.kind(self.stored)
        self.lifetime = set()

    def rest(self) -> None:
        """Writers end, the reader goes on until nothing is left to do."""
        while self.server.open:
            self.finish()
        for _ in range(200_000):
            for act in (self.make_plan, self.read, self.take, self.begin_commit, self.end_commit):
                act()
            self.ledger.settle(sorted(self.ledger.in_hand))
            if self.stored.gaps == () and self.stored.high >= max((row.seq for row in self.server.rows), default=0):
                return
        raise AssertionError(f"never at rest: {self.stored}")

    def lost(self) -> set[int]:
        return {row.seq for row in self.server.rows} - {row.seq for row in self.first_seen}

    def inverted(self) -> int:
        last: dict[int, int] = {}
        count = 0
        for row in self.first_seen:
            count += row.seq < last.get(row.key, 0)
            last[row.key] = max(row.seq, last.get(row.key, 0))
        return count


@given(st.integers(0, 2**32), st.integers(20, 400))
@settings(max_examples=150, deadline=None)
def test_nothing_is_lost_doubled_or_swapped(seed: int, steps: int) -> None:
    """Whatever writers, reads, commits, failures and crashes come in whatever order."""
    run = Run(random.Random(seed))
    for _ in range(steps):
        run.step()
    run.rest()
    assert (run.lost(), run.duplicates, run.inverted()) == (set(), 0, 0)
    assert run.stored.gaps == ()


class Naive(Ledger):
    """``seq > last``: what most home-made outboxes do."""

    def take(self, plan: Plan, found: Found[Row]) -> list[Row] | None:  # type: ignore[override]
        rows = sorted((row for row in found.rows if row.seq > plan.high), key=lambda row: row.seq)[: plan.limit]
        self.in_hand.update(row.seq for row in rows)
        self.high = max([self.high, *(row.seq for row in rows)])
        return rows


def test_the_model_can_tell() -> None:
    """A reader that remembers nothing but the last seq loses events in this model, so the test above says something."""
    lost = 0
    for seed in range(30):
        run = Run(random.Random(seed), Naive)
        for _ in range(300):
            run.step()
        while run.server.open:
            run.finish()
        run.limit = 10_000
        for act in (run.take, run.make_plan, run.read, run.take):
            act()
        lost += len(run.lost())
    assert lost > 0


@pytest.mark.parametrize("rolled_back", [10_000])
def test_rolled_back_transactions_during_an_open_one_cost_a_poll_nothing(rolled_back: int) -> None:
    """They share one watch, and the read leaves them out until the open transaction has ended."""
    server = Server()
    ledger = Ledger(Position())
    old = server.begin()
    server.write(old, 1)
    for number in range(rolled_back):
        dead, alive = server.begin(), server.begin()
        server.write(dead, 2)
        server.end(dead, commit=False)
        server.write(alive, 3)
        server.end(alive, commit=True)
        if number % 1000 == 999:
            _round(server, ledger)
    assert ledger.missing > rolled_back * 0.9
    assert ledger.plan(100).pieces == ()
    server.end(old, commit=True)
    plan = ledger.plan(100)
    assert ledger.take(plan, server.read(plan)) is None
    plan = ledger.plan(10_000, everything=True)
    assert [row.seq for row in ledger.take(plan, server.read(plan)) or ()] == [1]
    assert ledger.missing == 0


def _round(server: Server, ledger: Ledger) -> None:
    for _ in range(3):
        plan = ledger.plan(100_000)
        rows = ledger.take(plan, server.read(plan))
        ledger.settle([row.seq for row in rows or ()])
        commit = ledger.begin_commit()
        ledger.committed(commit, server.position_commit())

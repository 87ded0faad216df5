"""What one reader of the log knows: how far it has read, what was missing, what is in hand. Pure: no clock, no database.

Why this loses nothing on PostgreSQL. Whoever holds a seq held a transaction id before (the column's default sees to it),
and numbers are handed out in order. So when a read sees seq n, the owner of every number below n has its transaction id
already. A number that a read does not see, a *hole*, belongs to a transaction that is open, or was rolled back.

* A hole's *horizon* is a transaction id of ours taken after the read: every owner has a smaller one.
* A read after that either sees the row, or its owner is among the open transactions below the horizon that the same
  statement's snapshot lists: the hole's *watch*. When none is left, the hole is dead.
* A watched hole need not be read again until one of its watch has ended in the snapshot at hand. This is exact, so a
  hole may be left out of a read without breaking the order of a row's events: of two transactions that wrote one row, the
  second waited for the first, so a snapshot that shows the second shows the first as ended, and then the hole is read.
  A back-off by time would have skipped it. Ten thousand transactions rolled back during one open transaction share one
  watch and cost a poll nothing.

Horizons are never stored: after a restart, a failover, a restore into a new cluster, every gap gets a new one.

SQLite has one writer at a time, so there a hole is dead as soon as it is seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Generic, Protocol, TypeVar

from ..position import Position, Ranges, joined, ranges_of, size, subtract, union

SMALL = 256
"""Watched holes of no more than so many numbers are read every time: cheaper than reading twice when one fills."""


class Numbered(Protocol):
    """A row of the log."""

    @property
    def seq(self) -> int: ...


R = TypeVar("R", bound=Numbered)


@dataclass(frozen=True)
class Snapshot:
    """PostgreSQL's ``pg_snapshot``: transactions that are open, and the first id that it knows nothing about."""

    xmax: int
    open: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """``xmin:xmax:xip,xip,…``"""
        _, xmax, running = text.split(":")
        return cls(int(xmax), frozenset(map(int, running.split(","))) if running else frozenset())


class _Holes:
    """Ranges that were missing together."""

    __slots__ = ("count", "due", "horizon", "ranges", "watch")

    def __init__(self, ranges: Ranges = (), watch: frozenset[int] | None = None) -> None:
        self.put(ranges)
        self.watch = watch
        """Open transactions that could own them; None until they were read with a horizon."""
        self.horizon: int | None = None
        self.due = False
        """Must be read again, whatever the watch says: the last read did not get to all of it."""

    def put(self, ranges: Ranges) -> None:
        self.ranges = ranges
        self.count = size(ranges)

    @property
    def wanted(self) -> bool:
        """Whether the next read includes them."""
        return self.count > 0 and (self.due or self.watch is None or self.count <= SMALL)

    def may_have_filled(self, snapshot: Snapshot | None) -> bool:
        """Whether a read with this snapshot that left them out may have missed something."""
        return self.count > 0 and (
            self.due or self.watch is None or snapshot is None or not self.watch <= snapshot.open
        )

    @property
    def small(self) -> bool:
        """Whether reading them costs so little that they are not counted."""
        return not self.due and self.watch is not None and self.count <= SMALL

    def looked_at(self, horizon: int | None, snapshot: Snapshot | None, bound: int) -> _Holes:
        """Learn from a read that saw nothing of them below ``bound``, planned when their horizon was ``horizon``.

        What lies from ``bound`` on was not looked at; it is returned, due.
        """
        rest = _Holes(subtract(self.ranges, ((0, bound - 1),)) if self.ranges[-1][1] >= bound else ())
        self.put(subtract(self.ranges, rest.ranges))
        if snapshot is not None:
            self._learn(horizon, snapshot)
        if snapshot is None or self.watch == frozenset():
            self.put(())
        rest.horizon, rest.watch, rest.due = self.horizon, self.watch, True
        self.due = False
        return rest

    def _learn(self, horizon: int | None, snapshot: Snapshot) -> None:
        if self.watch is not None:
            self.watch &= snapshot.open
        elif horizon is not None and horizon == self.horizon and horizon < snapshot.xmax:
            self.watch = frozenset(xid for xid in snapshot.open if xid < horizon)

    def forget(self) -> None:
        """Nothing is known about the server's transactions any more."""
        self.horizon = self.watch = None


@dataclass(frozen=True)
class Plan:
    """What to read in one statement: ``pieces`` of holes, and what lies above ``high`` up to ``top``."""

    high: int
    top: int
    limit: int
    pieces: tuple[tuple[int, int, int], ...] = ()
    """(first, cut, last): rows are wanted from first to cut; beyond, up to last, only the number of the first one."""
    holes: tuple[tuple[_Holes, int | None], ...] = field(default=(), repr=False)
    """Each with its horizon when the plan was made: one that came later proves nothing about this read."""


@dataclass(frozen=True)
class Found(Generic[R]):
    """What the statement returned."""

    rows: Sequence[R]
    """In any order; those to deliver."""
    others: Sequence[int]
    """Numbers of rows that belong to other partitions."""
    snapshot: Snapshot | None
    """None on SQLite."""
    next: int | None
    """The smallest number above the plan's ``top`` that can be seen; None: there is none."""
    beyond: Sequence[int] = ()
    """The smallest visible numbers above the cut of pieces, where there are any."""


class Ledger:
    """The state of one reader between two positions. One at a time: ``plan``, the read, ``take``; the rest at any time."""

    def __init__(self, position: Position) -> None:
        self.high = position.high
        self.in_hand: set[int] = set()
        self._fresh = _Holes(position.gaps)
        """Found since the last commit began."""
        self._holes: list[_Holes] = []
        """Those before."""
        self._committed = position
        self._attempted: list[int] = []
        self._settled: list[int] = []
        self._dirty = False

    # Reading -----------------------------------------------------------------------------------------------------

    def plan(self, limit: int, everything: bool = False) -> Plan:
        """What to read next, for at most ``limit`` rows. ``everything`` includes holes that are only watched."""
        wanted = [holes for holes in self._all() if holes.wanted or (everything and holes.count)]
        counted = joined(piece for holes in wanted if not holes.small for piece in holes.ranges)
        pieces = [(first, last, last) for holes in wanted if holes.small for first, last in holes.ranges]
        pieces += _pieces(counted, limit)
        return Plan(
            self.high, self.high + limit, limit, tuple(pieces), tuple((holes, holes.horizon) for holes in wanted)
        )

    def take(self, plan: Plan, found: Found[R]) -> list[R] | None:
        """The rows to deliver, oldest first; None: a hole that was left out may have filled, read ``everything`` now."""
        included = {id(holes) for holes, _ in plan.holes}
        if any(holes.may_have_filled(found.snapshot) for holes in self._holes if id(holes) not in included):
            return None
        rows, bound = _within(plan, found)
        seqs = [row.seq for row in rows]
        seen = ranges_of((*seqs, *(seq for seq in found.others if seq < bound)) if found.others else seqs)
        self._revise(plan, seen, bound, found.snapshot)
        self._advance(plan, seen, bound, found)
        self.in_hand.update(seqs)
        return rows

    def _all(self) -> Iterator[_Holes]:
        yield from self._holes
        yield self._fresh

    def _revise(self, plan: Plan, seen: Ranges, bound: int, snapshot: Snapshot | None) -> None:
        """Take what was seen out of the holes; learn whom the rest waits for, or that it is dead."""
        for holes, horizon in plan.holes:
            before = holes.count
            if seen and seen[0][0] <= holes.ranges[-1][1]:
                holes.put(subtract(holes.ranges, seen))
            if holes.count:
                rest = holes.looked_at(horizon, snapshot, bound)
                self._holes.append(rest)
                self._dirty |= holes.count + rest.count != before
            else:
                self._dirty = True
        self._holes = _merged(self._holes)

    def _advance(self, plan: Plan, seen: Ranges, bound: int, found: Found[Any]) -> None:
        """Count what was read above the plan's ``high``; what is missing there is a fresh hole."""
        top = found.next - 1 if found.next is not None else seen[-1][1] if seen else 0
        top = min(top, bound - 1)
        if top <= plan.high:
            return
        if found.snapshot is not None:
            self._fresh.put(union(self._fresh.ranges, subtract(((plan.high + 1, top),), seen)))
        self.high = top

    # Settling ----------------------------------------------------------------------------------------------------

    def settle(self, seqs: Sequence[int]) -> None:
        """These are done."""
        self.in_hand.difference_update(seqs)
        self._settled.extend(seqs)

    def settle_one(self, seq: int) -> None:
        """This one is done."""
        self.in_hand.discard(seq)
        self._settled.append(seq)

    @property
    def position(self) -> Position:
        """What is done now."""
        holes = joined(piece for holes in self._all() for piece in holes.ranges)
        return Position(self.high, union(holes, ranges_of(self.in_hand)))

    @property
    def changed(self) -> bool:
        """Whether a commit would say anything new, or give a hole its horizon."""
        return self._dirty or bool(self._settled) or self.high != self._committed.high or self._fresh.count > 0

    @property
    def missing(self) -> int:
        """How many ranges are missing: what a position costs to write."""
        return sum(len(holes.ranges) for holes in self._all())

    @property
    def unproven(self) -> int:
        """How many numbers are missing without a horizon, and so are read every time."""
        return self._fresh.count

    def begin_commit(self) -> Commit:
        """The position to commit now. At most one commit at a time; :meth:`committed` or :meth:`failed` follows."""
        settled, self._settled = self._settled, []
        high = self._committed.high
        filled = ranges_of([seq for seq in settled if seq <= high])
        commit = Commit(self.position, filled, settled, tuple(holes for holes in self._all() if holes.horizon is None))
        self._holes.append(self._fresh)
        self._fresh = _Holes()
        self._dirty = False
        return commit

    def committed(self, commit: Commit, horizon: int | None) -> None:
        """It was, in a transaction whose id is ``horizon`` (None on SQLite)."""
        self._committed = commit.position
        self._attempted = []
        for holes in commit.unproven:
            holes.horizon = horizon

    def failed(self, commit: Commit) -> None:
        """Nobody knows whether it was: what it settled goes into the next one."""
        self._attempted.append(commit.position.high)
        self._settled = [*commit.settled, *self._settled]
        self._dirty = True

    def forget_horizons(self) -> None:
        """The server may be another one."""
        for holes in self._all():
            holes.forget()

    @property
    def last_committed(self) -> Position:
        """What the position's row says, if nobody else writes it."""
        return self._committed

    @property
    def possible_highs(self) -> tuple[int, ...]:
        """What the row may say: a commit whose answer was lost may have happened."""
        return (self._committed.high, *self._attempted)


@dataclass(frozen=True)
class Commit:
    """A position on its way into the database."""

    position: Position
    filled: Ranges
    """What was settled of numbers that the last position had as gaps."""
    settled: Sequence[int]
    """What was settled since the last commit."""
    unproven: tuple[_Holes, ...] = field(repr=False)


def _within(plan: Plan, found: Found[R]) -> tuple[list[R], int]:
    """The rows that may be delivered, oldest first, and the number from which on nothing may be."""
    bound = min(found.beyond, default=_END)
    rows = sorted(found.rows, key=_seq)
    if len(rows) > plan.limit:
        bound = min(bound, rows[plan.limit].seq)
    if bound != _END:
        rows = [row for row in rows if row.seq < bound]
    return rows, bound


_END = 2**63


_seq = attrgetter("seq")


def _merged(holes: list[_Holes]) -> list[_Holes]:
    """Holes with one watch become one; those without numbers none."""
    by_watch: dict[frozenset[int], list[_Holes]] = {}
    result = []
    for one in holes:
        if not one.count:
            continue
        if one.watch is None or one.due:
            result.append(one)
        else:
            by_watch.setdefault(one.watch, []).append(one)
    for watch, same in by_watch.items():
        result.append(
            same[0] if len(same) == 1 else _Holes(joined(piece for one in same for piece in one.ranges), watch)
        )
    return result


def _pieces(ranges: Ranges, limit: int) -> list[tuple[int, int, int]]:
    """Ranges as pieces of so many numbers together; beyond that, only the first visible number of each is asked for."""
    budget = max(limit, 1)
    pieces = []
    for first, last in ranges:
        cut = min(last, first + budget - 1)
        budget -= cut - first + 1
        pieces.append((first, cut, last))
    return pieces

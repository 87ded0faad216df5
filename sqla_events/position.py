"""What a consumer group has done with the log: everything up to ``high``, except what lies in ``gaps``.

One value answers four questions for which other designs need four mechanisms: late commits (a lower seq that commits
after a higher one is a gap until then), acknowledgements in any order (an event in hand is a gap too), crash recovery
(the gaps and everything above ``high`` are read again), and status (done is: at most ``high`` and in no gap).

Ranges, not single numbers: a rolled-back bulk insert of a million rows is one range. A tuple of ranges is always sorted,
disjoint and without neighbours that could be one range, so equal sets are equal tuples.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter

import msgspec

from .errors import SQLAlchemyEventsError

Range = tuple[int, int]
"""First and last, both included."""

Ranges = tuple[Range, ...]


def joined(ranges: Iterable[Range]) -> Ranges:
    """Any ranges, in any order and overlapping, as sorted disjoint ones."""
    result: list[Range] = []
    top = None
    for first, last in sorted(ranges):
        if top is not None and first <= top + 1:
            if last > top:
                result[-1] = (result[-1][0], last)
                top = last
        else:
            result.append((first, last))
            top = last
    return tuple(result)


def ranges_of(seqs: Iterable[int]) -> Ranges:
    """Single numbers, in any order and repeated, as ranges."""
    ordered = sorted(seqs)
    if ordered and ordered[-1] - ordered[0] + 1 == len(ordered) == len(set(ordered)):
        return ((ordered[0], ordered[-1]),)  # the usual case
    result: list[Range] = []
    first = last = None
    for seq in ordered:
        if last is None or first is None:
            first = last = seq
        elif seq <= last + 1:
            last = seq
        else:
            result.append((first, last))
            first = last = seq
    if first is not None and last is not None:
        result.append((first, last))
    return tuple(result)


def union(one: Ranges, other: Ranges) -> Ranges:
    """What is in either."""
    return joined((*one, *other)) if one and other else one or other


def subtract(ranges: Ranges, taken: Ranges) -> Ranges:
    """What is in ``ranges`` and not in ``taken``. Linear in both."""
    if not ranges or not taken:
        return ranges
    result: list[Range] = []
    start, count = 0, len(taken)
    for first, last in ranges:
        while start < count and taken[start][1] < first:
            start += 1
        at = start
        while at < count and taken[at][0] <= last:
            if first < taken[at][0]:
                result.append((first, taken[at][0] - 1))
            first = max(first, taken[at][1] + 1)
            at += 1
        if first <= last:
            result.append((first, last))
    return tuple(result)


def upto(ranges: Ranges, last: int) -> Ranges:
    """The part of ``ranges`` that is at most ``last``."""
    return subtract(ranges, ((last + 1, ranges[-1][1]),)) if ranges and ranges[-1][1] > last else ranges


def size(ranges: Ranges) -> int:
    """How many numbers they hold."""
    return sum(last - first + 1 for first, last in ranges)


def contains(ranges: Ranges, seq: int) -> bool:
    """Whether one of them holds ``seq``. Logarithmic."""
    at = bisect_right(ranges, seq, key=itemgetter(0))
    return at > 0 and seq <= ranges[at - 1][1]


_json = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(list[tuple[int, int]])


class _Document(msgspec.Struct):
    high: int
    gaps: list[tuple[int, int]]


_document = msgspec.json.Decoder(_Document)


def to_text(ranges: Ranges) -> str:
    """JSON, ``[[3,5],[9,9]]``: what the position's row and SQL over it read."""
    return _json.encode(ranges).decode()


def from_text(text: str) -> Ranges:
    """Read what :func:`to_text` wrote.

    :raises SQLAlchemyEventsError: where it is no such text: somebody edited the row by hand.
    """
    try:
        return joined(_decoder.decode(text))
    except (msgspec.DecodeError, TypeError) as error:
        raise SQLAlchemyEventsError(
            f"the gaps of a position are {text[:80]!r}, which is no JSON list of [first, last]: {error}"
        ) from error


@dataclass(frozen=True)
class Position:
    """Everything up to ``high`` is done, except the ranges in ``gaps``, which all lie at or below it."""

    high: int = 0
    gaps: Ranges = ()

    def done(self, seq: int) -> bool:
        """Whether the event of this number needs nothing more."""
        return seq <= self.high and not contains(self.gaps, seq)

    def settle(self, ranges: Ranges) -> Position:
        """These numbers are done, or dead; those above ``high`` are left for :meth:`advance`."""
        return Position(self.high, subtract(self.gaps, ranges))

    def advance(self, high: int, missing: Ranges = ()) -> Position:
        """Everything up to ``high`` was looked at; ``missing`` was not there or is still in hand. Never goes back."""
        return Position(max(self.high, high), union(self.gaps, missing))

    def merge(self, other: Position) -> Position:
        """Done where both are done."""
        high = min(self.high, other.high)
        return Position(high, upto(union(self.gaps, other.gaps), high))

    @property
    def settled(self) -> Ranges:
        """All that is done. Numbers begin with 1."""
        return subtract(((1, self.high),), self.gaps) if self.high > 0 else ()

    def beyond(self, other: Position) -> Ranges:
        """What is done here and not there."""
        return subtract(self.settled, other.settled)

    def also(self, other: Position) -> Position:
        """Done where either is done."""
        high = max(self.high, other.high)
        return Position(high, subtract(subtract(((1, high),), self.settled), other.settled))

    def pending_below(self) -> int:
        """How many numbers at or below ``high`` are not done."""
        return size(self.gaps)

    @classmethod
    def parse(cls, high: int, gaps: str) -> Position:
        """From the columns of its row."""
        return cls(high, from_text(gaps))

    @property
    def gaps_text(self) -> str:
        """The ``gaps`` column."""
        return to_text(self.gaps)

    @property
    def text(self) -> str:
        """As it travels: ``{"high":7,"gaps":[[3,5]]}``."""
        return f'{{"high":{self.high},"gaps":{self.gaps_text}}}'

    @classmethod
    def from_text(cls, text: str) -> Position:
        """Read what :attr:`text` wrote; the empty text is the beginning.

        :raises SQLAlchemyEventsError: where it is no such text.
        """
        if not text:
            return cls()
        try:
            found = _document.decode(text)
        except msgspec.DecodeError as error:
            raise SQLAlchemyEventsError(f"a position is {text[:80]!r}: {error}") from error
        return cls(found.high, joined(found.gaps))

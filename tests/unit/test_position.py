"""The algebra of positions against sets of plain numbers."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqla_events import position
from sqla_events.errors import SQLAlchemyEventsError
from sqla_events.position import Position, Ranges

LIMIT = 60
numbers = st.sets(st.integers(1, LIMIT))
loose_ranges = st.lists(
    st.tuples(st.integers(1, LIMIT), st.integers(0, 9)).map(lambda pair: (pair[0], pair[0] + pair[1]))
)


def members(ranges: Ranges) -> set[int]:
    return {seq for first, last in ranges for seq in range(first, last + 1)}


def is_normal(ranges: Ranges) -> bool:
    inside = all(first <= last for first, last in ranges)
    return inside and all(left[1] + 1 < right[0] for left, right in zip(ranges, ranges[1:], strict=False))


def positions() -> st.SearchStrategy[Position]:
    return st.builds(
        lambda high, gaps: Position(high, position.upto(position.ranges_of(gaps), high)), st.integers(0, LIMIT), numbers
    )


def done(one: Position) -> set[int]:
    return {seq for seq in range(1, 2 * LIMIT) if one.done(seq)}


@given(loose_ranges)
def test_joined_is_the_same_set_in_normal_form(ranges: list[tuple[int, int]]) -> None:
    """Whatever overlaps or touches becomes one range, and no number comes or goes."""
    result = position.joined(ranges)
    assert is_normal(result)
    assert members(result) == members(tuple(ranges))


@given(st.lists(st.integers(1, LIMIT)))
def test_ranges_of_numbers(seqs: list[int]) -> None:
    """Repeated and unsorted numbers are no trouble."""
    result = position.ranges_of(seqs)
    assert is_normal(result)
    assert members(result) == set(seqs)


@given(numbers, numbers)
def test_union_and_subtract(one: set[int], other: set[int]) -> None:
    """Ranges do what sets do."""
    left, right = position.ranges_of(one), position.ranges_of(other)
    for result, expected in ((position.union(left, right), one | other), (position.subtract(left, right), one - other)):
        assert is_normal(result)
        assert members(result) == expected
        assert position.size(result) == len(expected)


@given(numbers, st.integers(0, LIMIT + 5))
def test_contains_and_upto(seqs: set[int], at: int) -> None:
    """Looking up one number, and cutting off above it."""
    ranges = position.ranges_of(seqs)
    assert position.contains(ranges, at) == (at in seqs)
    assert members(position.upto(ranges, at)) == {seq for seq in seqs if seq <= at}


@given(positions(), numbers)
def test_settle_makes_exactly_those_done(one: Position, seqs: set[int]) -> None:
    """What lies above high is not touched."""
    settled = one.settle(position.ranges_of(seqs))
    assert done(settled) == done(one) | {seq for seq in seqs if seq <= one.high}


@given(positions(), st.integers(0, LIMIT), numbers)
def test_advance_adds_all_but_the_missing(one: Position, high: int, missing: set[int]) -> None:
    """Gaps stay gaps, and high never goes back."""
    missing = {seq for seq in missing if one.high < seq <= high}
    after = one.advance(high, position.ranges_of(missing))
    assert after.high >= one.high
    assert done(after) == done(one) | (set(range(one.high + 1, high + 1)) - missing)


@given(positions(), positions())
def test_merge_is_done_where_both_are(one: Position, other: Position) -> None:
    """The merge of two partitions redelivers rather than loses."""
    merged = one.merge(other)
    assert done(merged) == done(one) & done(other)
    assert is_normal(merged.gaps)


@given(positions())
def test_text_and_back(one: Position) -> None:
    """What the row holds is the position."""
    assert Position.parse(one.high, one.gaps_text) == one
    assert one.pending_below() == len(set(range(1, one.high + 1)) - done(one))


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[[1]]", '[["a",2]]', "null"])
def test_text_that_is_no_position_is_refused(text: str) -> None:
    """A row edited by hand is found, not guessed at."""
    with pytest.raises(SQLAlchemyEventsError, match="gaps of a position"):
        position.from_text(text)


def test_a_million_rolled_back_rows_are_one_range() -> None:
    """Size in memory and on disk goes by ranges."""
    one = Position().advance(1_000_001, ((1, 1_000_000),))
    assert one.gaps_text == "[[1,1000000]]"
    assert one.done(1_000_001)
    assert not one.done(5)


def every(seqs: Iterable[int]) -> Ranges:
    return position.ranges_of(seqs)


def test_repr_of_docstring_example() -> None:
    """The text form that the module documents."""
    assert position.to_text(every([3, 4, 5, 9])) == "[[3,5],[9,9]]"


@given(positions(), positions())
def test_what_two_positions_have_of_each_other(one: Position, other: Position) -> None:
    """As sets: all that is done, what one has beyond the other, what either has."""
    assert members(one.settled) == done(one)
    assert members(one.beyond(other)) == done(one) - done(other)
    assert done(one.also(other)) == done(one) | done(other)


@given(positions())
def test_a_position_as_text(one: Position) -> None:
    """There and back; the empty text is the beginning."""
    assert Position.from_text(one.text) == one
    assert Position.from_text("") == Position()


@pytest.mark.parametrize("text", ["x", "[]", '{"high":1}', '{"high":"1","gaps":[]}'])
def test_a_text_that_is_no_position(text: str) -> None:
    """It says so."""
    with pytest.raises(SQLAlchemyEventsError, match="a position is"):
        Position.from_text(text)

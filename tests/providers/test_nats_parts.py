"""NATS: the parts that need no server."""

from __future__ import annotations

import doctest
import itertools

import pytest

from sqla_events.filter import matches
from sqla_events.providers.nats import connection, publisher, puller
from sqla_events.providers.nats.lease import to_claim
from sqla_events.providers.nats.publisher import thinned
from sqla_events.providers.nats.streams import _covers
from sqla_events.providers.nats.subjects import filters, token

SEGMENTS = ("a", "b", "*", "a*")
PATTERNS = ["*", *(".".join(parts) for length in (2, 3) for parts in itertools.product(SEGMENTS, repeat=length))]
TYPES = [".".join(parts) for length in (1, 2, 3, 4) for parts in itertools.product(("a", "b", "ab"), repeat=length)]


def passes(wanted: tuple[str, ...], kind: str) -> bool:
    """As the server filters."""
    parts = kind.split(".")
    for number, one in enumerate(wanted):
        if one == ">":
            return len(parts) > number
        if number >= len(parts) or one not in ("*", parts[number]):
            return False
    return len(parts) == len(wanted)


@pytest.mark.parametrize("patterns", [*itertools.combinations(PATTERNS[::5], 2), *itertools.combinations(PATTERNS[::11], 3)])
def test_filters_let_through_what_matches_and_do_not_overlap(patterns: tuple[str, ...]) -> None:
    """The server refuses a consumer whose filters have a subject in common."""
    found = filters(patterns)
    for kind in TYPES:
        through = [one for one in found if passes(one, kind)]
        assert len(through) <= 1
        assert through or not any(matches(pattern, kind) for pattern in patterns)


def test_one_pattern_without_globs_is_exactly_its_filter() -> None:
    for pattern in PATTERNS:
        if "a*" not in pattern:
            (only,) = filters([pattern])
            assert [kind for kind in TYPES if passes(only, kind)] == [kind for kind in TYPES if matches(pattern, kind)]


def test_tokens_differ_as_names_do() -> None:
    """And hold nothing that a subject or the name of a consumer may not."""
    names = ["", "a", "a.b", "a=2Eb", "a b", "ü", "=", "a>", "a/b", "A", "a_b-c"]
    assert len({token(name) for name in names}) == len(names)
    assert all(part.isascii() and not set(part) & set(". *>/\\") for part in map(token, names))


@pytest.mark.parametrize(
    ("wide", "narrow", "answer"),
    [
        *[("events.>", "events.>", True), (">", "events.>", True), ("*.>", "events.>", True), ("events.*", "events.>", False)],
        *[("events.a.>", "events.>", False), ("a.events.>", "a.events.>", True), ("a.>", "a.events.>", True), ("a", "a.>", False)],
    ],
)
def test_whether_a_stream_has_our_subjects(wide: str, narrow: str, answer: bool) -> None:
    assert _covers(wide, narrow) is answer


def test_marks_stay_few_and_the_oldest_stays() -> None:
    """A day of four a second: some tens, the newest and the first among them."""
    marks: list[list[object]] = []
    for number in range(4 * 86_400):
        marks = thinned([*marks, [number, "", number / 4]], number / 4)
    assert len(marks) < 50
    assert (marks[0][0], marks[-1][0]) == (0, 4 * 86_400 - 1)


@pytest.mark.parametrize(
    ("owners", "me", "claimed"),
    [
        (["a", "a", "a", "a"], "b", 2),
        (["a", "a", "a", "b"], "b", 1),
        (["a", "a", "b", "b"], "b", 0),
        (["a", "a", "a", "b"], "c", 1),
        (["a"], "b", 0),
        (["", "", "", ""], "b", 0),
    ],
)
def test_claims_make_shares_even(owners: list[str], me: str, claimed: int) -> None:
    leases = {f"p{number}": {"owner": owner, "claimant": ""} for number, owner in enumerate(owners)}
    waiting = {key for key, lease in leases.items() if lease["owner"] != me}
    found = to_claim(leases, me, waiting)
    assert len(found) == claimed
    for key in found:
        leases[key]["claimant"] = me
    assert to_claim(leases, me, waiting) == []


@pytest.mark.parametrize("module", [connection, publisher, puller])
def test_examples_in_docstrings(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]
    assert doctest.testmod(module).attempted > 0  # type: ignore[arg-type]

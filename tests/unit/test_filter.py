"""Patterns: the table of the event broker, globs, and a tree that agrees with the simplest matcher there is."""

from __future__ import annotations

import fnmatch
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqla_events.errors import EventError
from sqla_events.event_type import quote, type_of
from sqla_events.filter import PatternTree, check_pattern, matches


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*", ["public.users.create", "auth.sessions.delete", "ping", "a.b.c.d"], []),
        (
            "public.users.*",
            ["public.users.create", "public.users.update"],
            ["public.posts.create", "auth.users.create", "public.users", "public.users.create.x"],
        ),
        (
            "*.*.create",
            ["public.users.create", "auth.sessions.create"],
            ["public.users.update", "users.create", "a.b.c.create"],
        ),
        ("public.*.*", ["public.users.create", "public.posts.delete"], ["auth.users.create", "public", "public.users"]),
        (
            "public.users.create",
            ["public.users.create"],
            ["public.users.created", "public.users.update", "Public.users.create", "public.users"],
        ),
    ],
)
def test_the_table_of_the_event_broker(pattern: str, matching: list[str], others: list[str]) -> None:
    """Each row, with what it must not match."""
    assert [matches(pattern, one) for one in matching] == [True] * len(matching)
    assert [matches(pattern, one) for one in others] == [False] * len(others)


@pytest.mark.parametrize(
    ("pattern", "event_type", "answer"),
    [
        ("public.order_*.delete", "public.order_items.delete", True),
        ("public.order_*.delete", "public.orders.delete", False),
        ("public.order_?.*", "public.order_1.create", True),
        ("public.order_?.*", "public.order_12.create", False),
        ("public.[uo]*.*", "public.users.create", True),
        ("public.[uo]*.*", "public.posts.create", False),
        ("public.USER*.*", "public.users.create", False),
        ("*s.x", "users.x", True),
        ("*.*", "a.b.c", False),
        ("public.a+b.*", "public.a+b.x", True),
        ("public.a+b.*", "public.aab.x", False),
    ],
)
def test_a_segment_may_be_a_glob(pattern: str, event_type: str, answer: bool) -> None:
    """Within its segment only, and with regard to case on every system."""
    assert matches(pattern, event_type) is answer


@pytest.mark.parametrize("pattern", ["", ".", "a.", ".a", "a..b", "a b", "a.>", "a.\x00", "a\n", None, 7, b"a"])
def test_what_is_no_pattern_is_refused(pattern: Any) -> None:
    """When subscribing, not when the first event comes."""
    with pytest.raises(EventError, match="pattern is "):
        check_pattern(pattern)
    with pytest.raises(EventError, match="pattern is "):
        PatternTree[int]().add(pattern, 1)


SEGMENTS = st.sampled_from(["public", "auth", "users", "orders", "create", "update", "a", "ab", "b"])
TYPES = st.lists(SEGMENTS, min_size=1, max_size=4).map(".".join)
PATTERNS = st.lists(SEGMENTS | st.sampled_from(["*", "*", "a*", "?", "[ab]", "*s", "**"]), min_size=1, max_size=4).map(
    ".".join
)


def naive(pattern: str, event_type: str) -> bool:
    """The definition, segment by segment."""
    if pattern == "*":
        return True
    wanted, got = pattern.split("."), event_type.split(".")
    return len(wanted) == len(got) and all(
        fnmatch.fnmatchcase(part, glob) for part, glob in zip(got, wanted, strict=True)
    )


@given(st.lists(PATTERNS, max_size=12), st.lists(TYPES, min_size=1, max_size=5))
def test_the_tree_agrees_with_the_definition(patterns: list[str], event_types: list[str]) -> None:
    """Every value under a matching pattern, in the order they were added, the same pattern as often as it was added."""
    tree: PatternTree[int] = PatternTree()
    for number, pattern in enumerate(patterns):
        tree.add(pattern, number)
    for event_type in event_types:
        assert tree.match(event_type) == [
            number for number, pattern in enumerate(patterns) if naive(pattern, event_type)
        ]


def test_a_match_looks_at_a_few_nodes_of_many_thousand() -> None:
    """What it costs depends on the segments, not on the number of subscriptions: counted, not timed."""
    tree: PatternTree[int] = PatternTree()
    for number in range(20_000):
        tree.add(f"schema{number % 100}.table{number}.create", number)
    tree.add("*.table77.*", -1)
    tree.add("*", -2)
    visited = 0
    node = type(tree._root)
    children = node.children

    def counting(self: Any, segment: str) -> Any:
        nonlocal visited
        for child in children(self, segment):
            visited += 1
            yield child

    node.children = counting  # type: ignore[method-assign]
    try:
        assert tree.match("schema77.table77.create") == [77, -1, -2]
    finally:
        node.children = children  # type: ignore[method-assign]
    assert visited <= 2 + 4 + 8


def test_ten_thousand_subscriptions_give_the_right_answers() -> None:
    """Exact, half open and globs together, each compared with the definition."""
    forms = ("s{a}.t{b}.create", "s{a}.*.update", "*.t{b}.*", "s{a}.t{b}?.create", "*.t[{a}]*.delete")
    patterns = [forms[n % 5].format(a=n % 7, b=n % 503) for n in range(10_000)]
    tree: PatternTree[int] = PatternTree()
    for number, pattern in enumerate(patterns):
        tree.add(pattern, number)
    for event_type in ("s1.t5.create", "s3.t12.update", "s6.t502.delete", "s9.x.update", "s0.t0", "s2.t31.create"):
        expected = [number for number, pattern in enumerate(patterns) if naive(pattern, event_type)]
        assert tree.match(event_type) == expected


@given(st.text("ab[]!-^&|~?*\\", min_size=1, max_size=6), st.text("ab[]!-^&|~", min_size=1, max_size=4))
def test_any_signs_in_a_glob(glob: str, segment: str) -> None:
    """Brackets that never close and signs of regular expressions are no error and no warning."""
    assert matches(f"x.{glob}", f"x.{segment}") is naive(f"x.{glob}", f"x.{segment}")


def test_a_pattern_that_is_quoted_matches_the_odd_name() -> None:
    """A table with a dot or an asterisk in its name is one segment."""
    event_type = type_of("public", "odd.*name", "create")
    assert matches(f"public.{quote('odd.*name')}.*", event_type)
    assert matches("*.*.create", event_type)
    assert not matches("public.odd.*", event_type)

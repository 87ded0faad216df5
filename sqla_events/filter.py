"""Patterns over event types: compiled once into a tree, matched in O(segments).

The table of the event broker holds exactly: ``*`` alone matches everything; otherwise a pattern has as many segments as
the type, and each is the same text or ``*``. A segment may also be a glob (``user*``, ``order_?``); such a segment costs
one regular expression at its place in the tree, which is why plain ``*`` and plain text have branches of their own.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from .errors import EventError

T = TypeVar("T")

_ALLOWED = re.compile(r"[^\s.>\x00-\x1f\x7f]+(\.[^\s.>\x00-\x1f\x7f]+)*")


def check_pattern(pattern: object) -> str:
    """Return ``pattern`` if it is one.

    :raises EventError: where it is not; the message says what is allowed.
    """
    if not isinstance(pattern, str) or not _ALLOWED.fullmatch(pattern):
        raise EventError(
            f"pattern is {pattern!r}; it must be '*' or segments joined by dots, each text, '*' or a glob, "
            "such as 'public.users.*', '*.*.create' or 'public.order_*.delete'"
        )
    return pattern


def matches(pattern: str, event_type: str) -> bool:
    """Whether one pattern matches one type. To match many patterns at once, use :class:`PatternTree`."""
    tree: PatternTree[bool] = PatternTree()
    tree.add(pattern, True)
    return bool(tree.match(event_type))


def like(pattern: str) -> str:
    r"""A LIKE pattern (escape character ``\``) for every type that ``pattern`` matches, and for some that it does not.

    >>> print(like("public.order_*.delete"))
    public.order\_%.delete
    """
    plain = re.sub(r"[\\%_]", lambda match: "\\" + match[0], pattern)
    return re.sub(r"\[.*?\]|[*?]", "%", plain)


class _Node(Generic[T]):
    __slots__ = ("any", "globs", "here", "text")

    def __init__(self) -> None:
        self.here: list[tuple[int, T]] = []
        self.text: dict[str, _Node[T]] = {}
        self.any: _Node[T] | None = None
        self.globs: dict[str, tuple[Callable[[str], object], _Node[T]]] = {}

    def child(self, segment: str) -> _Node[T]:
        if segment == "*":
            self.any = self.any or _Node()
            return self.any
        if any(sign in segment for sign in "*?["):
            if segment not in self.globs:
                self.globs[segment] = (re.compile(fnmatch.translate(segment)).match, _Node())
            return self.globs[segment][1]
        return self.text.setdefault(segment, _Node())

    def children(self, segment: str) -> Iterator[_Node[T]]:
        if (exact := self.text.get(segment)) is not None:
            yield exact
        if self.any is not None:
            yield self.any
        for fits, node in self.globs.values():
            if fits(segment):
                yield node


class PatternTree(Generic[T]):
    """Values under patterns. ``match`` gives the values whose pattern matches a type, in the order they were added."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()
        self._everything: list[tuple[int, T]] = []
        self._count = 0

    def add(self, pattern: str, value: T) -> None:
        """Put ``value`` under ``pattern``.

        :raises EventError: for a pattern that is not one.
        """
        entry = (self._count, value)
        self._count += 1
        if check_pattern(pattern) == "*":
            self._everything.append(entry)
            return
        node = self._root
        for segment in pattern.split("."):
            node = node.child(segment)
        node.here.append(entry)

    def match(self, event_type: str) -> list[T]:
        """The values whose pattern matches, in the order they were added."""
        level = [self._root]
        for segment in event_type.split("."):
            level = [child for node in level for child in node.children(segment)]
        found = [entry for node in level for entry in node.here] + self._everything
        return [value for _, value in sorted(found, key=lambda entry: entry[0])]

"""Which events a reader hands out: those whose type somebody in its group wants."""

from __future__ import annotations

from collections.abc import Sequence

from ..filter import PatternTree


class Wanted(dict[str, bool]):
    """Whether a type matches any of the patterns; types repeat, so each is matched once."""

    def __init__(self, patterns: Sequence[str]) -> None:
        super().__init__()
        self._tree: PatternTree[bool] = PatternTree()
        for pattern in patterns:
            self._tree.add(pattern, True)

    def __missing__(self, event_type: str) -> bool:
        if len(self) >= 10_000:  # hand-made types may be many
            self.clear()
        self[event_type] = found = bool(self._tree.match(event_type))
        return found


def wanted_by(patterns: Sequence[str]) -> Wanted | None:
    """None: everything is wanted."""
    return None if "*" in patterns else Wanted(patterns)

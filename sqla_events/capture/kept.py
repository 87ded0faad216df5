"""What is known about objects of others, as long as they live."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import ref

_Kept = TypeVar("_Kept")


class ByIdentity(Generic[_Kept]):
    """What is known about objects, as long as they live.

    Why not WeakKeyDictionary: annotated statements, of one bulk update on several tables, are equal to each other.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[ref[Any], _Kept]] = {}

    def get(self, owner: Any, make: Callable[..., _Kept], *arguments: Any) -> _Kept:
        """What is kept for the owner, made of it and the arguments where nothing is."""
        kept = self._kept.get(id(owner))
        if kept is not None and kept[0]() is owner:
            return kept[1]
        made, number, drop = make(owner, *arguments), id(owner), self._kept.pop
        self._kept[number] = (ref(owner, lambda _: drop(number, None)), made)
        return made

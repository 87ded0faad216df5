"""Who wants which events: a handler under its patterns, with its rules for retrying."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapper

from .errors import ConfigError, EventError
from .event import Event
from .event_type import quote
from .filter import PatternTree, check_pattern
from .retry import RetryPolicy

Handler = Callable[[Event], Any]
"""What a user writes: a function or a coroutine function of one event. What it returns is ignored."""


@dataclass(frozen=True, eq=False)
class Subscription:
    """One handler's interest within a consumer group."""

    name: str
    """Unique in the group. Retries and dead letters are kept under it, so it should outlive a refactoring."""
    patterns: tuple[str, ...]
    handler: Handler
    group: str
    policy: RetryPolicy
    timeout: float | None = None
    """Seconds an attempt of a coroutine handler may take; None: any time."""
    retry_on: tuple[type[BaseException], ...] = (Exception,)

    def __post_init__(self) -> None:
        for pattern in self.patterns:
            check_pattern(pattern)
        if not callable(self.handler):
            raise ConfigError(
                f"the handler of {', '.join(self.patterns)} is {self.handler!r}; it must be callable with one event"
            )
        if self.timeout is not None and not self.is_async:
            raise ConfigError(
                f"subscription {self.name!r} has a timeout of {self.timeout!r} s, but a plain function cannot be interrupted; "
                "make the handler a coroutine function or leave the timeout out"
            )

    @cached_property
    def is_async(self) -> bool:
        """Whether the handler is a coroutine function (also behind partial, or as an object's __call__)."""
        return is_coroutine_function(self.handler)


def is_coroutine_function(handler: Any) -> bool:
    """Whether calling it gives a coroutine."""
    while isinstance(handler, partial):
        handler = handler.func
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004


def name_of(handler: Any) -> str:
    """The name a handler has by default: where it is defined."""
    while isinstance(handler, partial):
        handler = handler.func
    kind = handler if hasattr(handler, "__qualname__") else type(handler)
    return f"{kind.__module__}.{kind.__qualname__}"


def patterns_of(targets: Sequence[Any], default_schema: str) -> tuple[str, ...]:
    """Patterns from what a user gave: patterns, or one mapped class or Table followed by operations.

    >>> patterns_of(["public.users.*", "*.*.delete"], "public")
    ('public.users.*', '*.*.delete')

    :raises EventError: where it is neither.
    """
    if not targets:
        raise EventError("subscribe needs a pattern such as 'public.users.*', or a mapped class and operations")
    if all(isinstance(target, str) for target in targets):
        return tuple(check_pattern(target) for target in targets)
    operations = targets[1:] or ("*",)
    return tuple(
        f"{table}.{check_pattern(operation)}"
        for table in _tables_of(targets[0], default_schema)
        for operation in operations
    )


def _tables_of(target: Any, default_schema: str) -> Iterable[str]:
    mapped = sa.inspect(target, raiseerr=False)
    tables: Iterable[Any] = mapped.tables if isinstance(mapped, Mapper) else [mapped]
    for table in tables:
        if not isinstance(table, sa.Table):
            raise EventError(f"{target!r} is neither a pattern nor a mapped class nor a Table")
        yield f"{quote(table.schema or default_schema)}.{quote(table.name)}"


class Subscriptions:
    """The subscriptions of one group; knows which of them want an event."""

    def __init__(self) -> None:
        self._all: dict[str, Subscription] = {}
        self._tree: PatternTree[Subscription] = PatternTree()
        self._matches: dict[str, tuple[Subscription, ...]] = {}
        self.paused: set[str] = set()
        """Names of subscriptions that take nothing for now."""

    def __iter__(self) -> Any:
        return iter(self._all.values())

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, name: str) -> bool:
        return name in self._all

    @property
    def patterns(self) -> tuple[str, ...]:
        """Every pattern, each once."""
        return tuple(dict.fromkeys(pattern for one in self._all.values() for pattern in one.patterns))

    def add(self, subscription: Subscription) -> None:
        """Add one.

        :raises ConfigError: if the group has one of that name.
        """
        if subscription.name in self._all:
            raise ConfigError(
                f"group {subscription.group!r} already has a subscription named {subscription.name!r}; give this one another name="
            )
        self._all[subscription.name] = subscription
        self._rebuild()

    def remove(self, name: str) -> None:
        """Take one away; nothing happens if it is not there."""
        self._all.pop(name, None)
        self._rebuild()

    def _rebuild(self) -> None:
        tree: PatternTree[Subscription] = PatternTree()
        for subscription in self._all.values():
            for pattern in subscription.patterns:
                tree.add(pattern, subscription)
        self._tree, self._matches = tree, {}

    def matching(self, event_type: str) -> tuple[Subscription, ...]:
        """Those that want events of this type, each once, in the order they were added. Types are few: answers are kept."""
        found = self._matches.get(event_type)
        if found is None:
            if len(self._matches) >= 10_000:  # hand-made types may be many
                self._matches.clear()
            found = self._matches[event_type] = tuple(dict.fromkeys(self._tree.match(event_type)))
        return found

    def named(self, wanted: Handler | str) -> list[str]:
        """Names of the subscriptions that are meant: by their name, or every one of a handler.

        :raises ConfigError: if there is none.
        """
        found = [one.name for one in self if wanted in (one.name, one.handler)]
        if not found:
            raise ConfigError(f"there is no subscription {wanted!r}; there are {', '.join(self._all) or 'none'}")
        return found

    def free_name(self, wanted: str) -> str:
        """``wanted``, or with ``#2``, ``#3`` … where it is taken."""
        name, number = wanted, 1
        while name in self._all:
            number += 1
            name = f"{wanted}#{number}"
        return name

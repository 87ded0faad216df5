"""Tables that are declared further while they are captured: another column, another foreign key."""

from __future__ import annotations

from threading import Lock
from typing import Any, Protocol
from weakref import ref

import sqlalchemy as sa
from sqlalchemy import event


class Watcher(Protocol):
    """What wants to know."""

    def declared(self, part: sa.Column[Any] | sa.ForeignKeyConstraint, table: sa.Table) -> None:
        """A table has a further part."""


_watchers: tuple[ref[Watcher], ...] = ()
"""Replaced as a whole: who goes through it goes through what it was."""
_lock = Lock()


def watch(watcher: Watcher) -> None:
    """Tell this one from now on, as long as it lives."""
    global _watchers
    with _lock:
        _watchers = (*_without(watcher), ref(watcher))


def unwatch(watcher: Watcher) -> None:
    """Not any more."""
    global _watchers
    with _lock:
        _watchers = _without(watcher)


def _without(watcher: Watcher) -> tuple[ref[Watcher], ...]:
    return tuple(one for one in _watchers if one() not in (None, watcher))


def _declared(part: Any, table: sa.Table) -> None:
    for one in _watchers:
        watcher = one()
        if watcher is not None:
            watcher.declared(part, table)


# Once and for good: other threads declare tables meanwhile, and SQLAlchemy does not stand listeners that come and go then.
for _part in (sa.Column, sa.ForeignKeyConstraint):
    event.listen(_part, "after_parent_attach", _declared)

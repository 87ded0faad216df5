"""Damage to the events before they are replayed. A proof that does not notice it proves nothing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import msgspec
import sqlalchemy as sa

from sqla_events.event import Event

Mutant = Callable[[list[Event]], list[Event]]

_numbers = count(1)


def _untouched(events: list[Event]) -> list[Event]:
    return events


def _every_hundredth(events: list[Event]) -> list[Event]:
    return [event for event in events if next(_numbers) % 100]


def _associations(events: list[Event]) -> list[Event]:
    """Without the rows of many-to-many relationships."""
    tables = {
        str(one.secondary.name)
        for registry in sa.orm.mapperlib._all_registries()
        for mapper in registry.mappers
        for one in mapper._init_properties.values()
        if getattr(one, "secondary", None) is not None and hasattr(one.secondary, "name")
    }
    return [event for event in events if event.entity not in tables]


def _column(events: list[Event]) -> list[Event]:
    """Without one changed column of each update."""
    return [_without_column(event) if event.operation == "update" else event for event in events]


def _without_column(event: Event) -> Event:
    payload = dict(event.payload, after=dict(list(event.after.items())[1:]))
    return msgspec.structs.replace(event, payload=payload)


MUTANTS: dict[str | None, Mutant] = {None: _untouched, "events": _every_hundredth, "associations": _associations, "column": _column}

"""Schema versions: old events in the shape that today's handlers know.

An event says which version its payload has. Whoever changes a payload's shape raises the version of what is written
from then on, and registers an upcaster for each step; the log is never rewritten. A handler sees the newest version only.

Why one step at a time (eventsourcing, RailsEventStore and Axon do the same): with n versions n - 1 functions are enough,
and none has to change when the next version comes.
"""

from __future__ import annotations

from collections.abc import Callable

from .errors import ConfigError, EventError
from .event import Event
from .filter import check_pattern, matches

Upcaster = Callable[[Event], Event]
"""Makes an event of one version the same event of the next; what ``schema_version`` its result has is set for it."""


class Upcasters:
    """Every upcaster of a broker. Calling it with an event gives that event in the newest version."""

    def __init__(self) -> None:
        self._steps: dict[tuple[str, int], Upcaster] = {}
        self._ways: dict[str, dict[int, Upcaster]] = {}

    def __bool__(self) -> bool:
        return bool(self._steps)

    def add(self, pattern: str, to: int, upcaster: Upcaster) -> None:
        """From version ``to - 1`` to ``to``, for events whose type matches.

        :raises ConfigError: for a version that is none, or a step that is registered already.
        """
        check_pattern(pattern)
        if isinstance(to, bool) or not isinstance(to, int) or to < 2:
            raise ConfigError(f"to is {to!r}; it must be a version from 2 on: the first upcaster makes version 2 of version 1")
        if (pattern, to) in self._steps:
            raise ConfigError(f"{pattern!r} has an upcaster to version {to} already")
        self._steps[pattern, to] = upcaster
        self._ways = {}

    def __call__(self, event: Event) -> Event:
        """The event in its newest version.

        :raises EventError: where a step is missing, an upcaster fails or gives no event, or the event is newer than
            every version that is known here.
        """
        way = self._ways.get(event.type)
        if way is None:
            way = self._way(event.type)
        if not way:
            return event
        newest = max(way)
        if event.schema_version > newest:
            raise EventError(
                f"{event.type} {event.id} is of schema version {event.schema_version}, and upcasters are known up to "
                f"{newest}: what wrote it is newer than this process"
            )
        for version in range(event.schema_version + 1, newest + 1):
            event = _one_step(event, way.get(version), version)
        return event

    def _way(self, event_type: str) -> dict[int, Upcaster]:
        way = {to: upcaster for (pattern, to), upcaster in self._steps.items() if matches(pattern, event_type)}
        if len(self._ways) >= 10_000:  # hand-made types may be many
            self._ways.clear()
        self._ways[event_type] = way
        return way


def _one_step(event: Event, upcaster: Upcaster | None, version: int) -> Event:
    if upcaster is None:
        raise EventError(
            f"{event.type} {event.id} is of schema version {version - 1}, and there is no upcaster to version {version}; "
            f"register one: @broker.upcaster({event.type!r}, to={version})"
        )
    try:
        made = upcaster(event)
    except Exception as error:
        raise EventError(
            f"{event.type} {event.id} cannot be made version {version}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, Event):
        raise EventError(f"the upcaster of {event.type} to version {version} gave {made!r}; it must give an Event")
    return made.replace(schema_version=version)

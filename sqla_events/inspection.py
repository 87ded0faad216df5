"""Questions to a broker: one event, many events, how far the groups are, the dead letters."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import log
from .deliveries import LogDeadLetters
from .errors import EventError
from .event import Event, Status
from .filter import check_pattern
from .provider import DeadLetter
from .runtime import Runtime


@dataclass(frozen=True)
class EventFilter:
    """Which events ``broker.list`` gives: those that fulfil every condition that is set.

    :raises EventError: for a pattern, status or limit that is none, or a time without a zone.
    """

    pattern: str = "*"
    """On the type, as in a subscription."""
    status: Status | str | None = None
    """As ``group`` sees it."""
    group: str | None = None
    """The configured consumer group unless given."""
    source: str | None = None
    schema: str | None = None
    entity: str | None = None
    operation: str | None = None
    key: str | None = None
    user_id: int | str | None = None
    session_id: str | None = None
    instance_id: str | None = None
    since: dt.datetime | None = None
    """Created at or after; events whose ``created_at`` is ten minutes and more from when they were stored may be missed."""
    until: dt.datetime | None = None
    """Created before; likewise."""
    after: int | None = None
    """With a seq above (below, with ``newest_first``): the last one of the page before."""
    limit: int = 100
    newest_first: bool = False

    def __post_init__(self) -> None:
        """Raise EventError for a condition that nothing can fulfil."""
        check_pattern(self.pattern)
        known = [str(one.value) for one in Status]
        if self.status is not None and self.status not in known:
            raise EventError(f"status is {self.status!r}; it must be one of {', '.join(known)}")
        for name in ("since", "until"):
            moment = getattr(self, name)
            if moment is not None and (not isinstance(moment, dt.datetime) or moment.tzinfo is None):
                raise EventError(f"{name} is {moment!r}; it must be a datetime with a time zone")
        if self.limit < 0:
            raise EventError(f"limit is {self.limit}; it must be a number of events")


async def get(runtime: Runtime, event_id: uuid.UUID, group: str) -> Event | None:
    """One event as a group sees it."""
    return await runtime.the_database.run(log.get_event, runtime.tables, event_id, group)


async def find(runtime: Runtime, wanted: EventFilter, group: str) -> list[Event]:
    """The events that a filter wants."""
    return await runtime.the_database.run(log.list_events, runtime.tables, wanted, wanted.group or group)


async def stats(runtime: Runtime) -> Any:
    """How far every group is."""
    return await runtime.the_database.run(log.stats, runtime.tables)


class DeadLetterDesk:
    """The dead letters of a broker, for whoever looks after them: what its subscriptions gave up on, at the provider, and
    what a relay's transport refused, in the log (their ids begin with ``log:``).
    """

    def __init__(self, ask: Callable[[Callable[[Runtime], Coroutine[Any, Any, Any]]], Any]) -> None:
        self._ask = ask

    def list(self, *, group: str | None = None, pattern: str = "*", limit: int = 100, after: str | None = None) -> Any:
        """Dead letters, oldest first; ``after`` is the id of the last one already seen."""
        return self._ask(lambda runtime: _listed(runtime, limit, after, group=group, pattern=check_pattern(pattern)))

    def redrive(self, ids: Sequence[str] | None = None, *, group: str | None = None, pattern: str = "*") -> Any:
        """Deliver these (or every one of the group that matches) again, each to the subscription that gave up.

        Returns how many.
        """
        return self._ask(lambda runtime: _each(runtime, "redrive", ids, group, pattern))

    def discard(self, ids: Sequence[str] | None = None, *, group: str | None = None, pattern: str = "*") -> Any:
        """Forget these (or every one of the group that matches); returns how many."""
        return self._ask(lambda runtime: _each(runtime, "discard", ids, group, pattern))


LOG = "log:"
"""What the ids of dead letters begin with that are in the log while others are at the provider."""


async def _desks(runtime: Runtime) -> dict[str, Any]:
    """Where dead letters are, by what their ids begin with."""
    provider = await runtime.the_provider()
    if runtime.database is None or provider.features.log_is_transport:
        return {"": provider.dead_letters}
    return {LOG: LogDeadLetters(runtime.database, runtime.tables, runtime.ring), "": provider.dead_letters}


async def _listed(runtime: Runtime, limit: int, after: str | None, **which: Any) -> Sequence[DeadLetter]:
    """First those in the log, then the provider's."""
    found: list[DeadLetter] = []
    for prefix, desk in (await _desks(runtime)).items():
        if after is not None and not after.startswith(prefix):
            continue  # the page begins behind these
        start, after = after and after.removeprefix(prefix), None
        if limit > len(found):
            page = await desk.list(limit=limit - len(found), after=start, **which)
            found += [replace(one, id=prefix + one.id) for one in page]
    return found


async def _each(runtime: Runtime, act: str, ids: Sequence[str] | None, group: str | None, pattern: str) -> int:
    check_pattern(pattern)
    count, left = 0, None if ids is None else list(ids)
    for prefix, desk in (await _desks(runtime)).items():
        meant = None if left is None else [one.removeprefix(prefix) for one in left if one.startswith(prefix)]
        left = None if left is None else [one for one in left if not one.startswith(prefix)]
        if meant is None or meant:
            count += await getattr(desk, act)(meant, group=group, pattern=pattern)
    return count

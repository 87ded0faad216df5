"""Questions to a broker: one event, many events, how far the groups are, the dead letters."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from . import log
from .errors import ConfigError
from .event import Event, Status
from .runtime import Runtime


@dataclass(frozen=True)
class EventFilter:
    """Which events ``broker.list`` gives: those that fulfil every condition that is set."""

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
    """Created at or after."""
    until: dt.datetime | None = None
    """Created before."""
    after: int | None = None
    """With a seq above; the last one of the page before."""
    limit: int = 100
    newest_first: bool = False


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
    """The dead letters of a broker's provider, for whoever looks after them."""

    def __init__(self, ask: Callable[[Callable[[Runtime], Coroutine[Any, Any, Any]]], Any]) -> None:
        self._ask = ask

    def list(self, *, group: str | None = None, pattern: str = "*", limit: int = 100, after: str | None = None) -> Any:
        """Dead letters, oldest first; ``after`` is the id of the last one already seen."""
        return self._ask(lambda runtime: _letters(runtime).list(group=group, pattern=pattern, limit=limit, after=after))

    def redrive(self, ids: Sequence[str] | None = None, *, group: str | None = None, pattern: str = "*") -> Any:
        """Deliver these (or every one of the group that matches) again, each to the subscription that gave up.

        Returns how many.
        """
        return self._ask(lambda runtime: _letters(runtime).redrive(ids, group=group, pattern=pattern))

    def discard(self, ids: Sequence[str] | None = None, *, group: str | None = None, pattern: str = "*") -> Any:
        """Forget these (or every one of the group that matches); returns how many."""
        return self._ask(lambda runtime: _letters(runtime).discard(ids, group=group, pattern=pattern))


def _letters(runtime: Runtime) -> Any:
    if runtime.provider is None:
        raise ConfigError("this broker has no provider yet; start it first")
    return runtime.provider.dead_letters

"""Replay: events that were delivered before, once more, into one subscription or as new deliveries, marked as replays.

    history (the log where there is one, else the transport's) -> choose -> mark -> publish

A replay into one subscription leaves everybody else alone: on the log it is rows that the group's reader delivers in the
lanes of their rows, on a transport messages that name the one they are for. New deliveries are copies that every group
gets. Either way the id stays, so a handler that is idempotent by ``event.id`` must ask ``event.is_replay`` as well.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from . import log
from .errors import ConfigError, EventError, PublishRejected
from .event import REPLAY, Event, new_id, now
from .filter import check_pattern, matches
from .log import replays
from .provider import ONLY, Batch, Message, Provider, only_header
from .providers.log import log_history
from .runtime import Runtime, message_of
from .signals import logger
from .wire import unpacked

FIRST_CREATED = "first_created_at"
"""The member of a copy's metadata that says when the event itself was made."""

BATCH = 500
PAGE = 5_000
"""Events of one transaction, where they are not read."""
CLOCKS = dt.timedelta(minutes=10)
"""How far the clock that made an id and the transport's may be apart."""


@dataclass(frozen=True)
class Wanted:
    """What to replay, and for whom.

    :raises ConfigError: for more than one beginning.
    :raises EventError: for a beginning that is none.
    """

    pattern: str
    since: dt.datetime | None
    position: str | None
    event_id: uuid.UUID | None
    targets: Sequence[tuple[str, str]]
    """Groups and subscriptions; none: new deliveries, for everyone."""

    def __post_init__(self) -> None:
        check_pattern(self.pattern)
        if [self.since, self.position, self.event_id].count(None) < 2:
            raise ConfigError("a replay has one beginning: give since, position or id, or none of them for everything")
        if self.since is not None and (not isinstance(self.since, dt.datetime) or self.since.tzinfo is None):
            raise EventError(f"since is {self.since!r}; it must be a datetime with a time zone")


def identity(value: uuid.UUID | str) -> uuid.UUID:
    """The id of an event.

    :raises EventError: for text that is no UUID.
    """
    if isinstance(value, uuid.UUID):
        return value
    try:
        return uuid.UUID(value)
    except (ValueError, AttributeError, TypeError):
        raise EventError(f"id is {value!r}; it must be the UUID of an event") from None


async def replay(runtime: Runtime, wanted: Wanted) -> int:
    """Replay; returns how many events."""
    provider = await runtime.the_provider()
    if provider.features.log_is_transport and wanted.targets:
        return await _within_the_log(runtime, wanted)
    pack = _as_it_is if provider.features.log_is_transport else runtime.pack
    mark, count = str(new_id()), 0
    async for events in _chosen(await _source(runtime, provider, wanted), wanted):
        messages = [message for event in events for message in _copies(event, wanted.targets, mark)]
        count += len(events) - len(await _publish(provider, list(map(pack, messages))))
    return count


async def _publish(provider: Provider, messages: list[Message]) -> set[str]:
    """All but those that the transport will never take: they hold up nobody. Returns the ids of their events."""
    refused: set[str] = set()
    while messages:
        try:
            await provider.publish(Batch(messages))
            break
        except PublishRejected as error:
            logger.warning("not replayed: %s", error)
            left = [one for one in messages if one.id != error.event_id]
            if len(left) == len(messages):
                raise
            refused.add(error.event_id.partition(":")[0])
            messages = left
    return refused


async def _within_the_log(runtime: Runtime, wanted: Wanted) -> int:
    """What is in the log and comes from the log need not be read on the way."""
    database, mark, count = runtime.the_database, str(new_id()), 0
    position = await _position(runtime, wanted)
    left: replays.Span | None = await database.run(replays.span, runtime.tables, wanted.since, position, wanted.pattern)
    while left is not None:
        some, left = await database.run(replays.again, runtime.tables, left, wanted.targets, mark, PAGE)
        count += some
        runtime.ring()
    return count


def _as_it_is(message: Message) -> Message:
    return message


async def _source(runtime: Runtime, provider: Provider, wanted: Wanted) -> AsyncIterator[Sequence[Message]]:
    """The log where it is in reach: it has everything, and what a transport keeps is a part of it."""
    since = wanted.since
    if runtime.database is not None:
        position = await _position(runtime, wanted)
        return log_history(runtime.database, runtime.tables, since, position, wanted.pattern)
    if not provider.features.history:
        raise ConfigError(f"provider {runtime.provider_name!r} keeps no history; replay from a process with the database")
    if wanted.event_id is not None and wanted.event_id.version == 7:
        since = dt.datetime.fromtimestamp((wanted.event_id.int >> 80) / 1000, dt.UTC) - CLOCKS
    return provider.history(since, wanted.position)


async def _position(runtime: Runtime, wanted: Wanted) -> str | None:
    """Where in the log to begin, unless at a time."""
    if wanted.event_id is None:
        return wanted.position
    found = await runtime.the_database.run(log.get_event, runtime.tables, wanted.event_id, "")
    return str(found.seq) if found else _unknown(wanted.event_id)


def _unknown(event_id: uuid.UUID) -> Any:
    raise EventError(f"there is no event {event_id}; it is older than what is kept, or was never there")


async def _chosen(source: AsyncIterator[Sequence[Message]], wanted: Wanted) -> AsyncIterator[list[Event]]:
    """Events that match and are no replays themselves, from the wanted one on.

    :raises EventError: if the wanted one does not come.
    """
    begun = wanted.event_id is None
    async for messages in source:
        originals = [one for one in messages if ONLY not in one.headers and (not begun or matches(wanted.pattern, one.type))]
        events = [event for one in originals if (event := _readable(one)) is not None]
        if not begun:
            at = next((index for index, event in enumerate(events) if event.id == wanted.event_id), None)
            begun, events = at is not None, [] if at is None else events[at:]
        chosen = [event for event in events if not event.is_replay and matches(wanted.pattern, event.type)]
        for start in range(0, len(chosen), BATCH):
            yield chosen[start : start + BATCH]
    if not begun and wanted.event_id is not None:
        _unknown(wanted.event_id)


def _readable(message: Message) -> Event | None:
    try:
        return unpacked(message.body, message.headers)
    except EventError as error:
        logger.warning("message %s is not replayed: %s", message.id, error)
        return None


def _copies(event: Event, targets: Sequence[tuple[str, str]], mark: str) -> list[Message]:
    """What is published: one copy for each subscription, or one for everyone."""
    about = {**event.metadata, REPLAY: mark}
    if not targets:
        about[FIRST_CREATED] = event.created_at
        copy = message_of(event.replace(metadata=about, created_at=now(), seq=None))
        return [msgspec.structs.replace(copy, id=f"{event.id}:{mark}")]
    copy = message_of(event.replace(metadata=about))
    return [
        msgspec.structs.replace(copy, id=f"{event.id}:{mark}:{number}", headers=only_header(*target))
        for number, target in enumerate(targets)
    ]

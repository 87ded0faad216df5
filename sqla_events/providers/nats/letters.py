"""Dead letters: messages of a stream of their own, each the event as it was on the wire with its failure in a header."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from ...errors import EventError, ProviderUnavailable
from ...event import Event, Status, now
from ...filter import matches
from ...provider import DeadLetter, Failure, only_header
from ...wire import unpacked
from .delivery import NatsDelivery, own_headers
from .jetstream import JetStream, Kept, Refused
from .streams import dead_name
from .subjects import subject_of, token

FAILURE = "sqla-failure"
TRACE_BYTES = 16_000
ERROR_BYTES = 4_000
"""Longer ones are cut, the error at its end and the traceback at its beginning: the server takes 64 KB of headers."""
CONSUMER = "(consumer)"
"""Stands for the subscription where an event was delivered too often; such a letter is redriven to all of them."""


class NatsDeadLetters:
    """See provider.DeadLetters."""

    def __init__(self, jetstream: JetStream, stream: str, prefix: str) -> None:
        self._jetstream = jetstream
        self._name = dead_name(stream)
        self._prefix = prefix

    async def add(self, group: str, delivery: NatsDelivery, failure: Failure, first: dt.datetime) -> None:
        """A subscription gave up. Adding it again replaces it."""
        about = {
            "group": group,
            "subscription": failure.subscription,
            "type": delivery.type,
            "attempts": failure.attempts,
            "first": first.isoformat(),
            "last": now().isoformat(),
            "error": _cut(failure.error, ERROR_BYTES),
            "traceback": _cut(failure.traceback, TRACE_BYTES, end=True),
        }
        event_id = delivery.message_id.partition(":")[0]
        subject = f"{self._name}.{token(group)}.{token(failure.subscription)}.{token(event_id)}"
        headers = {**delivery.headers, FAILURE: json.dumps(about, ensure_ascii=True)}
        try:
            await self._jetstream.store(subject, delivery.body, headers)
        except Refused as error:
            raise ProviderUnavailable(f"the dead letter of event {event_id} cannot be kept: {error}") from error

    async def list(
        self, *, group: str | None = None, pattern: str = "*", limit: int = 100, after: str | None = None
    ) -> Sequence[DeadLetter]:
        """Oldest first; ``after`` is the id of the last one already seen."""
        found: list[DeadLetter] = []
        async for kept, about in self._meant(None, group, pattern, _number(after or "0")):
            found.append(_letter(kept, about))
            if len(found) >= limit:
                break
        return found

    async def redrive(self, ids: Sequence[str] | None = None, *, group: str | None = None, pattern: str = "*") -> int:
        """Publish each once more, for the subscription that gave up; returns how many."""
        count = 0
        async for kept, about in self._meant(ids, group, pattern):
            headers = own_headers(kept.headers) | {"Nats-Msg-Id": f"{kept.subject.rpartition('.')[2]}:redriven-{kept.seq}"}
            del headers[FAILURE]
            if about["subscription"] != CONSUMER:
                headers |= only_header(about["group"], about["subscription"])
            try:
                await self._jetstream.store(subject_of(self._prefix, about["type"]), kept.body, headers)
            except Refused as error:
                raise ProviderUnavailable(f"dead letter {kept.seq} cannot be published: {error}") from error
            count += await self._jetstream.delete(self._name, kept.seq)
        return count

    async def discard(self, ids: Sequence[str] | None = None, *, group: str | None = None, pattern: str = "*") -> int:
        """Forget them; returns how many."""
        found = [kept.seq async for kept, _ in self._meant(ids, group, pattern)]
        return sum([await self._jetstream.delete(self._name, seq) for seq in found])

    async def _meant(
        self, ids: Sequence[str] | None, group: str | None, pattern: str, after: int = 0
    ) -> AsyncIterator[tuple[Kept, Mapping[str, Any]]]:
        """Those that are named, or all of the group that match and are there now."""
        if ids is not None:
            for one in ids:
                kept = await self._jetstream.get(self._name, seq=_number(one))
                if kept is not None:
                    yield kept, json.loads(kept.headers[FAILURE])
            return
        last = (await self._jetstream.info(self._name))["state"]["last_seq"]
        subject = f"{self._name}.{token(group)}.>" if group is not None else f"{self._name}.>"
        async for kept in self._jetstream.following(self._name, subject, after):
            about = json.loads(kept.headers[FAILURE])
            if kept.seq > last:
                return
            if matches(pattern, about["type"]):
                yield kept, about


def _number(letter: str) -> int:
    if not letter.isdecimal():
        raise EventError(f"{letter!r} is not the id of a dead letter; on NATS ids are numbers")
    return int(letter)


def _letter(kept: Kept, about: Mapping[str, Any]) -> DeadLetter:
    return DeadLetter(
        id=str(kept.seq),
        group=about["group"],
        subscription=about["subscription"],
        event=_event(kept, about),
        error=about["error"],
        traceback=about["traceback"],
        attempts=about["attempts"],
        first_failed_at=dt.datetime.fromisoformat(about["first"]),
        last_failed_at=dt.datetime.fromisoformat(about["last"]),
    )


def _event(kept: Kept, about: Mapping[str, Any]) -> Event:
    """The event with its failure; of one that cannot be decoded, what is known of it."""
    try:
        event = unpacked(kept.body, own_headers(kept.headers))
    except EventError:
        event = Event(type=about["type"])
    return event.replace(status=Status.FAILED, error=about["error"], retry_count=max(about["attempts"] - 1, 0))


def _cut(text: str, most: int, *, end: bool = False) -> str:
    """At most so many bytes of JSON."""
    while len(json.dumps(text)) > most:
        keep = max(len(text) * 3 // 4, 1)
        text = f"…{text[-keep:]}" if end else f"{text[:keep]}…"
    return text

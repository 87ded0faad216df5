"""Dead letters: a stream of their own, beside the events'. An id is that of the entry there."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import AsyncIterator, Sequence

import msgspec

from ...errors import EventError
from ...event import Event, Status
from ...filter import matches
from ...provider import DeadLetter, only_header
from ...wire import unpacked
from .delivery import headers_of
from .layout import Layout
from .link import Link, script

REDRIVE = script("redrive")
PAGE = 500
ID = re.compile(r"\d{1,20}(-\d{1,20})?")

Fields = dict[bytes, bytes]


def entry_id(text: str, what: str) -> str:
    """An id of Redis, checked.

    :raises EventError: where it is none.
    """
    if not ID.fullmatch(text):
        raise EventError(f"{text!r} is not {what}; they look like '1700000000000-0'")
    return text


class RedisDeadLetters:
    """A provider.DeadLetters over that stream."""

    def __init__(self, link: Link, layout: Layout) -> None:
        self._link = link
        self._layout = layout

    async def list(
        self, *, group: str | None = None, pattern: str = "*", limit: int = 100, after: str | None = None
    ) -> Sequence[DeadLetter]:
        """Oldest first; ``after`` is the id of the last one already seen."""
        start = "-" if after is None else f"({entry_id(after, 'the id of a dead letter')}"
        found: list[DeadLetter] = []
        async for entry, fields in self._meant(group, pattern, start):
            if len(found) == limit:
                break
            found.append(_letter(entry, fields))
        return found

    async def redrive(self, ids: Sequence[str] | None = None, *, group: str | None = None, pattern: str = "*") -> int:
        """Deliver them again, each to the subscription that gave up, attempts counted afresh; returns how many.

        They go to the end of the stream, and come after what is there already.
        """
        count = 0
        async for entry, fields in self._meant(group, pattern) if ids is None else self._named(ids):
            count += await self._redrive(entry, fields)
        return count

    async def discard(self, ids: Sequence[str] | None = None, *, group: str | None = None, pattern: str = "*") -> int:
        """Forget them; returns how many."""
        count, dead = 0, (await self._layout.keys()).dead
        async for entry, _ in self._meant(group, pattern) if ids is None else self._named(ids):
            count += await self._link.call("xdel", dead, entry)
        return count

    async def _redrive(self, entry: str, fields: Fields) -> int:
        lane = fields[b"lane"].decode()
        addressed = only_header(fields[b"group"].decode(), fields[b"subscription"].decode())
        headers = msgspec.json.encode(headers_of(fields[b"headers"]) | addressed)
        keys = await self._layout.keys()
        places = [keys.dead, keys.stream(keys.partition_of(lane))]
        done = await self._link.run(REDRIVE, places, [entry, fields[b"type"], lane, headers, fields[b"body"]])
        return int(done)

    async def _meant(self, group: str | None, pattern: str, start: str = "-") -> AsyncIterator[tuple[str, Fields]]:
        dead = (await self._layout.keys()).dead
        while True:
            page = await self._link.call("xrange", dead, start, "+", PAGE)
            for entry, fields in page:
                if group in (None, fields[b"group"].decode()) and matches(pattern, fields[b"type"].decode()):
                    yield entry.decode(), fields
            if len(page) < PAGE:
                return
            start = f"({page[-1][0].decode()}"

    async def _named(self, ids: Sequence[str]) -> AsyncIterator[tuple[str, Fields]]:
        dead = (await self._layout.keys()).dead
        for one in ids:
            wanted = entry_id(one, "the id of a dead letter")
            for entry, fields in await self._link.call("xrange", dead, wanted, wanted):
                yield entry.decode(), fields


def _letter(entry: str, fields: Fields) -> DeadLetter:
    text = {name.decode(): value.decode("utf-8", "replace") for name, value in fields.items()}
    attempts = int(text["attempts"])
    return DeadLetter(
        id=entry,
        group=text["group"],
        subscription=text["subscription"],
        event=_event(fields).replace(status=Status.FAILED, error=text["error"], retry_count=max(attempts - 1, 0)),
        error=text["error"],
        traceback=text["traceback"],
        attempts=attempts,
        first_failed_at=_moment(text["first_failed_at"]),
        last_failed_at=_moment(text["last_failed_at"]),
    )


def _event(fields: Fields) -> Event:
    """The event; of one that cannot be read, its type."""
    try:
        return unpacked(fields[b"body"], headers_of(fields[b"headers"]))
    except EventError:
        pass
    try:
        return Event(type=fields[b"type"].decode())
    except (EventError, UnicodeDecodeError):
        return Event(type="unreadable")


def _moment(seconds: str) -> dt.datetime:
    return dt.datetime.fromtimestamp(float(seconds), dt.UTC)

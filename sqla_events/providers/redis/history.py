"""What a stream still has, without a trace: for replays."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncGenerator, Sequence

from ...errors import EventError
from ...provider import ONLY, Message
from ...signals import logger
from ...wire import unpacked
from .delivery import headers_of
from .keys import Keys, order
from .letters import Fields, entry_id
from .link import Link

PAGE = 500

Entry = tuple[bytes, Fields]


async def history(
    link: Link, keys: Keys, since: dt.datetime | None, position: str | None
) -> AsyncGenerator[Sequence[Message], None]:
    """Oldest first over all partitions, from a time or an entry on, up to what is newest now. Copies that were for one
    subscription (replays, redriven dead letters) are left out.

    :raises EventError: for a position that is no id of an entry.
    """
    start = "-" if position is None else entry_id(position, "a position in a Redis stream")
    if since is not None and position is None:
        start = f"{int(since.timestamp() * 1000)}-0"
    ends = await asyncio.gather(*(_newest(link, stream) for stream in keys.streams))
    left = [(stream, start, end) for stream, end in zip(keys.streams, ends, strict=True) if end is not None]
    while left:
        pages = [await link.call("xrange", stream, after, end, PAGE) for stream, after, end in left]
        full = [page[-1][0] for page in pages if len(page) == PAGE]
        bound = min(full, key=order, default=None)  # what lies beyond may have something older before it, not yet read
        entries = [one for page in pages for one in page if bound is None or order(one[0]) <= order(bound)]
        messages = [message for one in sorted(entries, key=_time) if (message := _message(one)) is not None]
        if messages:
            yield messages
        if bound is None:
            return
        left = [(stream, f"({bound.decode()}", end) for stream, _, end in left]


async def _newest(link: Link, stream: str) -> str | None:
    entries = await link.call("xrevrange", stream, "+", "-", 1)
    return entries[0][0].decode() if entries else None


def _time(one: Entry) -> tuple[int, int]:
    return order(one[0])


def _message(one: Entry) -> Message | None:
    entry, fields = one
    headers, body = headers_of(fields.get(b"headers", b"")), fields.get(b"body", b"")
    if ONLY in headers:
        return None
    try:
        event = unpacked(body, headers)
    except EventError as error:
        logger.warning("entry %s is left out of the history: %s", entry.decode(), error)
        return None
    return Message(str(event.id), event.type, fields.get(b"lane", b"").decode(), body, None, headers)

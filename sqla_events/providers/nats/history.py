"""What a stream still keeps, read by a consumer that leaves no trace.

A consumer may read from a replica that lags behind: whether it has come to the end is asked of the stream's leader.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import Any

from ...errors import EventError, ProviderUnavailable
from ...event import lane_of
from ...provider import Message
from ...wire import unpacked
from .connection import ANSWER_SECONDS, Connection, Inbox, Out
from .delivery import own_headers
from .jetstream import JetStream
from .puller import numbers
from .streams import nanoseconds

PAGE = 500
"""Messages of one request."""
LAG_SECONDS = 0.05
"""Between requests to a replica that lags behind."""
IDLE_SECONDS = 60.0
"""After which the server forgets a consumer that reads nothing."""


async def history(
    jetstream: JetStream, stream: str, prefix: str, since: dt.datetime | None, position: str | None
) -> AsyncGenerator[Sequence[Message], None]:
    """See provider.Provider."""
    start = _start(since, position)
    last = (await jetstream.info(stream))["state"]["last_seq"]
    async with aclosing(pages(jetstream, stream, start, last)) as found:
        async for page in found:
            yield [_message(one, prefix) for one in page]


async def pages(
    jetstream: JetStream, stream: str, start: dict[str, Any], last: int
) -> AsyncGenerator[Sequence[Any], None]:
    """Messages of nats-py from a start on, which is a part of a consumer's definition, up to a number of the stream."""
    name = await _consumer(jetstream, stream, start)
    inbox = await jetstream.connection.inbox()
    try:
        read = 0
        while read < last:
            found = await _page(jetstream.connection, f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}", inbox)
            if found:
                read = numbers(found[-1].reply)[1]
                yield [one for one in found if numbers(one.reply)[1] <= last]
            elif await _is_all(jetstream, stream, read, last, start):
                return
            else:
                await asyncio.sleep(LAG_SECONDS)
    finally:
        await inbox.close()
        await _forget(jetstream, stream, name)


def _start(since: dt.datetime | None, position: str | None) -> dict[str, Any]:
    if position is not None:
        if not position.isdecimal():
            raise EventError(f"the position is {position!r}; on NATS it is a number of the stream")
        return {"deliver_policy": "by_start_sequence", "opt_start_seq": max(int(position), 1)}
    if since is not None:
        moment = since.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
        return {"deliver_policy": "by_start_time", "opt_start_time": moment}
    return {"deliver_policy": "all"}


async def _consumer(jetstream: JetStream, stream: str, start: dict[str, Any]) -> str:
    definition = {"ack_policy": "none", "replay_policy": "instant", "inactive_threshold": nanoseconds(IDLE_SECONDS), **start}
    request = {"stream_name": stream, "config": definition}
    return str((await jetstream.need(f"CONSUMER.CREATE.{stream}", request))["name"])


async def _forget(jetstream: JetStream, stream: str, name: str) -> None:
    with suppress(ProviderUnavailable):  # the server does after a minute
        await jetstream.need(f"CONSUMER.DELETE.{stream}.{name}")


async def _page(connection: Connection, subject: str, inbox: Inbox) -> list[Any]:
    """What one request brings: so many messages, or those that are there, before a status that says that it is over."""
    await connection.write([Out(subject, b'{"batch":%d,"no_wait":true}' % PAGE, reply=f"{inbox.subject}.1")])
    found: list[Any] = []
    while len(found) < PAGE:
        arrived = await inbox.some(ANSWER_SECONDS)
        if not arrived:
            raise ProviderUnavailable(f"no answer at {subject} within {ANSWER_SECONDS:g} s")
        found += [one for one in arrived if one.reply]
        if not arrived[-1].reply:
            break
    return found


async def _is_all(jetstream: JetStream, stream: str, read: int, last: int, start: dict[str, Any]) -> bool:
    """Whether the leader has nothing more in the range."""
    if "opt_start_time" in start and not read:
        newest = await jetstream.get(stream, last_by_subj=">")
        return newest is None or newest.time < dt.datetime.fromisoformat(start["opt_start_time"])
    kept = await jetstream.get(stream, seq=max(read + 1, start.get("opt_start_seq", 1)), next_by_subj=">")
    return kept is None or kept.seq > last


def _message(one: Any, prefix: str) -> Message:
    headers = own_headers(one.headers)
    message_id = (one.headers or {}).get("Nats-Msg-Id", "")
    kind = one.subject[len(prefix) + 1 :]
    try:
        event = unpacked(one.data, headers)
    except EventError:
        return Message(message_id, kind, message_id, one.data, None, headers)
    lane = lane_of(event.schema, event.entity, event.key, str(event.id))
    return Message(message_id or str(event.id), kind, lane, one.data, event.seq, headers)

"""What the tests of the Redis provider share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from redis.asyncio import Redis

from sqla_events.event import Event
from sqla_events.provider import Batch, Message
from sqla_events.runtime import message_of
from sqla_events.testing import Transport, configured
from tests.servers.redis import RedisServer


def transport(redis: RedisServer, /, **settings: Any) -> Transport:
    return Transport(configured({"provider": redis.url, "lease": 1.0, **settings}))


def events(count: int, first: int = 0, rows: int = 5) -> list[Event]:
    return [Event(type="a.b.create", key=str(n % rows), payload=n) for n in range(first, first + count)]


def relayed(sent: list[Event], high: int, epoch: int = 1, **more: Any) -> Batch:
    """A relay's batch whose last event has that number."""
    first = high - len(sent) + 1
    messages = [message_of(event) for event in sent]
    numbered = [
        Message(one.id, one.type, one.lane, one.body, first + at, one.headers) for at, one in enumerate(messages)
    ]
    return Batch(numbered, "relay:x", 0, epoch, f'{{"high":{high},"gaps":[]}}', **more)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def payloads(client: Redis, stream: str = "sqla-events") -> list[Any]:
    return [json.loads(fields[b"body"])["payload"] for _, fields in await client.xrange(stream)]

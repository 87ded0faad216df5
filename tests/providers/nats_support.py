"""What the tests of the NATS provider share: providers without a broker, a look into a stream, relays by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqla_events.bridge import Doorbell
from sqla_events.config import Config
from sqla_events.event import Event
from sqla_events.provider import Batch, Message, ProviderContext
from sqla_events.providers.nats import NatsProvider
from sqla_events.providers.nats.jetstream import Kept
from sqla_events.runtime import message_of
from sqla_events.schema import Tables
from sqla_events.signals import Signals
from tests.servers.nats import NatsServer

STREAM = "SQLA_EVENTS"


def provider(url: str, *, lease: float = 1.0, partitions: int = 1, **nats: Any) -> NatsProvider:
    """A provider that is not open yet, as another process would have it."""
    settings = {"provider": "nats", "lease": lease, "partitions": partitions, "nats": {"url": url, "ack_wait": 1.0, **nats}}
    return NatsProvider(Config.load(settings), ProviderContext(None, Tables(), "test", Signals(), Doorbell()))


@asynccontextmanager
async def opened(server: NatsServer | str, **settings: Any) -> AsyncIterator[NatsProvider]:
    """One between open and close."""
    one = provider(server if isinstance(server, str) else server.url, **settings)
    try:
        await one.open()
        yield one
    finally:
        await one.close()


async def stored(one: NatsProvider) -> list[Kept]:
    """Everything in the stream."""
    last = (await one._jetstream.info(STREAM))["state"]["last_seq"]
    return [kept async for kept in one._jetstream.each(STREAM, 1, last)]


async def stored_ids(one: NatsProvider) -> list[str]:
    """The ids of everything in the stream."""
    return [kept.headers["Nats-Msg-Id"] for kept in await stored(one)]


def messages(count: int, first: int = 1, rows: int = 5, kind: str = "public.things.update") -> list[Message]:
    """As a relay has them: numbered in the log."""
    return [
        message_of(Event(type=kind, payload=number, key=str(number % rows), seq=number)) for number in range(first, first + count)
    ]


def batch(given: list[Message], high: int | None = None, epoch: int = 1, group: str = "relay:nats") -> Batch:
    """That a relay publishes whose position is then ``high`` (default: the last of them)."""
    top = high if high is not None else given[-1].seq
    return Batch(given, group, 0, epoch, f'{{"high":{top},"gaps":[]}}')


def ids(given: list[Message]) -> list[str]:
    return [one.id for one in given]

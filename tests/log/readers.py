"""Readers of the log as tests use them: publish something, take some deliveries, wait until something is true."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from sqla_events.bridge import Database, Doorbell
from sqla_events.event import Event
from sqla_events.log import append
from sqla_events.log.delivery import LogDelivery
from sqla_events.log.reader import Reader, leased
from sqla_events.log.settings import ReaderSettings
from sqla_events.provider import Failure
from sqla_events.schema import Tables
from sqla_events.signals import Signals

TABLES = Tables()


def reading(
    database: Database, group: str = "g", *bells: Doorbell, **settings: Any
) -> AbstractAsyncContextManager[Reader]:
    settings = {"owner": "one", "lease": 5.0, "poll_interval": 0.02} | settings
    return leased(database, TABLES, ReaderSettings(group, **settings), Signals(), *bells)


async def publish(database: Database, count: int, **fields: Any) -> list[Event]:
    events = [Event(type="public.things.create", payload={"n": n}, key=str(n % 5), **fields) for n in range(count)]
    await database.run(append, TABLES, events)
    return events


async def take(reader: Reader, count: int) -> list[LogDelivery]:
    """The next deliveries; at least so many."""
    taken: list[LogDelivery] = []
    async with asyncio.timeout(20):
        async for batch in reader.batches():
            taken += batch
            if len(taken) >= count:
                break
    return taken


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while True:
            answer = condition()
            if await answer if asyncio.iscoroutine(answer) else answer:
                return
            await asyncio.sleep(0.01)


def failure(attempts: int = 1, subscription: str = "mail") -> Failure:
    return Failure(subscription, "OSError: no route", "Traceback …", attempts)


def numbers(deliveries: Sequence[LogDelivery]) -> list[int]:
    return [delivery.event().payload["n"] for delivery in deliveries]

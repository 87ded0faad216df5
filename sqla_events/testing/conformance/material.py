"""What the conformance tests publish, and the questions that several of them ask."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ...event import Event
from ...provider import DeadLetter, Failure, Provider
from ..transport import Transport, consuming, eventually, hold, opened, publish


def events(count: int, first: int = 0, rows: int = 5, type: str = "public.things.update", **fields: Any) -> list[Event]:  # noqa: A002 - the event's
    """Numbered events of so many rows."""
    return [
        Event(type=type, payload=number, key=f"row/{number % rows}", **fields) for number in range(first, first + count)
    ]


def failure(subscription: str = "app.mail", attempts: int = 3, error: str = "OSError: no route") -> Failure:
    return Failure(subscription, error, f"Traceback …\n{error}", attempts)


@asynccontextmanager
async def promising(transport: Transport, *promises: str) -> AsyncIterator[Provider]:
    """An opened provider, where it promises all of this; the test is skipped where it does not."""
    async with opened(transport) as provider:
        for promise in promises:
            if not getattr(provider.features, promise):
                pytest.skip(f"this provider does not promise {promise}")
        yield provider


def bare(event: Event) -> Event:
    """Without what a log adds."""
    return event.replace(seq=None)


async def bury(provider: Provider, *sent: Event) -> None:
    """Publish events and make dead letters of them."""
    async with consuming(provider, hold) as stream:
        await publish(provider, *sent)
        for delivery in await stream.take(len(sent)):
            delivery.bury(failure())
            delivery.ack()


async def letters(provider: Provider, count: int) -> list[DeadLetter]:
    """Every dead letter, once there are so many: they are written soon, not at once."""
    found: list[DeadLetter] = []

    async def enough() -> bool:
        found[:] = await provider.dead_letters.list()
        return len(found) >= count

    await eventually(enough)
    return found

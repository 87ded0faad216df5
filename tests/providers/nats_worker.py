"""Processes to kill, on NATS: see redis_worker. Message ids protect from nothing here: the duplicate window is the shortest."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from sqla_events.provider import Batch
from sqla_events.providers.nats.connection import Connection, Out
from sqla_events.providers.nats.delivery import TAG
from sqla_events.providers.nats.jetstream import Bucket
from sqla_events.providers.nats.publisher import Publisher
from tests.providers import redis_worker
from tests.providers.redis_worker import Death, report_commits

SETTINGS: dict[str, Any] = {**redis_worker.SETTINGS, "nats": {"duplicate_window": 0.1, "ack_wait": 3}}
STEPS = [
    *("before publish", "half written", "unanswered", "after publish"),
    *("before mark", "after mark", "before commit", "during commit"),
]


def doomed(death: Death) -> None:
    """Have the steps of this process report to it."""
    _publishing(death)
    _marking(death)
    report_commits(death)


def _publishing(death: Death) -> None:
    publish, write, ask = Publisher.publish, Connection.write, Connection.ask

    async def dying_publish(publisher: Publisher, batch: Batch) -> None:
        death.at("before publish")
        await publish(publisher, batch)
        death.at("after publish")

    async def dying_write(connection: Connection, outs: Sequence[Out]) -> None:
        if len(outs) < 4 or TAG not in outs[0].headers:
            await write(connection, outs)
            return
        await write(connection, outs[: len(outs) // 2])
        await asyncio.sleep(0.0005)  # on its way
        death.at("half written")
        await write(connection, outs[len(outs) // 2 :])

    async def dying_ask(connection: Connection, subject: str, *rest: Any) -> Any:
        if not subject.startswith("events."):
            return await ask(connection, subject, *rest)
        call = asyncio.ensure_future(ask(connection, subject, *rest))
        await asyncio.sleep(0.0005)
        death.at("unanswered")
        return await call

    Publisher.publish = dying_publish  # type: ignore[method-assign]
    Connection.write = dying_write  # type: ignore[method-assign]
    Connection.ask = dying_ask  # type: ignore[method-assign]


def _marking(death: Death) -> None:
    put = Bucket.put

    async def dying_put(bucket: Bucket, key: str, *rest: Any) -> int:
        if not key.startswith("relay."):
            return await put(bucket, key, *rest)
        death.at("before mark")
        revision = await put(bucket, key, *rest)
        death.at("after mark")
        return revision

    Bucket.put = dying_put  # type: ignore[method-assign]


def main(kind: str, database: str, nats: str, *rest: str) -> None:
    """As redis_worker.main."""
    logging.disable(logging.CRITICAL)  # what is down is what this is about
    if kind == "consumer":
        redis_worker.consume(database, nats, *rest, settings=SETTINGS)
        return
    if rest:
        doomed(Death(rest[0], int(rest[1])))
    redis_worker.relay(database, nats, SETTINGS)

"""NATS: kill -9 at every step, and at random: what is in the stream afterwards is the log, each event once."""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import Any

import pytest

from sqla_events.errors import ProviderUnavailable
from sqla_events.providers.nats.jetstream import Refused
from tests.log.load import Writers
from tests.providers.killing import SECONDS, Crowd, Workers, check, first_handled, handled, in_order, missing, repeats
from tests.providers.nats_support import STREAM, provider, stored
from tests.providers.nats_worker import STEPS, main
from tests.providers.redis_worker import HANDLED
from tests.servers.child import wait_until
from tests.servers.nats import NatsServer
from tests.servers.postgres import PostgresDatabase


def published(nats: NatsServer) -> list[dict[str, Any]]:
    """What is in the stream, in its order."""

    async def read() -> list[dict[str, Any]]:
        one = provider(nats.url)
        try:
            return [json.loads(kept.body) for kept in await stored(one)]
        finally:
            await one.close()

    return asyncio.run(read())


def size(nats: NatsServer) -> int:
    async def ask() -> int:
        one = provider(nats.url)
        try:
            return int((await one._jetstream.info(STREAM))["state"]["messages"])
        except (ProviderUnavailable, Refused):
            return 0
        finally:
            await one.close()

    return asyncio.run(ask())


@pytest.mark.parametrize("step", STEPS)
def test_a_relay_killed_at_a_step(postgres: PostgresDatabase, nats: NatsServer, step: str) -> None:
    """The first and the third time that it comes there; the next one goes on without a duplicate."""
    workers = Workers(main, postgres, nats)
    with Writers(postgres.connect, count=3, longest=0.2) as writers:
        wait_until(lambda: len(writers.truth.events) > 100)
        for occurrence in (1, 3):
            workers.killed(step, occurrence)
        time.sleep(0.3)  # the server forgets the ids
        writers.stop()
        with workers.running("relay"):
            wait_until(lambda: size(nats) >= len(writers.truth.events))
        print(step, check(published(nats), writers))  # noqa: T201


@pytest.mark.timeout(SECONDS + 240)
def test_everybody_dies(postgres: PostgresDatabase, nats: NatsServer) -> None:
    """Relays, consumers and the server, at random under load: the stream is the log; every event is handled, and each
    row's events first in their order."""
    chance, workers = random.Random(11), Workers(main, postgres, nats)
    with postgres.connect() as link, Writers(postgres.connect, count=2, longest=0.3) as writers:
        link.execute(HANDLED)
        relays = Crowd(lambda _: workers.start("relay"), 2)
        consumers = Crowd(lambda number: workers.start("consumer", number), 2)
        restarts = 0
        try:
            wait_until(lambda: handled(link) > 0)
            end = time.monotonic() + SECONDS
            while time.monotonic() < end or not (relays.killed and consumers.killed and restarts):
                what = chance.choice([relays, consumers, nats])
                if isinstance(what, Crowd):
                    what.kill(chance.randrange(len(what.processes)))
                else:
                    nats.restart()
                    restarts += 1
                time.sleep(chance.uniform(0, 1.5))
            writers.stop()
            wait_until(lambda: not missing(link, writers), 120, "everything is handled")
        finally:
            relays.end()
            consumers.end()
        said = f"killed: {relays.killed} relays, {consumers.killed} consumers, {restarts} servers"
        print(f"{check(published(nats), writers)}; {said}; {repeats(link)} handled again")  # noqa: T201
        assert in_order(first_handled(link))

"""NATS: kill -9 at every step, and at random: what is in the stream afterwards is the log, each event once.

KILL_SECONDS=60 makes the random part longer.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

import pytest

from sqla_events.errors import ProviderUnavailable
from sqla_events.providers.nats.jetstream import Refused
from tests.log.load import Writers
from tests.providers.nats_support import STREAM, provider, stored
from tests.providers.nats_worker import STEPS, main
from tests.providers.redis_worker import HANDLED
from tests.providers.test_redis_kills import SECONDS, Crowd, first_handled, handled, in_order, missing, repeats
from tests.servers.child import wait_until
from tests.servers.nats import NatsServer
from tests.servers.postgres import PostgresDatabase

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.providers.nats_worker"])


def start(kind: str, postgres: PostgresDatabase, nats: NatsServer, *rest: object) -> BaseProcess:
    """Forked from a process that has everything imported: there are many of them."""
    process = FORKS.Process(target=main, args=(kind, postgres.url(), nats.url, *map(str, rest)), daemon=True)
    process.start()
    return process


@contextmanager
def running(kind: str, postgres: PostgresDatabase, nats: NatsServer) -> Iterator[None]:
    """A process that is stopped in good order."""
    process = start(kind, postgres, nats)
    try:
        yield
    finally:
        process.terminate()
        process.join(60)


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


def check(nats: NatsServer, writers: Writers) -> str:
    """Nothing lost, nothing twice, nothing swapped, nothing that was rolled back."""
    events = published(nats)
    counts = Counter(event["id"] for event in events)
    repeated = sum(count - 1 for count in counts.values())
    lost = writers.truth.events.keys() - counts.keys()
    assert (len(lost), repeated, len(counts.keys() - writers.truth.events.keys())) == (0, 0, 0)
    assert in_order([(event.get("key"), event["payload"]["version"]) for event in events])
    return f"{len(events)} events, {len(lost)} lost, {repeated} twice"


@pytest.mark.parametrize("step", STEPS)
def test_a_relay_killed_at_a_step(postgres: PostgresDatabase, nats: NatsServer, step: str) -> None:
    """The first and the third time that it comes there; the next one goes on without a duplicate."""
    with Writers(postgres.connect, count=3, longest=0.2) as writers:
        wait_until(lambda: len(writers.truth.events) > 100)
        for occurrence in (1, 3):
            process = start("relay", postgres, nats, step, occurrence)
            process.join(60)
            assert process.exitcode == -signal.SIGKILL
        time.sleep(0.3)  # the server forgets the ids
        writers.stop()
        with running("relay", postgres, nats):
            wait_until(lambda: size(nats) >= len(writers.truth.events))
        print(step, check(nats, writers))  # noqa: T201


@pytest.mark.timeout(SECONDS + 240)
def test_everybody_dies(postgres: PostgresDatabase, nats: NatsServer) -> None:
    """Relays, consumers and the server, at random under load: the stream is the log; every event is handled, and each
    row's events first in their order."""
    chance = random.Random(11)
    with postgres.connect() as link, Writers(postgres.connect, count=2, longest=0.3) as writers:
        link.execute(HANDLED)
        relays = Crowd(lambda _: start("relay", postgres, nats), 2)
        consumers = Crowd(lambda number: start("consumer", postgres, nats, number), 2)
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
        print(f"{check(nats, writers)}; {said}; {repeats(link)} handled again")  # noqa: T201
        assert in_order(first_handled(link))

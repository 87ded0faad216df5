"""Redis: kill -9 at every step, and at random, and SIGSTOP: what is in the stream afterwards is the log, each event once."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest
from redis import Redis

from tests.log.load import Writers
from tests.providers.killing import SECONDS, Crowd, Workers, check, first_handled, handled, in_order, missing, repeats
from tests.providers.redis_worker import HANDLED, STEPS, main
from tests.servers.child import wait_until
from tests.servers.postgres import PostgresDatabase
from tests.servers.redis import RedisServer

STREAMS = ("sqla-events", "{sqla-events}:1")


def published(redis: RedisServer) -> list[dict[str, Any]]:
    """What is in the streams, each in its order."""
    with Redis(port=redis.port, protocol=2) as client:
        return [json.loads(fields[b"body"]) for stream in STREAMS for _, fields in client.xrange(stream)]


def size(redis: RedisServer) -> int:
    with Redis(port=redis.port, protocol=2) as client:
        return sum(client.xlen(stream) for stream in STREAMS)


@pytest.mark.parametrize("step", STEPS)
def test_a_relay_killed_at_a_step(postgres: PostgresDatabase, redis: RedisServer, step: str) -> None:
    """The first and the third time that it comes there; the next one goes on without a duplicate."""
    workers = Workers(main, postgres, redis)
    with Writers(postgres.connect, count=3, longest=0.2) as writers:
        wait_until(lambda: len(writers.truth.events) > 100)
        for occurrence in (1, 3) if "resume" not in step else (1, 2):  # each partition resumes once
            workers.killed(step, occurrence)
        writers.stop()
        with workers.running("relay"):
            wait_until(lambda: size(redis) >= len(writers.truth.events))
        print(step, check(published(redis), writers))  # noqa: T201


@pytest.mark.timeout(SECONDS + 240)
def test_everybody_dies_or_sleeps(postgres: PostgresDatabase, redis: RedisServer) -> None:
    """Relays, consumers and the server, or sleep beyond their leases, at random under load: the stream is the log; every event is handled, and each
    row's events first in their order."""
    chance, workers = random.Random(11), Workers(main, postgres, redis)
    with postgres.connect() as link, Writers(postgres.connect, count=2, longest=0.3) as writers:
        link.execute(HANDLED)
        relays = Crowd(lambda _: workers.start("relay"), 2)
        consumers = Crowd(lambda number: workers.start("consumer", number), 2)
        restarts = 0
        try:
            wait_until(lambda: handled(link) > 0)
            end = time.monotonic() + SECONDS
            while time.monotonic() < end or not (relays.killed and consumers.killed and restarts):
                what = chance.choice([relays.kill, consumers.kill, relays.pause, consumers.pause, None])
                if what is not None:
                    what(chance.randrange(2))
                else:
                    redis.restart()
                    restarts += 1
                time.sleep(chance.uniform(0, 1))
            writers.stop()
            wait_until(lambda: not missing(link, writers), 120, "everything is handled")
        finally:
            relays.end()
            consumers.end()
        said = f"killed: {relays.killed} relays, {consumers.killed} consumers, {restarts} servers"
        said += f"; paused: {relays.paused} relays, {consumers.paused} consumers"
        print(f"{check(published(redis), writers)}; {said}; {repeats(link)} handled again")  # noqa: T201
        assert in_order(first_handled(link))

"""Processes to kill.

python -m tests.providers.redis_worker relay DATABASE REDIS [STEP OCCURRENCE]     dies by SIGKILL at that step
python -m tests.providers.redis_worker consumer DATABASE REDIS NAME               notes what it handles in the database
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sys
import time
from typing import Any

import psycopg
from sqlalchemy import create_engine, make_url

from sqla_events import Broker, Config, Event, connect
from sqla_events.log import leases
from sqla_events.providers.redis import publishing
from sqla_events.providers.redis.link import Link

SETTINGS: dict[str, Any] = {"lease": 0.5, "batch_size": 20, "poll_interval": 0.05, "partitions": 2}
HANDLED = "CREATE TABLE handled (n bigserial PRIMARY KEY, worker text, id uuid, key text, version int)"


class Death:
    """Comes at the so-many-th time that a step is reached."""

    def __init__(self, step: str, occurrence: int) -> None:
        self._step = step
        self._left = occurrence

    def at(self, step: str) -> None:
        if step == self._step:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)


def doomed(death: Death) -> None:
    """Have the steps of this process report to it."""
    run = Link.run

    async def dying_run(link: Link, script: Any, keys: Any, arguments: Any) -> Any:
        names = {publishing.RELAYED: "publish", publishing.RESUME: "resume"}
        if (name := names.get(script)) is None:
            return await run(link, script, keys, arguments)
        death.at(f"before {name}")
        call = asyncio.ensure_future(run(link, script, keys, arguments))
        await asyncio.sleep(0.0005)  # sent, and the answer perhaps on its way
        death.at(f"during {name}")
        answer = await call
        death.at(f"after {name}")
        return answer

    Link.run = dying_run  # type: ignore[method-assign]
    report_commits(death)


def report_commits(death: Death) -> None:
    """Have those of positions report to it: they are the same on every transport."""
    commit = leases.commit

    def dying_commit(*arguments: Any) -> Any:
        moves = arguments[3].started_at is not None
        if moves:
            death.at("before commit")
        answer = commit(*arguments)
        if moves:
            death.at("during commit")  # the statement has run, its transaction is open
        return answer

    leases.commit = dying_commit


STEPS = [f"{when} {what}" for what in ("publish", "resume", "commit") for when in ("before", "during", "after")]
STEPS.remove("after commit")  # that of the next one


def relay(database: str, url: str, settings: dict[str, Any] = SETTINGS) -> None:
    Broker(Config.load({"provider": url}, **settings), create_engine(database)).run()


def consume(database: str, url: str, name: str, settings: dict[str, Any] = SETTINGS) -> None:
    """Handlers that take their time now and then, and that fail now and then."""
    conninfo = make_url(database).set(drivername="postgresql").render_as_string(hide_password=False)
    chance = random.Random(name)
    broker = connect(url, **settings, retry_policy={"max_retries": 1000, "initial_delay": 0.01, "max_delay": 0.05})
    link = psycopg.connect(conninfo, autocommit=True)

    def handle(event: Event) -> None:
        if chance.random() < 0.02:
            raise OSError("now and then")
        if chance.random() < 0.02:
            time.sleep(0.05)
        version = event.payload["version"]
        values = (name, event.id, event.key, version)
        link.execute("INSERT INTO handled (worker, id, key, version) VALUES (%s, %s, %s, %s)", values)

    broker.subscribe("public.things.*", handler=handle)
    broker.run()


def main(kind: str, database: str, redis: str, *rest: str) -> None:
    logging.disable(logging.CRITICAL)  # what is down is what this is about
    if kind == "consumer":
        consume(database, redis, *rest)
        return
    if rest:
        doomed(Death(rest[0], int(rest[1])))
    relay(database, redis)


if __name__ == "__main__":
    main(*sys.argv[1:])

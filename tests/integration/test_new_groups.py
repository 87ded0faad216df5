"""A group that is to see only what comes from now on, by the ways that the pages of the providers give."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import nats as client
import pytest
import redis as redis_py
import sqlalchemy as sa

from sqla_events import Broker, connect
from tests.integration.shop import Inbox

DOCS = Path(__file__).parents[2] / "docs"


def given(page: str, pattern: str) -> str:
    """What the page says."""
    (found,) = re.findall(pattern, (DOCS / page).read_text(), re.MULTILINE)
    return str(found)


def begins_now(publisher: Broker, url: str, make: Any) -> None:
    """One event before the group is made, one after: it gets the second alone."""
    publisher.start()
    publisher.publish("a.b.c", "before").result(20)
    make()
    inbox = Inbox()
    service = connect(url, consumer_group="mailer", poll_interval=0.05)
    service.subscribe("a.b.*", handler=inbox)
    service.start()
    publisher.publish("a.b.c", "after").result(20)
    inbox.wait(1)
    service.stop()
    publisher.stop()
    assert [event.payload for event in inbox.events] == ["after"]


def test_on_the_log(database_url: str) -> None:
    """A position that is there before the group."""
    engine = sa.create_engine(database_url)

    def make() -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql(given("database.md", r"^INSERT INTO event_positions .*\n.*;$"))

    begins_now(connect(database_url), database_url, make)
    engine.dispose()


def test_on_redis(redis_url: str) -> None:
    """A consumer group that is there before."""
    pytest.importorskip("sqla_events.providers.redis")

    def make() -> None:
        words = given("redis.md", r"^redis-cli (XGROUP CREATE .*?)(?: *#.*)?$").split()
        with redis_py.Redis.from_url(redis_url) as link:
            link.execute_command(*words)

    begins_now(connect(redis_url), redis_url, make)


def test_on_nats(nats_url: str) -> None:
    """A durable consumer that is there before, as the nats command makes it."""
    pytest.importorskip("sqla_events.providers.nats")
    assert given("nats.md", r"^(nats consumer add SQLA_EVENTS mailer --pull --deliver new --ack explicit) ")

    async def add() -> None:
        link = await client.connect(nats_url)
        wanted = client.js.api.ConsumerConfig(durable_name="mailer", deliver_policy="new", ack_policy="explicit")
        await link.jetstream().add_consumer("SQLA_EVENTS", wanted)
        await link.close()

    begins_now(connect(nats_url), nats_url, lambda: asyncio.run(add()))

"""The relay on providers that only remember, refuse, or are down."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from sqlalchemy import text

from sqla_events.bridge import Database, Doorbell
from sqla_events.deliveries import LogDeadLetters
from sqla_events.errors import ProviderUnavailable, PublishRejected
from sqla_events.event import Event, decode
from sqla_events.log import append, groups
from sqla_events.log.settings import ReaderSettings
from sqla_events.provider import Batch, Features, Message
from sqla_events.relay import Relay
from sqla_events.schema import Tables
from sqla_events.signals import Buried, Fact, Relayed, Signals, Unavailable
from sqla_events.wire import Pack

TABLES = Tables()


class Remembering:
    """A transport: a list."""

    features = Features(durable=True, shared_groups=True, cross_process=True, idempotent_publish=True)

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.batches: list[Batch] = []
        self.down = 0
        self.refused: set[int] = set()

    async def publish(self, batch: Batch) -> None:
        if self.down:
            self.down -= 1
            raise ProviderUnavailable("down")
        events = [decode(message.body) for message in batch.messages]
        for event in events:
            if event.payload in list(self.refused):
                raise PublishRejected(str(event.id), "too large")
        self.events += events
        self.batches.append(batch)

    @property
    def numbers(self) -> list[Any]:
        return [event.payload for event in self.events]


class Running:
    """A relay at work."""

    def __init__(self, database: Database, provider: Any, pack: Pack | None = None, **settings: Any) -> None:
        self.facts: list[Fact] = []
        signals = Signals()
        signals.subscribe(self.facts.append)
        self.bell = Doorbell()
        settings = {"owner": "one", "poll_interval": 0.02, "batch_size": 10, "prefetch": 40} | settings
        self.relay = Relay(database, TABLES, provider, ReaderSettings("relay:test", **settings), signals, self.bell, pack)

    async def __aenter__(self) -> Running:
        self.task = asyncio.create_task(self.relay.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.relay.stop()
        async with asyncio.timeout(10):
            await self.task


async def publish(database: Database, *numbers: int) -> None:
    await database.run(append, TABLES, [Event(type="public.things.create", payload=n, key="1") for n in numbers])


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def test_everything_is_published_in_order_and_once(database: Database) -> None:
    """Also over a restart of the relay; the position that goes with a batch is what the log will say."""
    provider = Remembering()
    await publish(database, *range(35))
    async with Running(database, provider) as running:
        await until(lambda: len(provider.events) == 35)
    async with Running(database, provider):
        await publish(database, 35, 36)
        await until(lambda: len(provider.events) == 37)
    assert provider.numbers == list(range(37))
    assert sum(fact.count for fact in running.facts if isinstance(fact, Relayed)) == 35
    (group,) = await database.run(groups, TABLES)
    assert (group.position.high, group.position.gaps, group.owner) == (37, (), None)
    last = json.loads(provider.batches[-1].position)
    assert (last["high"], last["gaps"]) == (37, [])
    assert [batch.epoch for batch in provider.batches] == sorted(batch.epoch for batch in provider.batches)


class Slow(Remembering):
    """Publishes when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Batch] = []
        self.go = asyncio.Event()

    async def publish(self, batch: Batch) -> None:
        self.given.append(batch)
        await self.go.wait()
        await super().publish(batch)


async def test_the_next_batch_is_read_and_made_ready_while_one_is_published(database: Database) -> None:
    """But only one is with the transport: what is behind it would be stored although it failed."""
    provider, ready = Slow(), list[Message]()

    def pack(message: Message) -> Message:
        ready.append(message)
        return message

    await publish(database, *range(30))
    async with Running(database, provider, pack=pack):
        await until(lambda: len(ready) == 20)
        assert [len(batch.messages) for batch in provider.given] == [10]
        provider.go.set()
        await until(lambda: len(provider.events) == 30)
    assert provider.numbers == list(range(30))


async def test_the_text_of_a_payload_travels_as_it_stands_in_the_log(database: Database) -> None:
    """Nothing decodes it on the way: not its spaces, not how a number is written, not the order of keys."""
    provider, odd = Remembering(), '{ "b" : 1.50e+0,  "a":"\\u00e9", "b2":[ ] }'
    await publish(database, 1)
    names = TABLES.names
    await database.run(
        lambda connection: connection.execute(text(f'UPDATE "{names.events}" SET payload = :odd'), {"odd": odd})
    )
    async with Running(database, provider):
        await until(lambda: provider.batches)
    assert f'"payload":{odd}'.encode() in provider.batches[0].messages[0].body
    assert provider.events[0].payload == {"b": 1.5, "a": "é", "b2": []}


async def test_a_transport_that_is_down_is_tried_until_it_answers(database: Database) -> None:
    """The log is the buffer."""
    provider = Remembering()
    provider.down = 3
    await publish(database, 1, 2)
    async with Running(database, provider) as running:
        await until(lambda: provider.numbers == [1, 2])
    assert len([fact for fact in running.facts if isinstance(fact, Unavailable)]) == 3


async def test_stopping_while_the_transport_is_down_leaves_everything_in_the_log(database: Database) -> None:
    """And does not wait for it."""
    provider = Remembering()
    provider.down = 10**6
    await publish(database, 1, 2)
    async with Running(database, provider) as running:
        await until(lambda: any(isinstance(fact, Unavailable) for fact in running.facts))
    provider.down = 0
    async with Running(database, provider):
        await until(lambda: provider.numbers == [1, 2])


async def test_stopping_while_another_relay_has_the_lease(database: Database) -> None:
    """A standby ends at once; the one at work goes on."""
    provider = Remembering()
    async with Running(database, provider):
        await publish(database, 1)
        await until(lambda: provider.numbers == [1])
        async with Running(database, provider, owner="two"):
            await asyncio.sleep(0.05)
        await publish(database, 2)
        await until(lambda: provider.numbers == [1, 2])


async def test_what_is_rejected_becomes_a_dead_letter_and_holds_up_nobody(database: Database) -> None:
    """Redriven, it is published after all."""
    provider = Remembering()
    provider.refused = {3, 5}
    letters = LogDeadLetters(database, TABLES, lambda: None)
    await publish(database, *range(8))
    async with Running(database, provider) as running:
        await until(lambda: len(provider.events) == 6)
        assert provider.numbers == [0, 1, 2, 4, 6, 7]
        await until(lambda: len([fact for fact in running.facts if isinstance(fact, Buried)]) == 2)
        async with asyncio.timeout(10):
            while len(dead := await letters.list(group="relay:test")) < 2:
                await asyncio.sleep(0.01)
        assert [(letter.event.payload, letter.error, letter.subscription) for letter in dead] == [
            (3, "too large", "relay"),
            (5, "too large", "relay"),
        ]
        provider.refused = set()
        assert await letters.redrive(group="relay:test") == 2
        await until(lambda: sorted(provider.numbers) == list(range(8)))
    assert await letters.list() == []

"""Replay through the broker: from everywhere, by pattern, into one subscription or as new deliveries, marked."""

from __future__ import annotations

import datetime as dt
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from sqla_events import Config, ConfigError, Event, EventError, install_crud_hooks
from sqla_events.broker import Broker
from tests.integration.shop import Inbox, eventually

SETTINGS: dict[str, Any] = {"retry_policy": {"max_retries": 1, "initial_delay": 0.01}, "poll_interval": 0.05, "lease": 2, "worker_count": 1}
"""One worker: events of different rows come in the order of the log too."""
Make = Callable[..., Broker]


@pytest.fixture
def make(request: pytest.FixtureRequest, database_url: str) -> Iterator[Make]:
    """Brokers on one log."""
    engine, brokers = sa.create_engine(database_url), []

    def make(**settings: Any) -> Broker:
        broker = Broker(Config.load({**SETTINGS, **settings}), engine)
        brokers.append(broker)
        return broker

    yield make
    for broker in brokers:
        broker.stop()
    engine.dispose()


def fill(broker: Broker, count: int = 6) -> list[Event]:
    """Users and orders in turn."""
    types = ("public.users.create", "public.orders.create")
    return [broker.publish(types[n % 2], n, key=str(n % 3)).result(20) for n in range(count)]


def numbers(inbox: Inbox, replays: bool = True) -> list[Any]:
    """In the order of the log: among different rows, handlers run in any."""
    found = sorted(inbox.events, key=lambda event: event.seq or 0)
    return [event.payload for event in found if event.is_replay == replays]


def test_into_one_subscription(make: Make) -> None:
    """It gets them once more, in order, marked; nobody else does, in its group or another."""
    broker, mailer, search, audit = make(), Inbox(), Inbox(), Inbox()
    broker.subscribe("public.users.*", handler=mailer, name="mailer")
    broker.subscribe("public.users.*", handler=search, name="search")
    broker.subscribe("*", handler=audit, group="audit")
    broker.start()
    sent = fill(broker)
    audit.wait(6)
    mailer.wait(3)
    search.wait(3)
    assert broker.replay("public.users.*", subscription="mailer") == 3
    mailer.wait(6)
    assert numbers(mailer) == [0, 2, 4]
    assert {event.id for event in mailer.events if event.is_replay} == {event.id for event in sent[::2]}
    assert len({event.metadata["replay"] for event in mailer.events if event.is_replay}) == 1
    broker.publish("public.users.create", "last").result(20)
    audit.wait(7)
    search.wait(4)
    assert (numbers(search), numbers(audit)) == ([], [])


def test_by_handler_while_nothing_runs(make: Make) -> None:
    """What is replayed into a handler of a stopped broker waits until it starts."""
    broker, inbox = make(), Inbox()
    broker.subscribe("*", handler=inbox)
    broker.start()
    fill(broker)
    inbox.wait(6)
    broker.stop()
    assert broker.replay(subscription=inbox) == 6
    broker.start()
    inbox.wait(12)
    assert numbers(inbox) == list(range(6))


def test_as_new_deliveries(make: Make) -> None:
    """Every group gets copies with the same ids; they say when the event was made; a replay is not replayed again."""
    broker, one, two = make(), Inbox(), Inbox()
    broker.subscribe("*", handler=one)
    broker.subscribe("*", handler=two, group="two")
    broker.start()
    sent = fill(broker)
    one.wait(6)
    assert broker.replay() == 6
    assert broker.replay("public.orders.*") == 3
    one.wait(15)
    two.wait(15)
    for inbox in (one, two):
        copies = sorted((event for event in inbox.events if event.is_replay), key=lambda event: event.seq or 0)
        assert [event.payload for event in copies] == [*range(6), 1, 3, 5]
        assert [event.id for event in copies[:6]] == [event.id for event in sent]
        assert [event.metadata["first_created_at"] for event in copies[:6]] == [event.created_at for event in sent]


@pytest.mark.parametrize("kind", ["since", "position", "id"])
def test_from_a_beginning(make: Make, kind: str) -> None:
    """That one is the first."""
    broker, inbox = make(), Inbox()
    broker.subscribe("*", handler=inbox, name="h")
    broker.start()
    fill(broker, 3)
    inbox.wait(3)
    middle = dt.datetime.now(dt.UTC)
    fill(broker, 3)
    events = inbox.wait(6)
    first = sorted(events, key=lambda event: event.seq or 0)[3]
    begin: dict[str, Any] = {"since": middle, "position": first.seq, "id": str(first.id)}
    assert broker.replay(subscription="h", **{kind: begin[kind]}) == 3
    inbox.wait(9)
    assert numbers(inbox) == [0, 1, 2]


def test_a_replayed_event_that_fails_is_a_dead_letter_and_stays_marked(make: Make) -> None:
    """Retried by the policy; its error tells that a replay was the reason; redriven, it is still a replay."""
    broken = threading.Event()
    inbox = Inbox(fail=lambda event: ValueError("no") if broken.is_set() else None)
    broker = make()
    broker.subscribe("*", handler=inbox, name="h")
    broker.start()
    fill(broker, 1)
    inbox.wait(1)
    broken.set()
    broker.replay(subscription="h")
    (letter,) = eventually(broker.dead_letters.list)
    assert letter.error.startswith("replay ")
    assert letter.error.endswith(": ValueError: no")
    assert letter.attempts == 2
    broken.clear()
    broker.dead_letters.redrive()
    inbox.wait(2)
    assert numbers(inbox) == [0]


def test_a_dead_letter_is_redriven_by_a_replay(make: Make) -> None:
    """Into the subscription that gave up on it; it is none afterwards."""
    broken = [ValueError("no"), ValueError("no")]
    broker, inbox = make(), Inbox(fail=lambda event: broken.pop() if broken else None)
    broker.subscribe("*", handler=inbox, name="h")
    broker.start()
    fill(broker, 1)
    eventually(broker.dead_letters.list)
    assert broker.replay(subscription="h") == 1
    inbox.wait(1)
    eventually(lambda: not broker.dead_letters.list())
    assert numbers(inbox) == [0]


def test_a_long_replay_survives_a_restart_in_the_middle(make: Make) -> None:
    """More events than are in hand at a time: every one comes once more, in the order of its row."""
    broker, inbox = make(buffer_size=20, batch_size=10), Inbox()
    broker.subscribe("*", handler=inbox, name="h")
    broker.start()
    for receipt in [broker.publish("public.users.create", n, key=str(n % 3)) for n in range(15)]:
        receipt.result(20)
    for _ in range(9):
        for receipt in [broker.publish("public.users.create", n, key=str(n % 3)) for n in range(15)]:
            receipt.result(20)
    inbox.wait(150)
    assert broker.replay(subscription="h") == 150
    inbox.wait(170)
    broker.stop()
    broker.start()
    inbox.wait(300)
    assert len({event.seq for event in inbox.events if event.is_replay}) == 150
    for key in ("0", "1", "2"):
        row = [event.seq for event in inbox.events if event.is_replay and event.key == key]
        assert list(dict.fromkeys(row)) == sorted(set(row))


def test_what_replay_refuses(make: Make) -> None:
    """Two beginnings, a subscription that there is not, an event that is not there, times without a zone."""
    broker = make()
    broker.subscribe("*", handler=Inbox(), name="h")
    with pytest.raises(ConfigError, match="one beginning"):
        broker.replay(position=1, id=uuid.uuid4())
    with pytest.raises(ConfigError, match="no subscription 'x'; there are h"):
        broker.replay(subscription="x")
    with pytest.raises(EventError, match="there is no event 00000000-"):
        broker.replay(id=uuid.UUID(int=0))
    with pytest.raises(EventError, match="id is 'x'; it must be the UUID"):
        broker.replay(id="x")
    with pytest.raises(EventError, match="position is 'x'; in the log it is the seq"):
        broker.replay(position="x")
    with pytest.raises(EventError, match="time zone"):
        broker.replay(since=dt.datetime(2024, 1, 1))
    with pytest.raises(EventError, match=r"pattern is 'a\.'"):
        broker.replay("a.")


def test_without_a_database(tmp_path: Any) -> None:
    """From what the buffer still holds."""
    broker, inbox = Broker(Config.load(SETTINGS)), Inbox()
    broker.subscribe("*", handler=inbox, name="h")
    broker.start()
    sent = fill(broker)
    inbox.wait(6)
    assert broker.replay("public.users.*", subscription="h", id=sent[1].id) == 2
    inbox.wait(8)
    broker.stop()
    assert sorted(numbers(inbox)) == [2, 4]


def test_a_captured_write_is_replayed_with_its_values(database_url: str) -> None:
    """before, after and key of the captured event."""
    from sqlalchemy.orm import Session

    from tests.integration.shop import Base, User

    engine = sa.create_engine(database_url)
    Base.metadata.create_all(engine)
    broker, inbox = install_crud_hooks(engine, SETTINGS), Inbox()
    broker.subscribe(User, handler=inbox, name="h")
    broker.start()
    with Session(engine) as session, session.begin():
        session.add(User(id=1, name="Ann"))
    (event,) = inbox.wait(1)
    assert broker.replay(subscription="h") == 1
    again = inbox.wait(2)[1]
    broker.uninstall()
    engine.dispose()
    assert again == event.replace(metadata={"replay": again.metadata["replay"]})

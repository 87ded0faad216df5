"""The broker end to end: an application's sessions on one side, handlers on the other, a real database between."""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqla_events import (
    Config,
    ConfigError,
    DeliveryFailed,
    Event,
    EventError,
    EventFilter,
    SchemaError,
    install_crud_hooks,
)
from sqla_events.broker import Broker
from sqla_events.context import event_context
from tests.integration.shop import Base, Inbox, Order, User, eventually

QUICK = {"max_retries": 2, "initial_delay": 0.01, "max_delay": 0.02}


@dataclass
class App:
    """An engine with the shop's tables, and the brokers a test made on it."""

    engine: sa.Engine
    brokers: list[Broker]

    def hook(self, **settings: Any) -> Broker:
        broker = install_crud_hooks(self.engine, {"retry_policy": QUICK, "poll_interval": 0.05, **settings})
        self.brokers.append(broker)
        return broker

    def add(self, *things: Any) -> None:
        with Session(self.engine) as session, session.begin():
            session.add_all(things)


@pytest.fixture
def app(database_url: str) -> Iterator[App]:
    engine = sa.create_engine(database_url)
    Base.metadata.create_all(engine)
    made = App(engine, [])
    yield made
    for broker in made.brokers:
        broker.uninstall()
    engine.dispose()


def test_committed_changes_reach_the_handler_and_rolled_back_ones_do_not(app: App) -> None:
    """The main job: insert, update and delete arrive in order with their values; a rollback leaves no trace."""
    broker, inbox = app.hook(), Inbox()
    broker.subscribe("public.users.*", handler=inbox)
    broker.start()
    with Session(app.engine) as session:
        user = User(id=1, name="Ann")
        session.add(user)
        session.commit()
        assert user.name == "Ann"  # loaded: so the session, and the event, know the old value
        user.name = "Anna"
        session.commit()
        session.add(User(id=2, name="Nobody"))
        session.flush()
        session.rollback()
        session.delete(user)
        session.commit()
    events = inbox.wait(3)
    broker.stop()
    assert [event.operation for event in inbox.events] == ["create", "update", "delete"]
    assert events[0].after == {"id": 1, "name": "Ann"}
    assert (events[1].before, events[1].after) == ({"name": "Ann"}, {"name": "Anna"})
    assert events[2].before["id"] == 1
    assert {event.key for event in events} == {"1"}
    assert [event.seq for event in events] == sorted(event.seq or 0 for event in events)


def test_patterns_choose_and_every_group_gets_everything(app: App) -> None:
    """Three patterns in one group, one of them also in a group of its own."""
    broker = app.hook()
    users, creates, everything, audit = Inbox(), Inbox(), Inbox(), Inbox()
    broker.subscribe(User, handler=users)
    broker.subscribe("*.*.create", handler=creates)
    broker.subscribe("*", handler=everything)
    broker.subscribe("*", handler=audit, group="audit")
    broker.start()
    app.add(User(id=1, name="Ann", orders=[Order(id=1, total=3)]))
    with Session(app.engine) as session, session.begin():
        session.get_one(Order, 1).total = 4
    everything.wait(3)
    audit.wait(3)
    broker.stop()
    assert users.types == ["public.users.create"]
    assert sorted(creates.types) == ["public.orders.create", "public.users.create"]
    assert (
        sorted(everything.types)
        == sorted(audit.types)
        == ["public.orders.create", "public.orders.update", "public.users.create"]
    )


def test_a_restart_in_the_middle_of_a_backlog_loses_and_repeats_nothing(app: App) -> None:
    """Stopped after some of 300 events, started again: each arrives once, in order."""
    broker, inbox = app.hook(worker_count=1, buffer_size=10), Inbox()
    broker.subscribe("*", handler=inbox)
    app.add(*[User(id=number, name="x") for number in range(300)])
    broker.start()
    inbox.wait(20)
    broker.stop()
    assert len(inbox.events) < 300
    app.add(User(id=1000, name="last"))
    broker.start()
    inbox.wait(301)
    broker.stop()
    assert [event.key for event in inbox.events] == [*map(str, range(300)), "1000"]


def test_a_handler_that_fails_is_retried_then_buried_then_redriven(app: App) -> None:
    """Retries, a dead letter with error and traceback, redrive to the same subscription, no dead letter left."""
    broken = threading.Event()
    broken.set()
    inbox = Inbox(fail=lambda event: ValueError("broken") if broken.is_set() else None)
    other = Inbox()
    broker = app.hook()
    broker.subscribe("public.users.*", handler=inbox, name="mailer")
    broker.subscribe("public.users.*", handler=other, name="other")
    broker.start()
    app.add(User(id=1, name="Ann"))
    (dead,) = eventually(lambda: broker.dead_letters.list())
    assert inbox.attempts == 3
    assert (dead.subscription, dead.error, dead.attempts, dead.event.key) == ("mailer", "ValueError: broken", 3, "1")
    assert "raise error" in dead.traceback
    broken.clear()
    assert broker.dead_letters.redrive() == 1
    inbox.wait(1)
    eventually(lambda: not broker.dead_letters.list())
    broker.stop()
    assert len(other.events) == 1


def test_discarded_dead_letters_are_gone(app: App) -> None:
    """By pattern; the others stay."""
    broker = app.hook(retry_policy={"max_retries": 0})
    broker.subscribe("*", handler=Inbox(fail=lambda event: ValueError()), name="h")
    broker.start()
    app.add(User(id=1, name="Ann", orders=[Order(id=1)]))
    eventually(lambda: len(broker.dead_letters.list()) == 2)
    assert broker.dead_letters.discard(pattern="public.users.*") == 1
    assert [dead.event.entity for dead in broker.dead_letters.list()] == ["orders"]
    broker.stop()


def test_context_travels_with_the_events(app: App) -> None:
    """user_id, session_id and metadata of the surrounding context, nested ones merged."""
    broker, inbox = app.hook(instance_id="test-1"), Inbox()
    broker.subscribe("*", handler=inbox)
    broker.start()
    with event_context(user_id=7, session_id="s", request="r1"), event_context(step=2):
        app.add(User(id=1, name="Ann"))
        broker.publish("shop.mail.sent", {"to": "Ann"})
    events = inbox.wait(2)
    broker.stop()
    for event in events:
        assert (event.user_id, event.session_id, event.instance_id) == (7, "s", "test-1")
        assert event.metadata == {"request": "r1", "step": 2}


def test_publishing_in_a_session_shares_its_fate(app: App) -> None:
    """Committed: delivered once. Rolled back, also to a savepoint: never."""
    broker, inbox = app.hook(), Inbox()
    broker.subscribe("shop.*.*", handler=inbox)
    broker.start()
    with Session(app.engine) as session:
        broker.publish("shop.mail.lost", session=session)
        session.rollback()
        broker.publish("shop.mail.sent", {"n": 1}, session=session, key="a")
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            broker.publish("shop.mail.lost", session=session)
            1 / 0  # noqa: B018
        session.commit()
    broker.publish("shop.mail.last").result(10)
    inbox.wait(2)
    broker.stop()
    assert sorted(inbox.types) == ["shop.mail.last", "shop.mail.sent"]


def test_publish_sync_waits_for_the_handlers_and_reports_failure(app: App) -> None:
    """When it returns the handler has run; a handler that gave up is an error, and a dead letter."""
    broker, inbox = app.hook(), Inbox(fail=lambda event: ValueError("no") if event.payload == "bad" else None)
    broker.subscribe("shop.*.*", handler=inbox)
    broker.start()
    broker.publish_sync("shop.mail.sent", "good")
    assert [event.payload for event in inbox.events] == ["good"]
    with pytest.raises(DeliveryFailed, match="ValueError: no"):
        broker.publish_sync("shop.mail.sent", "bad")
    broker.publish_sync("nobody.wants.this")
    assert len(eventually(broker.dead_letters.list)) == 1
    broker.stop()


def test_mode_sync_handlers_have_run_when_commit_returns(app: App) -> None:
    """Also where a handler writes itself: its own commit does not wait for itself."""
    broker, inbox = app.hook(mode="sync"), Inbox()

    @broker.subscribe("public.users.create")
    def order_for(event: Event) -> None:
        app.add(Order(id=event.after["id"], user_id=event.after["id"]))

    broker.subscribe("*", handler=inbox)
    broker.start()
    for number in range(1, 6):
        app.add(User(id=number, name="x"))
        assert f"{number}" in {event.key for event in inbox.events if event.entity == "users"}
    inbox.wait(10)
    broker.stop()


def test_mode_sync_waits_also_where_another_process_handles(app: App) -> None:
    """The lease is with somebody else: commit() still returns after the handler, asking the log."""
    elsewhere, inbox = Broker(Config.load({"poll_interval": 0.05}), app.engine), Inbox()
    elsewhere.subscribe("*", handler=inbox)
    elsewhere.start()
    eventually(lambda: any(part.owner for part in elsewhere.stats()))
    here = app.hook(mode="sync", poll_interval=0.05)
    here.subscribe("*", handler=inbox)
    here.start()
    app.add(User(id=1, name="a"))
    assert [event.key for event in inbox.events] == ["1"]
    here.stop()
    elsewhere.stop()


def test_subscribing_and_unsubscribing_while_it_runs(app: App) -> None:
    """A new subscription gets what comes after; one that left gets nothing more."""
    broker, first, second = app.hook(), Inbox(), Inbox()
    broker.subscribe("*", handler=first)
    broker.start()
    app.add(User(id=1, name="a"))
    first.wait(1)
    broker.subscribe("*", handler=second)
    app.add(User(id=2, name="b"))
    second.wait(1)
    broker.unsubscribe(first)
    app.add(User(id=3, name="c"))
    second.wait(2)
    broker.stop()
    assert "3" not in {event.key for event in first.events}


def test_unsubscribing_a_bound_method_and_in_a_group_that_nobody_is_in(app: App) -> None:
    """A method is another object each time that it is asked for; a group without subscriptions is nobody's."""
    broker, first, second = app.hook(), Inbox(), Inbox()
    broker.subscribe("*", handler=first.__call__)
    broker.subscribe("*", handler=second)
    broker.start()
    broker.unsubscribe(first.__call__, "nobody's")
    broker.unsubscribe(first.__call__)
    app.add(User(id=1, name="a"))
    second.wait(1)
    broker.stop()
    assert first.events == []


def test_starting_and_stopping_twice_changes_nothing(app: App) -> None:
    """As does stopping what never ran."""
    broker, inbox = app.hook(), Inbox()
    broker.subscribe("*", handler=inbox)
    broker.stop()
    broker.start()
    broker.start()
    app.add(User(id=1, name="a"))
    inbox.wait(1)
    broker.stop()
    broker.stop()
    assert len(inbox.events) == 1


def test_installing_twice_is_idempotent_and_uninstalling_leaves_nothing(app: App) -> None:
    """The same broker; one event a change; another configuration is refused; afterwards nothing is captured."""
    broker = app.hook()
    assert app.hook() is broker
    with pytest.raises(ConfigError, match="another configuration"):
        app.hook(worker_count=3)
    app.add(User(id=1, name="a"))
    broker.uninstall()
    app.add(User(id=2, name="b"))
    again = app.hook(worker_count=3)
    assert again is not broker
    app.add(User(id=3, name="c"))
    with app.engine.connect() as connection:
        keys = connection.scalars(sa.text("SELECT key FROM events ORDER BY seq")).all()
    assert keys == ["1", "3"]


def test_missing_tables_are_found_at_start(empty_database_url: str) -> None:
    """The error names the tables and the command."""
    engine = sa.create_engine(empty_database_url)
    broker = install_crud_hooks(engine, {})
    with pytest.raises(SchemaError, match=r"events.*sqla-events migrate"):
        broker.start()
    broker.uninstall()
    engine.dispose()


def test_a_disabled_broker_does_nothing(empty_database_url: str) -> None:
    """The code of the application stays as it is, and not even the event tables are needed."""
    engine, inbox = sa.create_engine(empty_database_url), Inbox()
    Base.metadata.create_all(engine)
    broker = install_crud_hooks(engine, enabled=False)
    broker.subscribe("*", handler=inbox)
    broker.start()
    with Session(engine) as session, session.begin():
        session.add(User(id=1, name="Ann"))
        broker.publish("a.b.c", session=session)
    one = Event(type="a.b.c")
    assert broker.publish(one).result().id == broker.publish_sync(one).result().id == one.id
    assert [event.id for event in broker.publish_many([one]).result()] == [one.id]
    assert not broker.running
    broker.stop()
    broker.uninstall()
    tables = sa.inspect(engine).get_table_names()
    engine.dispose()
    assert inbox.events == []
    assert "events" not in tables


def test_what_publish_refuses(app: App) -> None:
    """Unknown fields, an event with further fields, values without a JSON form: nothing is written."""
    broker = app.hook()
    with pytest.raises(EventError, match="no field colour"):
        broker.publish("a.b.c", colour="red")
    with pytest.raises(EventError, match="further fields"):
        broker.publish(Event(type="a.b.c"), 5)
    with Session(app.engine) as session, pytest.raises(EventError, match="no JSON form"):
        broker.publish("a.b.c", object(), session=session)


async def test_an_asyncio_application(database_url: str, async_url: Callable[[str], str]) -> None:
    """AsyncEngine, AsyncSession, coroutine handler, ``async with broker``, publish awaited in a session."""
    engine = create_async_engine(async_url(database_url))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    broker = install_crud_hooks(engine, {"retry_policy": QUICK, "poll_interval": 0.05})
    seen: list[Event] = []
    done = asyncio.Event()

    @broker.subscribe("*")
    async def handler(event: Event) -> None:
        await asyncio.sleep(0)
        seen.append(event)
        if len(seen) == 4:
            done.set()

    async with broker:
        async with AsyncSession(engine) as session:
            session.add(User(id=1, name="Ann"))
            await session.commit()
            session.add(User(id=2, name="lost"))
            await session.flush()
            await session.rollback()
            session.add(Order(id=1, user_id=1))
            await broker.publish("shop.mail.sent", {"n": 1}, session=session)
            await session.commit()
        await broker.publish_sync("shop.mail.last")
        await asyncio.wait_for(done.wait(), 20)
    broker.uninstall()
    await engine.dispose()
    assert sorted(event.type for event in seen) == [
        "public.orders.create",
        "public.users.create",
        "shop.mail.last",
        "shop.mail.sent",
    ]


async def test_subscribing_on_another_thread_while_it_runs_on_a_loop(app: App) -> None:
    """What runs on the loop is changed there, whoever asks."""
    broker, first, second = app.hook(), Inbox(), Inbox()
    broker.subscribe("*", handler=first)
    async with broker:
        await asyncio.to_thread(app.add, User(id=1, name="a"))
        await asyncio.to_thread(first.wait, 1)
        await asyncio.to_thread(broker.subscribe, "*", handler=second)
        await asyncio.to_thread(app.add, User(id=2, name="b"))
        await asyncio.to_thread(second.wait, 1)


async def test_mode_sync_in_an_asyncio_application(database_url: str, async_url: Callable[[str], str]) -> None:
    """``await session.commit()`` returns after the coroutine handler, on the same loop."""
    engine = create_async_engine(async_url(database_url))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    broker = install_crud_hooks(engine, {"mode": "sync", "poll_interval": 0.05})
    seen: list[str | None] = []

    @broker.subscribe("*")
    async def handler(event: Event) -> None:
        seen.append(event.key)

    async with broker:
        for number in range(1, 4):
            async with AsyncSession(engine) as session:
                session.add(User(id=number, name="x"))
                await session.commit()
            assert seen[-1] == str(number)
    broker.uninstall()
    await engine.dispose()


def test_publishing_many_at_once(app: App) -> None:
    """In order, all or none: alone, in a session, and with one that cannot be stored; nothing of nothing."""
    broker, inbox = app.hook(), Inbox()
    broker.subscribe("shop.*.*", handler=inbox)
    many = [Event(type="shop.mail.sent", payload=number, key="1") for number in range(700)]
    assert broker.publish_many(many[:200]).result(20)[0].instance_id == broker.config.instance_id
    broker.start()
    with Session(app.engine) as session:
        broker.publish_many([Event(type="shop.mail.lost"), Event(type="shop.mail.lost")], session=session)
        session.rollback()
        assert [one.id for one in broker.publish_many(many[200:400], session=session).event] == [one.id for one in many[200:400]]
        session.commit()
    with event_context(user_id=7):
        broker.publish_many(one for one in many[400:]).result(20)
    assert broker.publish_many([]).result(20) == []
    with pytest.raises(EventError, match="no JSON form"):
        broker.publish_many([Event(type="shop.mail.lost"), Event(type="shop.mail.lost", payload=object())]).result(20)
    events = inbox.wait(700)
    broker.stop()
    assert [event.payload for event in events] == list(range(700))
    assert [event.user_id for event in events] == [None] * 400 + [7] * 300


async def test_publishing_many_in_an_async_session(database_url: str, async_url: Callable[[str], str]) -> None:
    """Awaited, in the session's transaction; one that nobody awaited is told."""
    engine = create_async_engine(async_url(database_url))
    broker = install_crud_hooks(engine, {})
    async with AsyncSession(engine) as session:
        await broker.publish_many([Event(type="a.b.c"), Event(type="a.b.d")], session=session)
        await session.commit()
    assert [event.type for event in await broker.list()] == ["a.b.c", "a.b.d"]
    with pytest.warns(RuntimeWarning, match="a batch of 1 events was never published"):
        broker.publish_many([Event(type="a.b.c")], session=session)
    broker.uninstall()
    await engine.dispose()


def test_a_coroutine_handler_cannot_stop_its_broker(app: App) -> None:
    """It would wait for itself: an error says so and the broker goes on. A plain handler can."""
    broker, told = app.hook(shutdown_timeout=5), list[Any]()

    @broker.subscribe("public.users.*")
    async def stops(event: Event) -> None:
        with pytest.raises(ConfigError, match="waits for itself") as caught:
            broker.stop()
        told.append(caught.value)

    @broker.subscribe("public.orders.*")
    def may(event: Event) -> None:
        broker.stop()
        told.append("stopped")

    broker.start()
    app.add(User(id=1, name="Ann"))
    eventually(lambda: told)
    assert broker.running
    app.add(Order(id=1, user_id=1))
    eventually(lambda: told[1:] == ["stopped"])
    assert not broker.running


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"pattern": "a..b"}, r"pattern is 'a\.\.b'"),
        ({"status": "done"}, "status is 'done'; it must be one of pending, processing, completed, failed"),
        ({"since": dt.datetime(2026, 1, 1)}, "since is datetime.*with a time zone"),
        ({"until": "2026-01-01"}, "until is '2026-01-01'"),
        ({"limit": -1}, "limit is -1"),
    ],
)
def test_a_filter_that_is_none(wanted: dict[str, Any], told: str) -> None:
    """It is refused where it is written, not by whatever database is asked."""
    with pytest.raises(EventError, match=told):
        EventFilter(**wanted)


def test_an_id_that_is_none(app: App) -> None:
    """As for a replay."""
    with pytest.raises(EventError, match="id is 'zz'; it must be the UUID of an event"):
        app.hook().get("zz")


def test_status_where_a_relay_takes_the_events_away(app: App, redis_url: str) -> None:
    """For the relay it is completed; for a group whose position is in Redis the log does not know."""
    broker, inbox = app.hook(provider=redis_url), Inbox()
    broker.subscribe("public.users.*", handler=inbox)
    broker.start()
    app.add(User(id=1, name="Ann"))
    inbox.wait(1)
    eventually(lambda: [event.status for event in broker.list(EventFilter(group="relay:redis"))] == ["completed"])
    assert [event.status for event in broker.list()] == ["pending"]

"""Redis, NATS and the database end to end: services that have a URL and nothing else, and an application beside them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import nats
import pytest
import redis.asyncio
import sqlalchemy as sa
from click.testing import CliRunner
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from sqlalchemy.orm import Session

from sqla_events import Broker, Event, Reject, RetryLater, RetryPolicy, connect, install_crud_hooks
from sqla_events.cli import main
from tests.integration.shop import Base, Inbox, Order, User, eventually

TRANSPORTS = ["redis", "nats"]
QUICK: dict[str, Any] = {
    "retry_policy": {"max_retries": 1, "initial_delay": 0.01},
    "poll_interval": 0.05,
    "lease": 2.0,
    "nats": {"ack_wait": 1.0},
}
Start = Callable[..., Broker]

beside_an_application = pytest.mark.parametrize("transport", TRANSPORTS, indirect=True)


@pytest.fixture(params=[*TRANSPORTS, "postgres"])
def transport(request: pytest.FixtureRequest) -> str:
    """URL of an empty one; ``postgres``: of a database with the event tables, which a service uses as its provider."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def service(transport: str) -> Iterator[Start]:
    """Services: brokers without a database, stopped at the end."""
    brokers: list[Broker] = []

    def start(**settings: Any) -> Broker:
        brokers.append(connect(transport, **{**QUICK, **settings}))
        return brokers[-1]

    yield start
    for broker in brokers:
        broker.stop()


@pytest.fixture
def app(transport: str, sqlite_url: str) -> Iterator[Callable[..., tuple[Broker, sa.Engine]]]:
    """The application, with the relay in its process."""
    engine = sa.create_engine(sqlite_url)
    Base.metadata.create_all(engine)
    brokers: list[Broker] = []

    def start(**settings: Any) -> tuple[Broker, sa.Engine]:
        broker = install_crud_hooks(engine, {"provider": transport, **QUICK, **settings})
        brokers.append(broker)
        return broker.start(), engine

    yield start
    for broker in brokers:
        broker.uninstall()
    engine.dispose()


def add(engine: sa.Engine, *things: Any) -> None:
    with Session(engine) as session, session.begin():
        session.add_all(things)


SERVICE = """
import json, sys
from sqla_events import connect

broker = connect(sys.argv[1], **json.loads(sys.argv[2]))

@broker.subscribe("public.users.*", group="service")
async def handler(event):
    print(json.dumps([event.type, event.after.get("name"), event.seq]), flush=True)

broker.run()
assert not [name for name in sys.modules if name.startswith(("tests", "psycopg", "sqlite3"))], "no database here"
"""


@beside_an_application
def test_a_service_in_a_process_of_its_own(transport: str, app: Any) -> None:
    """With the transport's URL and nothing else: no models, no database, not even a driver is imported."""
    _, engine = app()
    command = [sys.executable, "-c", SERVICE, transport, json.dumps(QUICK)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seen: list[Any] = []
    reading = threading.Thread(target=lambda: seen.extend(json.loads(line) for line in process.stdout or ()))
    reading.start()
    try:
        for number in range(1, 4):
            add(engine, User(id=number, name=f"ü{number}", orders=[Order(id=number)]))
        eventually(lambda: len(seen) == 3)
    finally:
        process.terminate()
        reading.join()
        _, error = process.communicate()
    assert process.returncode == 0, error
    assert [name for _, name, _ in seen] == ["ü1", "ü2", "ü3"]
    assert [seq for _, _, seq in seen] == sorted(seq for _, _, seq in seen)


@pytest.mark.parametrize(
    "wire",
    [
        {"compression": "gzip", "compress_from": 100},
        {"compression": "zstd", "compress_from": 0, "cloudevents": "structured"},
        {"cloudevents": "binary"},
    ],
    ids=str,
)
@beside_an_application
def test_forms_on_the_wire_are_transparent(app: Any, service: Start, wire: dict[str, Any]) -> None:
    """Compressed, as CloudEvents, or both: handlers get the same event, and readers need no setting."""
    inbox = Inbox()
    reader = service()
    reader.subscribe("*", handler=inbox)
    reader.start()
    writer, engine = app(wire=wire)
    add(engine, User(id=1, name="ü" * 1000))
    direct = writer.publish("shop.orders.paid", {"total": Decimal("1.10"), "n": None}, key="7", user_id=3).result(20)
    captured, published = sorted(inbox.wait(2), key=lambda event: event.entity or "", reverse=True)
    assert captured.after == {"id": 1, "name": "ü" * 1000}
    assert published == direct.replace(seq=published.seq, created_at=published.created_at)


async def raw(url: str) -> list[tuple[dict[str, str], bytes]]:
    """Headers and bodies of what is stored, by the transport's own client."""
    if url.startswith("redis:"):
        async with redis.asyncio.from_url(url) as client:
            entries = await client.xrange("sqla-events")
        return [(json.loads(fields[b"headers"]), fields[b"body"]) for _, fields in entries]
    client = await nats.connect(url)
    try:
        stream = client.jetstream()
        state = (await stream.stream_info("SQLA_EVENTS")).state
        messages = [await stream.get_msg("SQLA_EVENTS", seq) for seq in range(max(state.first_seq, 1), state.last_seq + 1)]
    except nats.js.errors.NotFoundError:  # the relay has not made it yet
        messages = []
    finally:
        await client.close()
    return [({name.lower(): value for name, value in (one.headers or {}).items()}, one.data or b"") for one in messages]


@pytest.mark.parametrize("mode", ["structured", "binary"])
@beside_an_application
async def test_the_official_package_reads_cloudevents_from_the_wire(app: Any, transport: str, mode: str) -> None:
    """What lies on the transport, told by its own client, is a CloudEvent to anybody."""
    writer, engine = app(wire={"cloudevents": mode})
    add(engine, User(id=1, name="Ann ü"))
    await writer.publish("shop.mail.sent", {"to": "Ann"}, key="ü 1")
    stored: list[tuple[dict[str, str], bytes]] = []
    while len(stored) < 2:
        stored = await raw(transport)
    found = [from_http_event(HTTPMessage(headers=headers, body=body)) for headers, body in stored]
    assert {one.get_type(): one.get_subject() for one in found} == {"public.users.create": "1", "shop.mail.sent": "ü 1"}
    (captured,) = (one for one in found if one.get_type() == "public.users.create")
    assert captured.get_data()["after"] == {"id": 1, "name": "Ann ü"}
    assert captured.get_extension("partitionkey") == "public.users:1"


def test_dead_letters_are_kept_at_the_transport(service: Start, transport: str) -> None:
    """Listed with error and traceback by another service and on the command line, redriven one by one, discarded."""
    broken, inbox = threading.Event(), Inbox(fail=lambda event: ValueError("no") if broken.is_set() else None)
    broken.set()
    one, other = service(), service()
    one.subscribe("*", handler=inbox, name="mailer")
    one.start()
    for number in range(3):
        one.publish("shop.mail.sent", number, key="1").result(20)
    letters = eventually(lambda: len(found := other.dead_letters.list()) == 3 and found)
    assert [(letter.subscription, letter.error, letter.event.payload, letter.attempts) for letter in letters] == [
        ("mailer", "ValueError: no", number, 2) for number in range(3)
    ]
    assert "raise error" in letters[0].traceback
    shown = CliRunner().invoke(main, ["dead-letters", "show", transport, letters[1].id])
    assert "ValueError: no" in shown.stdout, shown.output
    broken.clear()
    assert other.dead_letters.redrive([letters[1].id]) == 1
    assert inbox.wait(1)[0].payload == 1
    assert CliRunner().invoke(main, ["dead-letters", "discard", transport, "--all"]).stdout == "discarded: 2\n"
    assert other.dead_letters.list() == []


@beside_an_application
def test_what_the_transport_refuses_is_a_dead_letter_of_the_relay(
    app: Any, service: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """Too large for it: listed beside the others, under the relay; what comes behind it goes on, in a replay too."""
    writer, engine = app()
    inbox, reader = Inbox(), service()
    reader.subscribe("*", handler=inbox)
    reader.start()
    add(engine, User(id=0, name="first"))
    inbox.wait(1)
    assert writer._lifecycle.runtime is not None
    assert writer._lifecycle.runtime.provider is not None
    limit = writer._lifecycle.runtime.provider.features.max_message_bytes
    if limit is None or limit > 100_000_000:
        pytest.skip(f"this transport takes {limit or 'any number of'} bytes")
    add(engine, User(id=1, name="x" * limit))
    add(engine, User(id=2, name="small"))
    assert inbox.wait(2)[1].key == "2"
    (letter,) = eventually(writer.dead_letters.list)
    assert (letter.id[:4], letter.subscription, letter.event.key) == ("log:", "relay", "1")
    assert writer.replay() == 2
    inbox.wait(4)
    assert f"not replayed: event {letter.event.id}" in caplog.text
    assert writer.dead_letters.discard([letter.id]) == 1
    assert writer.dead_letters.list() == []


def test_replay_from_what_the_transport_keeps(service: Start) -> None:
    """A service without a database: into one subscription from an event on, then as new deliveries to everyone."""
    broker, mailer, search = service(), Inbox(), Inbox()
    broker.subscribe("shop.*.*", handler=mailer, name="mailer")
    broker.subscribe("shop.*.*", handler=search, name="search", group="search")
    broker.start()
    sent = broker.publish_many([Event(type="shop.mail.sent", payload=n, key=str(n % 2)) for n in range(6)]).result(20)
    mailer.wait(6)
    search.wait(6)
    assert broker.replay("shop.mail.*", id=sent[2].id, subscription="mailer") == 4
    mailer.wait(10)
    assert broker.replay() == 6
    search.wait(12)
    mailer.wait(16)
    assert sorted(event.payload for event in mailer.events if event.is_replay) == sorted([2, 3, 4, 5, *range(6)])
    assert sorted(event.payload for event in search.events if event.is_replay) == list(range(6))
    assert {event.id for event in search.events} == {event.id for event in sent}


@beside_an_application
def test_replay_from_the_log_through_the_transport(app: Any, service: Start) -> None:
    """The application has the log: it replays captured changes into a subscription of another service."""
    writer, engine = app()
    inbox, reader = Inbox(), service()
    reader.subscribe("public.users.*", handler=inbox, name="search", group="search")
    reader.start()
    add(engine, User(id=1, name="Ann"), User(id=2, name="Bob"))
    inbox.wait(2)
    assert writer.replay("public.users.*", subscription="search", group="search") == 2
    inbox.wait(4)
    assert sorted(event.key or "" for event in inbox.events if event.is_replay) == ["1", "2"]
    assert {event.seq for event in inbox.events if event.is_replay} == {event.seq for event in inbox.events}


def test_old_versions_are_brought_up_to_date(service: Start) -> None:
    """On the way to the handler; a version that nobody can bring up is a dead letter that says which step is missing."""
    broker, inbox = service(), Inbox()
    broker.subscribe("shop.mail.*", handler=inbox, name="h")

    @broker.upcaster("shop.mail.*", to=3)
    def third(event: Event) -> Event:
        return event.replace(payload={"to": event.payload["to"], "cc": []})

    broker.start()
    broker.publish("shop.mail.sent", {"to": "Ann"}, schema_version=2).result(20)
    broker.publish("shop.mail.sent", "Ann", schema_version=1).result(20)
    (event,) = inbox.wait(1)
    assert (event.payload, event.schema_version) == ({"to": "Ann", "cc": []}, 3)
    (letter,) = eventually(broker.dead_letters.list)
    assert "is of schema version 1, and there is no upcaster to version 2" in letter.error
    assert letter.event.payload == "Ann"


def test_a_paused_subscription_goes_on_where_it_stopped(service: Start) -> None:
    """Nothing is lost, also over a restart while it is paused; others go on."""
    broker, paused, other = service(), Inbox(), Inbox()
    broker.subscribe("*", handler=paused, name="paused", group="a")
    broker.subscribe("*", handler=other, name="other", group="b")
    broker.start()
    broker.pause("paused", group="a")
    for number in range(5):
        broker.publish("a.b.c", number, key="1").result(20)
    other.wait(5)
    assert paused.events == []
    broker.stop()
    broker.start()
    broker.publish("a.b.c", 5, key="1").result(20)
    other.wait(6)
    assert paused.events == []
    broker.resume("paused", group="a")
    assert [event.payload for event in paused.wait(6)] == list(range(6))


def test_retries_longer_than_the_redelivery_timeout_run_once_at_a_time(service: Start) -> None:
    """Two processes of the group, retries for several times as long as the transport waits: one run after the other."""
    attempts: list[float] = []
    running, worst, lock = 0, 0, threading.Lock()

    def failing(event: Event) -> None:
        nonlocal running, worst
        with lock:
            running += 1
            worst = max(worst, running)
            attempts.append(event.payload)
        threading.Event().wait(0.3)
        with lock:
            running -= 1
        if len(attempts) < 6:
            raise OSError("not yet")

    policy = RetryPolicy(max_retries=10, initial_delay=0.4, backoff_factor=1, jitter=0)
    for _ in range(2):
        broker = service()
        broker.subscribe("*", handler=failing, name="h", retry_policy=policy)
        broker.start()
    broker.publish("a.b.c", 1).result(20)
    eventually(lambda: len(attempts) == 6 and running == 0)
    broker.publish("a.b.c", 2).result(20)
    eventually(lambda: 2 in attempts)
    assert worst == 1
    assert attempts == [1] * 6 + [2]
    assert broker.dead_letters.list() == []


def test_attempts_go_on_after_a_restart(service: Start) -> None:
    """What failed twice before it fails for good after one more, and that not before it is due."""
    one = service(retry_policy={"max_retries": 2, "initial_delay": 0.01, "max_delay": 0.01})
    seen: list[str] = []
    due = 0.0

    def failing(event: Event) -> None:
        nonlocal due
        seen.append(str(event.id))
        due = time.time() + 3
        raise RetryLater(3) if len(seen) > 2 else OSError("no")

    one.subscribe("*", handler=failing, name="h")
    one.start()
    one.publish("a.b.c").result(20)
    eventually(lambda: len(seen) == 3)
    one.stop()
    two = service(retry_policy={"max_retries": 2, "initial_delay": 600})
    inbox = Inbox(fail=lambda event: OSError(f"still, {time.time() - due:.3f} s after it was due, {event.retry_count}"))
    two.subscribe("*", handler=inbox, name="h")
    two.start()
    (letter,) = eventually(two.dead_letters.list)
    assert (letter.attempts, inbox.attempts) == (3, 1)
    assert "OSError: still, -" not in letter.error
    assert letter.error.endswith("due, 2")


def test_a_handler_says_what_happens_next(service: Start) -> None:
    """Reject: a dead letter at once. RetryLater: again, and no failure. An exception that is not to be retried: at once."""
    broker, later = service(), iter([RetryLater(0.01), RetryLater(0.01), RetryLater(0.01)])
    outcomes = {"reject": lambda: Reject("never"), "later": lambda: next(later, None), "key": lambda: KeyError("k")}
    inbox = Inbox(fail=lambda event: outcomes[event.payload]())
    broker.subscribe("*", handler=inbox, name="h", retry_on=(OSError,))
    broker.start()
    for payload in outcomes:
        broker.publish("a.b.c", payload).result(20)
    letters = eventually(lambda: len(found := broker.dead_letters.list()) == 2 and found)
    assert {letter.event.payload: (letter.error, letter.attempts) for letter in letters} == {
        "reject": ("Reject: never", 1),
        "key": ("KeyError: 'k'", 1),
    }
    assert [event.payload for event in inbox.wait(1)] == ["later"]


def test_several_destinations_at_once(sqlite_url: str, request: pytest.FixtureRequest) -> None:
    """One log, handlers of the process itself, Redis and NATS: each gets everything, in the order of each row."""
    urls = {name: request.getfixturevalue(f"{name}_url") for name in TRANSPORTS}
    engine = sa.create_engine(sqlite_url)
    Base.metadata.create_all(engine)
    broker, here = install_crud_hooks(engine, {**QUICK, "destinations": urls}), Inbox()
    broker.subscribe("*", handler=here)
    broker.start()
    inboxes, services = [here], []
    for url in urls.values():
        services.append(connect(url, **QUICK))
        inboxes.append(Inbox())
        services[-1].subscribe("*", handler=inboxes[-1])
        services[-1].start()
    for number in range(10):
        add(engine, User(id=number, name="x"))
    with Session(engine) as session, session.begin():
        for number in range(10):
            session.get_one(User, number).name = "y"
    for inbox in inboxes:
        inbox.wait(20)
    groups = {part.group for part in broker.stats()}
    for one in (*services, broker):
        one.stop()
    broker.uninstall()
    engine.dispose()
    assert groups == {"default", "relay:redis", "relay:nats"}
    for inbox in inboxes:
        assert len(inbox.events) == 20
        for number in range(10):
            row = [event.operation for event in inbox.events if event.key == str(number)]
            assert row == ["create", "update"]

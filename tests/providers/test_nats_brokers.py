"""NATS with brokers: an application that captures and relays, services that have nothing but the URL."""

from __future__ import annotations

import time
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from sqla_events import Event, Reject, connect, install_crud_hooks
from sqla_events.errors import PublishRejected
from tests.integration.shop import Base, Inbox, User
from tests.servers.child import wait_until
from tests.servers.nats import NatsServer

QUICK: dict[str, Any] = {"lease": 1.0, "poll_interval": 0.05}


def test_from_an_application_to_a_service_without_a_database(nats: NatsServer, sqlite_url: str) -> None:
    """Captured, relayed, compressed on the way, handled elsewhere; failed there, redriven and replayed from there."""
    engine = create_engine(sqlite_url)
    Base.metadata.create_all(engine)
    wire = {"compression": "gzip", "compress_from": 100}
    application = install_crud_hooks(engine, {"provider": nats.url, "partitions": 3, "wire": wire, **QUICK})
    service = connect(nats.url, consumer_group="mailer", **QUICK)
    broken = True
    inbox = Inbox(lambda event: Reject("not now") if broken and event.after.get("name") == "B" else None)
    service.subscribe("*.users.*", handler=inbox, name="mail")
    application.start()
    service.start()
    try:
        with Session(engine) as session:
            session.add_all([User(id=1, name="A" * 1000), User(id=2, name="B")])
            session.commit()
        assert [event.after["name"] for event in inbox.wait(1)] == ["A" * 1000]
        wait_until(lambda: len(service.dead_letters.list()) == 1)
        broken = False
        assert service.dead_letters.redrive() == 1
        inbox.wait(2)
        service.replay("*.users.create", subscription="mail")
        replayed = inbox.wait(4)[2:]
        assert sorted(event.after["name"] for event in replayed) == ["A" * 1000, "B"]
        assert all(event.is_replay for event in replayed)
        with engine.connect() as connection:
            relays = connection.execute(text('SELECT "group", partitions FROM event_positions')).all()
        assert [tuple(row) for row in relays] == [("relay:nats", 1)]
    finally:
        service.stop()
        application.stop()
        application.uninstall()
        engine.dispose()


def test_events_of_services_without_a_database(nats: NatsServer) -> None:
    """Published and handled; what is too large is told to whoever publishes it."""
    service = connect(nats.url, **QUICK)
    inbox = Inbox()
    service.subscribe("web.clicks.*", handler=inbox)
    service.start()
    try:
        receipts = [service.publish("web.clicks.create", {"number": number}, key="1") for number in range(50)]
        for receipt in receipts:
            receipt.result(20)
        assert [event.payload["number"] for event in inbox.wait(50)] == list(range(50))
        with pytest.raises(PublishRejected, match="max_payload"):
            service.publish("web.clicks.create", "x" * 2_000_000).result(20)
    finally:
        service.stop()


def test_retries_that_take_longer_than_ack_wait_run_once_at_a_time(nats: NatsServer) -> None:
    """Two processes of a group; one handler that fails for a while and works for longer than the server would wait."""
    settings = {**QUICK, "nats": {"url": nats.url, "ack_wait": 0.6}, "retry_policy": {"initial_delay": 0.5, "max_retries": 3, "jitter": 0}}
    running, most, done = 0, 0, []

    def handle(event: Event) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.7)
        running -= 1
        if event.retry_count < 2:
            raise OSError("not yet")
        done.append(event.retry_count)

    services = [connect({"provider": "nats", **settings}) for _ in range(2)]
    for service in services:
        service.subscribe("a.b.c", handler=handle, name="slow")
        service.start()
    try:
        services[0].publish("a.b.c", key="1").result(20)
        wait_until(lambda: bool(done))
        time.sleep(1.5)  # longer than the server would wait for an acknowledgement
        assert (most, done) == (1, [2])
    finally:
        for service in services:
            service.stop()

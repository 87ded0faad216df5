"""Memory without a database: a bounded buffer that says what it loses."""

from __future__ import annotations

import threading

import pytest

from sqla_events import connect
from sqla_events.event import Event
from tests.integration.shop import eventually


def test_a_slow_group_loses_the_oldest_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """``buffer_size`` events are kept; how many are lost is a warning, and delivery goes on with the oldest kept."""
    broker, may_go, seen = connect({"provider": "memory"}, buffer_size=10, worker_count=1), threading.Event(), []

    @broker.subscribe("*")
    def slow(event: Event) -> None:
        may_go.wait(60)
        seen.append(event.payload)

    broker.start()
    broker.publish("a.b.c", 0, key="1").result(20)
    for number in range(1, 40):
        broker.publish("a.b.c", number, key="1").result(20)
    may_go.set()
    eventually(lambda: 39 in seen)
    broker.stop()
    lost = set(range(40)) - set(seen)
    assert seen == sorted(seen)
    assert seen[-10:] == list(range(30, 40))
    assert f"{len(lost)} events are lost" in caplog.text


def test_what_it_holds_is_gone_after_a_restart() -> None:
    """As the name says: nothing is kept without a database."""
    broker, seen = connect({"provider": "memory"}), []
    broker.start()
    broker.publish("a.b.c").result(20)
    broker.stop()
    broker.subscribe("*", handler=seen.append)
    broker.start()
    broker.publish("a.b.d").result(20)
    eventually(lambda: seen)
    broker.stop()
    assert [event.type for event in seen] == ["a.b.d"]

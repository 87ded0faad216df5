"""Prometheus metrics under the event broker's names, fed by a broker at work."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from prometheus_client import REGISTRY, CollectorRegistry
from sqlalchemy.orm import Session

from sqla_events import install_crud_hooks
from sqla_events.metrics import MOST_WAITING, Metrics, shared_metrics
from sqla_events.signals import Processed, Published, Signals
from tests.integration.shop import Base, Inbox, User, eventually


def sample(name: str, registry: CollectorRegistry = REGISTRY, **labels: str) -> float:
    return registry.get_sample_value(name, labels) or 0.0


def test_the_metrics_of_a_broker(sqlite_url: str) -> None:
    """Published, processed by status, duration and queue size, counted once for each event."""
    engine = sa.create_engine(sqlite_url)
    Base.metadata.create_all(engine)
    labels = {"source": "database", "type": "public.users.create"}
    before = sample("eventbroker_events_published_total", **labels)
    broker = install_crud_hooks(engine, {"retry_policy": {"max_retries": 0}})
    inbox = Inbox(fail=lambda event: ValueError() if event.key == "3" else None)
    broker.subscribe("public.users.*", handler=inbox)
    broker.start()
    with Session(engine) as session:
        session.add_all([User(id=number, name="x") for number in (1, 2, 3)])
        session.commit()
        session.add(User(id=4, name="rolled back"))
        session.flush()
        session.rollback()
    inbox.wait(2)
    eventually(lambda: sample("eventbroker_events_processed_total", **labels, status="failed"))
    eventually(lambda: REGISTRY.get_sample_value("eventbroker_queue_size") == 0)
    broker.uninstall()
    engine.dispose()
    assert sample("eventbroker_events_published_total", **labels) - before == 3
    assert sample("eventbroker_events_processed_total", **labels, status="completed") >= 2
    assert sample("eventbroker_event_processing_duration_seconds_count", **labels) >= 3


def test_a_registry_of_ones_own() -> None:
    """For several services in one process, or for tests; the shared one is made once."""
    registry, signals = CollectorRegistry(), Signals()
    end = Metrics(registry).attach(signals)
    signals.emit(Processed("system", "a.b.c", "completed", 0.25, "g", "s"))
    end()
    signals.emit(Processed("system", "a.b.c", "completed", 0.25, "g", "s"))
    assert sample("eventbroker_events_processed_total", registry, source="system", type="a.b.c", status="completed") == 1
    assert shared_metrics() is shared_metrics()


@pytest.mark.parametrize("many", [1, 3 * MOST_WAITING + 5])
def test_whoever_looks_sees_all_that_was_published(many: int) -> None:
    """It is counted when somebody looks, in whatever way, or when much waits."""
    registry, signals = CollectorRegistry(), Signals()
    metrics = Metrics(registry)
    metrics.attach(signals)
    name, labels = "eventbroker_events_published_total", {"source": "database", "type": "a.b.c"}
    for _ in range(many):
        signals.emit(Published("database", "a.b.c", 2))
    assert sample(name, registry, **labels) == 2 * many
    signals.emit(Published("database", "a.b.c"))
    (family,) = registry.restricted_registry([name]).collect()
    assert next(one.value for one in family.samples if one.name == name) == 2 * many + 1
    signals.emit(Published("database", "a.b.c"))
    (family,) = metrics.published.labels("database", "a.b.c").collect()
    assert next(one.value for one in family.samples if one.name == name) == 2 * many + 2
    signals.emit(Published("database", "a.b.c"))
    metrics.published.remove("database", "a.b.c")
    assert sample(name, registry, **labels) == 0
    signals.emit(Published("database", "a.b.c"))
    metrics.published.clear()
    assert sample(name, registry, **labels) == 0
    signals.emit(Published("system", "d.e.f", 7))
    assert sample(name, registry, source="system", type="d.e.f") == 7


def test_other_processes_see_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With prometheus-client's files of several processes, whoever looks is none of us."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "here")
    registry, signals = CollectorRegistry(), Signals()
    metrics = Metrics(registry)
    metrics.attach(signals)
    signals.emit(Published("database", "a.b.c"))
    assert not metrics.published._waiting
    assert sample("eventbroker_events_published_total", registry, source="database", type="a.b.c") == 1

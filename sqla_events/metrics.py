"""Prometheus metrics, fed by facts. The names are the event broker's."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache, partial
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Metric

from .signals import Buried, Fact, Processed, Published, Queued, Relayed, Retrying, Signals, Unavailable

MOST_WAITING = 1000


class PublishedCounter(Counter):
    """Counts what was published when somebody looks, or when much waits: to count takes a lock, which every commit would pay for.

    At once where other processes look (``PROMETHEUS_MULTIPROC_DIR``).
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        self._waiting: deque[Published] = deque()
        self._most = 0 if {"PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"} & os.environ.keys() else MOST_WAITING
        super().__init__(*given, **named)

    def published(self, fact: Published) -> None:
        """Count it, now or later; from any thread."""
        self._waiting.append(fact)
        if len(self._waiting) > self._most:
            self._count()

    def _count(self) -> None:
        counts: dict[tuple[str, str], int] = {}
        with suppress(IndexError):
            while True:
                fact = self._waiting.popleft()
                counts[fact.source, fact.type] = counts.get((fact.source, fact.type), 0) + fact.count
        for labels, count in counts.items():
            super().labels(*labels).inc(count)

    def labels(self, *values: Any, **named: Any) -> PublishedCounter:
        """Of some labels."""
        self._count()
        return super().labels(*values, **named)

    def remove(self, *values: Any) -> None:
        """Forget some labels."""
        self._count()
        super().remove(*values)

    def clear(self) -> None:
        """Forget all of them."""
        self._waiting.clear()
        super().clear()

    def collect(self) -> Iterable[Metric]:
        """All of them."""
        self._count()
        return super().collect()


class Metrics:
    """The collectors of one registry, and what turns facts into them.

    Several brokers of one process share the collectors of a registry.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        counter = partial(Counter, registry=registry)
        self.published = PublishedCounter(
            "eventbroker_events_published_total",
            "Events captured or published, when committed",
            ["source", "type"],
            registry=registry,
        )
        self.processed = counter(
            "eventbroker_events_processed_total", "Events that a subscription is through with", ["source", "type", "status"]
        )
        self.duration = Histogram(
            "eventbroker_event_processing_duration_seconds",
            "Time in the handler, last attempt",
            ["source", "type"],
            registry=registry,
        )
        self.queue = Gauge("eventbroker_queue_size", "Deliveries in hand in this process", registry=registry)
        self.retries = counter("eventbroker_retries_total", "Attempts that failed and will be repeated", ["type"])
        self.dead = counter("eventbroker_dead_letters_total", "Events given up on", ["type", "subscription"])
        self.relayed = counter("eventbroker_relayed_events_total", "Events published by a relay", ["group"])
        self.unavailable = counter("eventbroker_unavailable_total", "Failed calls to something outside", ["what"])
        self._sizes: dict[str, int] = {}
        self._children: dict[tuple[Any, ...], Any] = {}
        self._rules: dict[type[Fact], Callable[[Any], object]] = {
            Published: self.published.published,
            Processed: self._on_processed,
            Queued: self._on_queued,
            Retrying: lambda fact: self.retries.labels(fact.type).inc(),
            Buried: lambda fact: self.dead.labels(fact.type, fact.subscription).inc(),
            Relayed: lambda fact: self.relayed.labels(fact.group).inc(fact.count),
            Unavailable: lambda fact: self.unavailable.labels(fact.what).inc(),
        }

    def attach(self, signals: Signals) -> Callable[[], None]:
        """Count what these signals tell from now on; returns what ends that."""
        ends = [signals.subscribe(rule, kind) for kind, rule in self._rules.items()]

        def end() -> None:
            for one in ends:
                one()

        return end

    def _child(self, collector: Any, *labels: str) -> Any:
        """A labelled child, looked up once: ``labels()`` takes a lock and costs more than counting."""
        try:
            return self._children[collector, labels]
        except KeyError:
            child = self._children[collector, labels] = collector.labels(*labels)
            return child

    def _on_processed(self, fact: Processed) -> None:
        self._child(self.processed, fact.source, fact.type, fact.status).inc()
        self._child(self.duration, fact.source, fact.type).observe(fact.duration)

    def _on_queued(self, fact: Queued) -> None:
        self._sizes[fact.group] = fact.size
        self.queue.set(sum(self._sizes.values()))


@cache
def shared_metrics(registry: CollectorRegistry = REGISTRY) -> Metrics:
    """The metrics of a registry, made once: collectors can be registered only once under a name."""
    return Metrics(registry)

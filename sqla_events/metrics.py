"""Prometheus metrics, fed by facts. The names are the event broker's."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from .signals import Buried, Fact, Processed, Published, Queued, Relayed, Retrying, Signals, Unavailable


class Metrics:
    """The collectors of one registry, and what turns facts into them.

    Several brokers of one process share the collectors of a registry.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        counter = partial(Counter, registry=registry)
        self.published = counter(
            "eventbroker_events_published_total", "Events captured or published, when committed", ["source", "type"]
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
        self._counters: dict[tuple[str, str], Any] = {}
        """What counts events that are committed, by source and type: one look for each."""
        self._rules: dict[type[Fact], Callable[[Any], object]] = {
            Published: self._on_published,
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

    def _on_published(self, fact: Published) -> None:
        try:
            count = self._counters[fact.source, fact.type]
        except KeyError:
            count = self._counters[fact.source, fact.type] = self.published.labels(fact.source, fact.type).inc
        count(fact.count)

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

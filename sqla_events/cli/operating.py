"""Commands for whoever runs it: relay, status, replay, pause, resume."""

from __future__ import annotations

import datetime as dt
import logging
from typing import Any

import click

from ..errors import ConfigError
from .columns import print_table
from .options import Command, configured
from .target import broker_of


@click.command()
@configured
def relay(url: str, **options: Any) -> None:
    """Carry events from the log to Redis, NATS and destinations.

    Until SIGINT or SIGTERM. What is configured as provider and as `destinations` gets every event.

    Run as many as you like: as many work as the setting `partitions` says, the others stand by.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with broker_of(url, **options) as broker:
        provider = broker.config.provider
        targets = [*([] if provider in {"memory", "database"} else [provider]), *broker.config.destinations]
        if not targets:
            raise ConfigError(
                f"provider is {provider!r}, which reads the log itself, and there are no destinations: nothing to relay; "
                "give --provider redis://… or nats://…"
            )
        broker.stats()  # fails now, and in one line, where tables or provider are missing
        click.echo(f"relaying to {', '.join(targets)}; Ctrl-C stops", err=True)
        broker.run()


@click.command()
@configured
def status(url: str, **options: Any) -> None:
    """Show how far every consumer group is.

    Events to do, the age of the oldest, events a second, those that are tried again, dead letters, who holds the lease.
    """
    with broker_of(url, **options) as broker:
        stats = broker.stats()
    print_table(("group", "partition", "lag events", "lag seconds", "rate", "retrying", "dead", "owner"), list(map(_status, stats)))
    for group, name in sorted({(part.group, name) for part in stats for name in part.paused}):
        click.echo(f"paused: {name} of group {group}")


def _status(part: Any) -> tuple[Any, ...]:
    number = part.partition if part.partitions == 1 else f"{part.partition} of {part.partitions}"
    numbers = (part.lag, f"{part.lag_seconds:.1f}", f"{part.rate:.1f}", part.retrying, part.dead)
    return (part.group, number, *numbers, part.owner or "-")


@click.command()
@configured
@click.argument("pattern", default="*")
@click.option("--since", metavar="TIME", help="Begin with what was created then: 2026-01-31T12:00:00Z.")
@click.option("--position", metavar="POSITION", help="Begin there: an event's seq in the log, or a transport's own position.")
@click.option("--id", "event_id", metavar="UUID", help="Begin with this event.")
@click.option("--subscription", metavar="NAME", help="Into this subscription alone. Without it: new deliveries, to everyone.")
@click.option("--group", metavar="NAME", help="The group of the subscription (the configured one).")
def replay(url: str, pattern: str, since: str | None, event_id: str | None, **options: Any) -> None:
    """Deliver old events whose type matches PATTERN once more."""
    into = {name: options.pop(name) for name in ("position", "subscription", "group")}
    with broker_of(url, **options) as broker:
        count = broker.replay(pattern, since=_moment(since), id=event_id, **into)
    click.echo(f"replayed: {count}")


def _moment(text: str | None) -> dt.datetime | None:
    if text is None:
        return None
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no time; write 2026-01-31T12:00:00Z", param_hint="--since") from None
    return moment if moment.tzinfo else moment.astimezone()


def _on_a_subscription(command: Command) -> Command:
    named = click.argument("subscription", metavar="SUBSCRIPTION")
    return configured(named(click.option("--group", help="Its group (the configured one).")(command)))


@click.command()
@_on_a_subscription
def pause(url: str, subscription: str, group: str | None, **options: Any) -> None:
    """Hold back the events of a subscription.

    In every process with this database, until it is resumed. The name is the subscription's, or its module and function; a
    process that has no such subscription logs a warning.
    """
    with broker_of(url, **options) as broker:
        broker.pause(subscription, group, everywhere=True)
    click.echo(f"paused: {subscription}")


@click.command()
@_on_a_subscription
def resume(url: str, subscription: str, group: str | None, **options: Any) -> None:
    """Let a paused subscription go on where it stopped."""
    with broker_of(url, **options) as broker:
        broker.resume(subscription, group, everywhere=True)
    click.echo(f"resumed: {subscription}")

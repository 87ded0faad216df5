"""``dead-letters``: list, show, redrive, discard."""

from __future__ import annotations

from typing import Any

import click

from ..broker import Broker
from ..errors import EventError
from ..filter import check_pattern
from ..provider import DeadLetter
from .columns import print_table
from .options import Command, configured
from .target import broker_of

PAGE = 500
"""Dead letters looked through at once."""


def _of_some_letters(command: Command) -> Command:
    """Which dead letters."""
    for option in (
        click.option("--pattern", default="*", show_default=True, help="Of events whose type matches."),
        click.option("--group", help="Of this consumer group."),
    ):
        command = option(command)
    return configured(command)


@click.group(name="dead-letters")
def dead_letters() -> None:
    """Events that a subscription gave up on."""


@dead_letters.command(name="list")
@_of_some_letters
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1), help="At most so many.")
def list_letters(url: str, group: str | None, pattern: str, limit: int, **options: Any) -> None:
    """List them, oldest first."""
    with broker_of(url, **options) as broker:
        letters = broker.dead_letters.list(group=group, pattern=check_pattern(pattern), limit=limit)
    rows = [(one.id, one.group, one.subscription, one.event.type, one.attempts, one.error.partition("\n")[0]) for one in letters]
    print_table(("id", "group", "subscription", "type", "attempts", "error"), rows)


@dead_letters.command()
@configured
@click.argument("letter_id", metavar="ID")
def show(url: str, letter_id: str, **options: Any) -> None:
    """Show one with its event and traceback."""
    with broker_of(url, **options) as broker:
        letter = _find(broker, letter_id)
    click.echo(f"{letter.id}: {letter.subscription} of group {letter.group} gave up after {letter.attempts} attempts")
    click.echo(f"first failed {letter.first_failed_at:%Y-%m-%d %H:%M:%S}, last {letter.last_failed_at:%Y-%m-%d %H:%M:%S} UTC")
    click.echo(letter.event.to_json().decode())
    click.echo(letter.traceback or letter.error)


def _find(broker: Broker, letter_id: str) -> DeadLetter:
    after: str | None = None
    while page := broker.dead_letters.list(limit=PAGE, after=after):
        found: DeadLetter | None = next((one for one in page if one.id == letter_id), None)
        if found is not None:
            return found
        after = page[-1].id
    raise EventError(f"there is no dead letter {letter_id!r}; 'sqla-events dead-letters list URL' shows those that there are")


def _chosen(command: Command) -> Command:
    every = click.option("--all", "every", is_flag=True, help="Every one of the group that matches the pattern.")
    return _of_some_letters(click.argument("ids", metavar="[ID]...", nargs=-1)(every(command)))


@dead_letters.command()
@_chosen
def redrive(url: str, ids: tuple[str, ...], **options: Any) -> None:
    """Deliver them again, each to the subscription that gave up."""
    click.echo(f"redriven: {_settle('redrive', url, ids, **options)}")


@dead_letters.command()
@_chosen
def discard(url: str, ids: tuple[str, ...], **options: Any) -> None:
    """Forget them."""
    click.echo(f"discarded: {_settle('discard', url, ids, **options)}")


def _settle(what: str, url: str, ids: tuple[str, ...], every: bool, group: str | None, pattern: str, **options: Any) -> int:
    if bool(ids) == every:
        raise click.UsageError("give the ids of dead letters, or --all")
    with broker_of(url, **options) as broker:
        act = getattr(broker.dead_letters, what)
        count: int = act(list(ids) or None, group=group, pattern=check_pattern(pattern))
    return count

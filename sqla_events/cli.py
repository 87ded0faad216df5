"""The command ``sqla-events``: migrate, relay, tail, status, replay, pause, resume, triggers, dead-letters, settings, demo.

What goes wrong is one line on stderr and exit code 1; a command that was typed wrongly is exit code 2.

Why ``tail`` polls instead of consuming: a consumer group is a row in the database that holds retention up until it has
read everything, and looking must leave nothing behind. What a poll may find is not in the order of ``seq`` (a long
transaction commits late), so the last :data:`WINDOW` numbers are looked at again each time.
"""

from __future__ import annotations

import datetime as dt
import logging
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from .bridge import database_url, engine_of
from .broker import Broker
from .config import Config
from .errors import ConfigError, EventError, SQLAlchemyEventsError
from .event import Event
from .filter import check_pattern, matches
from .inspection import EventFilter
from .log.ranges import SIZE
from .provider import DeadLetter
from .schema import Names
from .settings import reference

WINDOW = 1000
"""Numbers below the newest one that ``tail --follow`` still looks at: as many as may be committed while a transaction is open."""

POLL = 0.5
"""Seconds between looks of ``tail --follow``."""

PAGE = 500


class Commands(click.Group):
    """Commands whose expected errors are one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (SQLAlchemyEventsError, SQLAlchemyError, ModuleNotFoundError) as error:
            raise click.ClickException(_first_line(error)) from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return text or type(error).__name__


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sqla-events")
def main() -> None:
    """Every committed SQLAlchemy change becomes an event.

    URL is a database URL as SQLAlchemy takes it: postgresql+psycopg://user@host/database, sqlite:///app.db. For
    dead-letters and replay it may also be a transport's: redis://…, nats://….
    """


# Options that several commands have ---------------------------------------------------------------------------------

Command = Callable[..., Any]


def _on_a_database(command: Command) -> Command:
    """Argument URL and the options that say what the tables there are called."""
    for option in (
        click.option("--schema", metavar="NAME", help="Database schema of the event tables."),
        click.option("--table-name", metavar="NAME", help="Name of the log's table (events)."),
        click.argument("url"),
    ):
        command = option(command)
    return command


def _configured(command: Command) -> Command:
    """The options that say how to run."""
    for option in (
        click.option("--provider", metavar="URL", help="Provider, or its URL: redis://…, nats://…"),
        click.option("--config", metavar="FILE", help="YAML file; without it the environment (SQLA_EVENTS_…)."),
    ):
        command = option(command)
    return _on_a_database(command)


def _of_some_letters(command: Command) -> Command:
    """Which dead letters."""
    for option in (
        click.option("--pattern", default="*", show_default=True, help="Of events whose type matches."),
        click.option("--group", help="Of this consumer group."),
    ):
        command = option(command)
    return _configured(command)


@contextmanager
def _broker(url: str, **options: Any) -> Iterator[Broker]:
    """A broker that captures nothing and runs nothing yet."""
    engine = _engine(url)
    if engine is None:
        options["provider"] = url
    config = _config(**options)
    if engine is not None:
        _refuse_missing_file(engine.url)
    try:
        yield Broker(config, engine)
    finally:
        if engine is not None:
            getattr(engine, "sync_engine", engine).dispose()


def _engine(url: str) -> Engine | AsyncEngine | None:
    """None for the URL of a transport: what is asked is asked there, without a database."""
    return None if _is_transport(url) else engine_of(url)


def _is_transport(url: str) -> bool:
    """By the scheme alone: the rest of a transport's URL may be none to SQLAlchemy (several hosts with commas)."""
    name, separator, _ = url.partition("://")
    try:
        make_url(f"{name.partition('+')[0]}://").get_dialect()
    except (NoSuchModuleError, ArgumentError):
        return bool(separator) and name != "postgres"
    return False


def _refuse_missing_file(url: URL) -> None:
    """SQLite would make an empty database where a path was mistyped."""
    path = url.database if url.get_backend_name() == "sqlite" else None
    if path and not path.startswith((":memory:", "file:")) and not Path(path).is_file():
        raise ConfigError(f"there is no file {path!r}; if that is its name, create it with: sqla-events migrate {str(url)!r}")


def _config(table_name: str | None, schema: str | None, config: str | None = None, provider: str | None = None) -> Config:
    names = {key: value for key, value in {"table_name": table_name, "schema": schema}.items() if value is not None}
    overrides: dict[str, Any] = {"database": names} if names else {}
    if provider is not None:
        overrides["provider"] = provider
    return Config.load(config, **overrides)


# Commands -----------------------------------------------------------------------------------------------------------


@main.command()
@_on_a_database
@click.option("--downgrade", is_flag=True, help="Drop the event tables, with every event in them.")
@click.option("--partitioned", is_flag=True, help="Also cut the log into range partitions (PostgreSQL).")
@click.option("--partition-size", default=SIZE, show_default=True, type=click.IntRange(1000), help="Numbers of a partition.")
def migrate(
    url: str, table_name: str | None, schema: str | None, downgrade: bool, partitioned: bool, partition_size: int
) -> None:
    """Create the event tables, or bring them up to date."""
    from . import alembic

    names = Names("events" if table_name is None else table_name, schema)
    if downgrade:
        alembic.downgrade(database_url(url), names)
        click.echo(f"dropped {names.events} and what belongs to it")
    else:
        alembic.upgrade(database_url(url), names)
        if partitioned:
            alembic.partition(database_url(url), names, partition_size)
        click.echo(f"{names.events} is up to date")


@main.command()
@_configured
def relay(url: str, **options: Any) -> None:
    """Carry events from the log to Redis or NATS until SIGINT or SIGTERM.

    Run as many as you like: as many work as the setting `partitions` says, the others stand by.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with _broker(url, **options) as broker:
        provider = broker.config.provider
        if provider in {"memory", "database"}:
            raise ConfigError(f"provider is {provider!r}, which reads the log itself: nothing to relay; give --provider redis://… or nats://…")
        broker.stats()  # fails now, and in one line, where tables or provider are missing
        click.echo(f"relaying to {provider}; Ctrl-C stops", err=True)
        broker.run()


@main.command()
@_on_a_database
@click.argument("pattern", default="*")
@click.option("-f", "--follow", is_flag=True, help="Go on with events as they come, until Ctrl-C.")
@click.option("-n", "--lines", default=10, show_default=True, type=click.IntRange(0), help="Events to begin with.")
def tail(url: str, pattern: str, follow: bool, lines: int, **options: Any) -> None:
    """Print the newest events as JSON lines. PATTERN is as in a subscription: 'public.users.*'."""
    check_pattern(pattern)
    with _broker(url, **options) as broker, _interrupt() as interrupted:
        known = _newest(broker, "*", WINDOW) if follow else []
        shown = _newest(broker, pattern, lines)
        _print(shown)
        if follow:
            _print(_coming(broker, pattern, {event.seq or 0 for event in (*known, *shown)}, interrupted))


@contextmanager
def _interrupt() -> Iterator[threading.Event]:
    """Set by SIGINT; a second one is KeyboardInterrupt, which may come out of any line, of an event loop that is being made too."""
    interrupted = threading.Event()

    def told(*_: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupted.set()

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, or the caller's own
        yield interrupted
        return
    signal.signal(signal.SIGINT, told)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _print(events: Iterable[Event]) -> None:
    for event in events:
        click.echo(event.to_json().decode())


def _newest(broker: Broker, pattern: str, count: int) -> list[Event]:
    found: list[Event] = broker.list(EventFilter(pattern, limit=count, newest_first=True)) if count else []
    return found[::-1]


def _coming(broker: Broker, pattern: str, seen: set[int], interrupted: threading.Event) -> Iterator[Event]:
    """Events that are committed from now on, until it is interrupted; ``seen`` are the newest seqs that were there before."""
    while not interrupted.is_set():
        for event in _above(broker, max(seen, default=0) - WINDOW):
            if event.seq in seen:
                continue
            seen.add(event.seq or 0)
            if matches(pattern, event.type):
                yield event
        top = max(seen, default=0)
        seen = {seq for seq in seen if seq > top - WINDOW}
        interrupted.wait(POLL)


def _above(broker: Broker, after: int) -> Iterator[Event]:
    """Every event above a seq, page by page."""
    while page := broker.list(EventFilter(after=after, limit=PAGE)):
        yield from page
        after = page[-1].seq


@main.command()
@_configured
def status(url: str, **options: Any) -> None:
    """Show how far every consumer group is: events to do, the age of the oldest, events a second, dead letters."""
    with _broker(url, **options) as broker:
        stats = broker.stats()
    _table(("group", "partition", "lag events", "lag seconds", "rate", "retrying", "dead", "owner"), list(map(_status, stats)))
    for group, name in sorted({(part.group, name) for part in stats for name in part.paused}):
        click.echo(f"paused: {name} of group {group}")


def _status(part: Any) -> tuple[Any, ...]:
    number = part.partition if part.partitions == 1 else f"{part.partition} of {part.partitions}"
    numbers = (part.lag, f"{part.lag_seconds:.1f}", f"{part.rate:.1f}", part.retrying, part.dead)
    return (part.group, number, *numbers, part.owner or "-")


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    texts = [tuple(head), *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(head))]
    for row in texts:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@main.command()
@_configured
@click.argument("pattern", default="*")
@click.option("--since", metavar="TIME", help="Begin with what was created then: 2026-01-31T12:00:00Z.")
@click.option("--position", metavar="POSITION", help="Begin there: an event's seq in the log, or a transport's own position.")
@click.option("--id", "event_id", metavar="UUID", help="Begin with this event.")
@click.option("--subscription", metavar="NAME", help="Into this subscription alone. Without it: new deliveries, to everyone.")
@click.option("--group", metavar="NAME", help="The group of the subscription (the configured one).")
def replay(url: str, pattern: str, since: str | None, event_id: str | None, **options: Any) -> None:
    """Deliver old events whose type matches PATTERN once more."""
    into = {name: options.pop(name) for name in ("position", "subscription", "group")}
    with _broker(url, **options) as broker:
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
    return _configured(named(click.option("--group", help="Its group (the configured one).")(command)))


@main.command()
@_on_a_subscription
def pause(url: str, subscription: str, group: str | None, **options: Any) -> None:
    """Have every process with this database hold a subscription's events back, until it is resumed."""
    with _broker(url, **options) as broker:
        broker.pause(subscription, group, everywhere=True)
    click.echo(f"paused: {subscription}")


@main.command()
@_on_a_subscription
def resume(url: str, subscription: str, group: str | None, **options: Any) -> None:
    """Let a paused subscription go on where it stopped."""
    with _broker(url, **options) as broker:
        broker.resume(subscription, group, everywhere=True)
    click.echo(f"resumed: {subscription}")


@main.command(name="triggers")
@click.argument("url")
def event_triggers(url: str) -> None:
    """Check that event triggers fit their tables as these are now."""
    from . import alembic, triggers

    found: list[str] = []
    wrong: list[str] = []

    def look(connection: Connection) -> None:
        found.extend(triggers.installed(connection))
        wrong.extend(triggers.drift(connection))

    target = database_url(url)
    _refuse_missing_file(target)
    alembic.connected(target, look)
    if wrong:
        raise click.ClickException("; ".join(wrong))
    click.echo(f"event triggers fit their tables: {', '.join(found)}" if found else "there are no event triggers")


# Dead letters -------------------------------------------------------------------------------------------------------


@main.group(name="dead-letters")
def dead_letters() -> None:
    """Events that a subscription gave up on."""


@dead_letters.command(name="list")
@_of_some_letters
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1), help="At most so many.")
def list_letters(url: str, group: str | None, pattern: str, limit: int, **options: Any) -> None:
    """List them, oldest first."""
    with _broker(url, **options) as broker:
        letters = broker.dead_letters.list(group=group, pattern=check_pattern(pattern), limit=limit)
    rows = [(one.id, one.group, one.subscription, one.event.type, one.attempts, one.error.partition("\n")[0]) for one in letters]
    _table(("id", "group", "subscription", "type", "attempts", "error"), rows)


@dead_letters.command()
@_configured
@click.argument("letter_id", metavar="ID")
def show(url: str, letter_id: str, **options: Any) -> None:
    """Show one with its event and traceback."""
    with _broker(url, **options) as broker:
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
    with _broker(url, **options) as broker:
        act = getattr(broker.dead_letters, what)
        count: int = act(list(ids) or None, group=group, pattern=check_pattern(pattern))
    return count


@main.command()
def settings() -> None:
    """Print every setting with its default and meaning, as Markdown."""
    click.echo(reference(Config))


@main.command()
@click.option("--url", help="Database to play in; without it an SQLite file that is deleted afterwards.")
@click.pass_context
def demo(ctx: click.Context, url: str | None) -> None:
    """Play a small shop and count that nothing is lost. On a database of yours it makes tables shop_… and drops them."""
    from .demo import run

    ctx.exit(run(None if url is None else database_url(url)))

"""``tail``: the newest events, and those that come.

Why it polls instead of consuming: a consumer group is a row in the database that holds retention up until it has read
everything, and looking must leave nothing behind. What a poll may find is not in the order of ``seq`` (a long
transaction commits late), so the last :data:`WINDOW` numbers are looked at again each time.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from ..broker import Broker
from ..event import Event
from ..filter import check_pattern, matches
from ..inspection import EventFilter
from .options import on_a_database
from .target import broker_of

WINDOW = 1000
"""Numbers below the newest one that ``tail --follow`` still looks at: as many as may be committed while a transaction is open."""

POLL = 0.5
"""Seconds between looks of ``tail --follow``."""

PAGE = 500
"""Events of one look at the log."""


@click.command()
@on_a_database
@click.argument("pattern", default="*")
@click.option("-f", "--follow", is_flag=True, help="Go on with events as they come, until Ctrl-C.")
@click.option("-n", "--lines", default=10, show_default=True, type=click.IntRange(0), help="Events to begin with.")
def tail(url: str, pattern: str, follow: bool, lines: int, **options: Any) -> None:
    """Print the newest events as JSON lines. PATTERN is as in a subscription: 'public.users.*'."""
    check_pattern(pattern)
    with broker_of(url, **options) as broker, _interrupt() as interrupted:
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

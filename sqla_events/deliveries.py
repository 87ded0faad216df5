"""Dead letters of the log: rows of ``event_deliveries`` with status ``failed``, and the events they are about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .bridge import Database
from .errors import EventError
from .event import Event, Status, now
from .filter import matches
from .log.leases import begin_writing
from .log.query import in_utc, rows_by_seq
from .log.rows import Row
from .log.troubles import FAILED, REDRIVEN
from .provider import DeadLetter
from .schema import Tables

Key = tuple[str, int, str]
"""Group, seq, subscription."""

PAGE = 1000


class LogDeadLetters:
    """A provider.DeadLetters over the log. ``ring`` tells readers of this process that something was redriven."""

    def __init__(self, database: Database, tables: Tables, ring: Callable[[], None]) -> None:
        self._database = database
        self._tables = tables
        self._ring = ring

    async def list(
        self, *, group: str | None = None, pattern: str = "*", limit: int = 100, after: str | None = None
    ) -> Sequence[DeadLetter]:
        """Oldest first; ``after`` is the id of the last one already seen."""
        return await self._database.run(find, self._tables, group, pattern, limit, after)

    async def redrive(self, ids: Sequence[str] | None = None, *, group: str | None = None, pattern: str = "*") -> int:
        """Deliver them again, each to the subscription that gave up, attempts counted afresh; returns how many."""
        count = await self._database.run(_redrive, self._tables, ids, group, pattern)
        self._ring()
        return count

    async def discard(self, ids: Sequence[str] | None = None, *, group: str | None = None, pattern: str = "*") -> int:
        """Forget them; returns how many."""
        return await self._database.run(_discard, self._tables, ids, group, pattern)


def id_of(key: Key) -> str:
    """``seq/group/subscription``: names one dead letter.

    >>> id_of(("default", 42, "app.mail"))
    '42/default/app.mail'
    """
    group, seq, subscription = key
    return f"{seq}/{group.replace('%', '%25').replace('/', '%2F')}/{subscription}"


def key_of(letter: str) -> Key:
    """What :func:`id_of` was made of.

    :raises EventError: where it is no id of a dead letter.
    """
    seq, _, rest = letter.partition("/")
    group, slash, subscription = rest.partition("/")
    if not seq.isdecimal() or not slash:
        raise EventError(f"{letter!r} is not the id of a dead letter; ids look like '42/default/app.handler'")
    return group.replace("%2F", "/").replace("%25", "%"), int(seq), subscription


def find(
    connection: Connection, tables: Tables, group: str | None, pattern: str, limit: int, after: str | None
) -> list[DeadLetter]:
    """Dead letters in the order of the log."""
    found: list[DeadLetter] = []
    last = None if after is None else key_of(after)
    while len(found) < limit:
        page = _page(connection, tables, group, last)
        events = rows_by_seq(connection, tables, [one.seq for one in page])
        found += [
            _letter(one, events[one.seq])
            for one in page
            if one.seq in events and matches(pattern, events[one.seq].type)
        ]
        if len(page) < PAGE:
            break
        last = (page[-1].group, page[-1].seq, page[-1].subscription)
    return found[:limit]


def _page(connection: Connection, tables: Tables, group: str | None, last: Key | None) -> Sequence[Any]:
    d = tables.deliveries
    query = sa.select(d).where(d.c.status == FAILED).order_by(d.c.seq, d.c.group, d.c.subscription).limit(PAGE)
    if group is not None:
        query = query.where(d.c.group == group)
    if last is not None:
        query = query.where(sa.tuple_(d.c.seq, d.c.group, d.c.subscription) > sa.tuple_(last[1], last[0], last[2]))
    return connection.execute(query).all()


def _letter(one: Any, row: Row) -> DeadLetter:
    return DeadLetter(
        id=id_of((one.group, one.seq, one.subscription)),
        group=one.group,
        subscription=one.subscription,
        event=_event(one, row),
        error=one.error or "",
        traceback=one.traceback or "",
        attempts=one.attempts,
        first_failed_at=in_utc(one.first_failed_at) or now(),
        last_failed_at=in_utc(one.last_failed_at) or now(),
    )


def _event(one: Any, row: Row) -> Event:
    """The event with its failure; one that cannot be decoded still shows what is known of it."""
    return row.known().replace(status=Status.FAILED, error=one.error, retry_count=max(one.attempts - 1, 0))


def _redrive(connection: Connection, tables: Tables, ids: Sequence[str] | None, group: str | None, pattern: str) -> int:
    d = tables.deliveries
    return _each(connection, tables, sa.update(d).values(status=REDRIVEN, attempts=0), ids, group, pattern)


def _discard(connection: Connection, tables: Tables, ids: Sequence[str] | None, group: str | None, pattern: str) -> int:
    return _each(connection, tables, sa.delete(tables.deliveries), ids, group, pattern)


def _each(
    connection: Connection, tables: Tables, statement: Any, ids: Sequence[str] | None, group: str | None, pattern: str
) -> int:
    """Run a statement for every dead letter that is meant; returns how many it hit."""
    begin_writing(connection)
    d = tables.deliveries
    statement = statement.where(d.c.status == FAILED)
    if ids is None and pattern == "*":
        return connection.execute(statement if group is None else statement.where(d.c.group == group)).rowcount
    keys = [key_of(one) for one in ids] if ids is not None else _matching(connection, tables, group, pattern)
    return sum(
        connection.execute(
            statement.where(d.c.group == group, d.c.seq == seq, d.c.subscription == subscription)
        ).rowcount
        for group, seq, subscription in keys
    )


def _matching(connection: Connection, tables: Tables, group: str | None, pattern: str) -> list[Key]:
    d, e = tables.deliveries, tables.events
    query = (
        sa.select(d.c.group, d.c.seq, d.c.subscription, e.c.type)
        .join(e, e.c.seq == d.c.seq)
        .where(d.c.status == FAILED)
    )
    if group is not None:
        query = query.where(d.c.group == group)
    return [(row.group, row.seq, row.subscription) for row in connection.execute(query) if matches(pattern, row.type)]

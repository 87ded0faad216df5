"""Events of the log on their way to one subscription once more, and the log read from somewhere as history.

A replayed event is a row of ``event_deliveries`` with status ``redriven``, as a dead letter that is redriven: the reader
of its group delivers it, in its lane, to the one subscription, and a crash repeats it. What tells them apart is the mark,
which stands before the error: ``replay <id>`` or ``replay <id>: <error>``.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..errors import EventError
from ..event import REPLAY, Event, now
from ..filter import like, matches
from ..provider import Failure, Message
from ..schema import Tables
from .delivery import LogDelivery
from .leases import begin_writing
from .query import IN_SLACKS, as_stored, newest, seq_at
from .reading import events_of, select_rows, text_of
from .troubles import FAILED, REDRIVEN, insert_into

Target = tuple[str, str]
"""Group and subscription."""

_MARK = re.compile(r"replay (\S+?)(?:: |$)")


@dataclass(frozen=True)
class Replay:
    """One event that one subscription is to have again."""

    group: str
    seq: int
    subscription: str
    mark: str
    """Which replay it is part of."""


class Replayed(LogDelivery):
    """A delivery that is part of a replay, which the event's metadata say."""

    mark: str = ""

    def event(self) -> Event:
        event = self.row.to_event()
        return event.replace(metadata={**event.metadata, REPLAY: self.mark})

    def retry(self, failure: Failure, delay: float) -> None:
        super().retry(self._marked(failure), delay)

    def bury(self, failure: Failure) -> None:
        super().bury(self._marked(failure))

    def _marked(self, failure: Failure) -> Failure:
        return Failure(
            failure.subscription, f"replay {self.mark}: {failure.error}", failure.traceback, failure.attempts
        )


def mark_of(error: str | None) -> str | None:
    """Which replay a row of ``event_deliveries`` is part of, by its error."""
    found = _MARK.match(error or "")
    return found[1] if found else None


def replay(connection: Connection, tables: Tables, wanted: Sequence[Replay]) -> None:
    """Have events delivered once more. A dead letter is redriven by it; what its subscription still tries stays as it is."""
    if not wanted:
        return
    moment, table = now(), tables.deliveries
    insert = insert_into(connection, table)
    again = {"status": REDRIVEN, "attempts": 0, "next_attempt_at": None, "error": insert.excluded.error, "traceback": None}
    statement = insert.on_conflict_do_update(
        index_elements=["group", "seq", "subscription"], set_=again, where=table.c.status == FAILED
    )
    rows = [
        {
            "group": one.group,
            "seq": one.seq,
            "subscription": one.subscription,
            "status": REDRIVEN,
            "attempts": 0,
            "error": f"replay {one.mark}",
            "first_failed_at": moment,
            "last_failed_at": moment,
        }
        for one in wanted
    ]
    connection.execute(statement, rows)


# History ------------------------------------------------------------------------------------------------------------


class Span(msgspec.Struct, frozen=True):
    """What a history is to give: seqs from ``first`` to ``last``, created at or after ``since``, types that may match."""

    first: int
    last: int
    since: dt.datetime | None
    pattern: str


def span(
    connection: Connection, tables: Tables, since: dt.datetime | None, position: str | None, pattern: str
) -> Span:
    """From a time, or from a seq, to what is newest now.

    :raises EventError: for a position that is no seq.
    """
    first = 1
    if position is not None:
        if not position.isdecimal():
            raise EventError(f"the position is {position!r}; in the log it is the seq of an event, a number")
        first = int(position)
    elif since is not None:  # clocks of different machines differ a little: begin before, and look at the time as well
        first = seq_at(connection, tables, since - IN_SLACKS[-1])
    return Span(first, newest(connection, tables), since, pattern)


def again(
    connection: Connection, tables: Tables, wanted: Span, targets: Sequence[Target], mark: str, limit: int
) -> tuple[int, Span | None]:
    """Have the next events of a span that match its pattern delivered again, in one transaction, without reading them.

    :returns: how many events, and what is left of the span.
    """
    begin_writing(connection)
    e = events_of(tables)
    query = sa.select(e.c.seq, e.c.type, text_of(e, "metadata")).where(*_within(connection, tables, wanted))
    rows = connection.execute(query.order_by(e.c.seq).limit(limit)).all()
    chosen = [seq for seq, kind, about in rows if matches(wanted.pattern, kind) and not _is_replay(about)]
    replay(connection, tables, [Replay(group, seq, name, mark) for seq in chosen for group, name in targets])
    left = msgspec.structs.replace(wanted, first=rows[-1].seq + 1) if len(rows) == limit else None
    return len(chosen), left


def _is_replay(metadata: str | None) -> bool:
    return metadata is not None and REPLAY in metadata and REPLAY in msgspec.json.decode(metadata)


def page(connection: Connection, tables: Tables, wanted: Span, limit: int) -> list[Message]:
    """The next messages of a span, at most so many."""
    return [row.to_message() for row in select_rows(connection, tables, _within(connection, tables, wanted), limit)]


def _within(connection: Connection, tables: Tables, wanted: Span) -> list[Any]:
    e = events_of(tables)
    where = [e.c.seq >= wanted.first, e.c.seq <= wanted.last]
    if wanted.since is not None:
        where.append(e.c.created_at >= as_stored(connection, wanted.since))
    if wanted.pattern != "*":
        where.append(e.c.type.like(like(wanted.pattern), escape="\\"))
    return where

"""Tables that a listener of a test's own renames in the SQL.

An event has the name that the metadata has, and the rows are in a table of another name: which one, only the SQL that the
driver gets says. So the events of such a statement carry that name to the replay, in their metadata. That is for SQLite: on
PostgreSQL a statement of one row takes its event along, which is made before that listener is asked.
"""

from __future__ import annotations

import re

import msgspec

from sqla_events.capture import gaps
from sqla_events.context import About, _current
from sqla_events.event import Event

from .log import DEFAULT_SCHEMA

KEY = "suite_renamed"


def note(sql: str, table: str) -> tuple[str | None, str] | None:
    """Before the driver gets a statement that writes to ``table``: what that is called in it, if it is another name."""
    written = None if _named(sql, table) else next(iter(gaps.writes(sql, "sqlite")), None)
    if written is not None:
        _current.set(About(metadata={KEY: {table: list(written[:2])}}))
        return written[:2]
    if KEY in _current.get().metadata:
        _current.set(About())
    return None


def _named(sql: str, table: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(table)}(?!\w)", sql) is not None


def as_written(event: Event) -> Event:
    """The event of the table that was written."""
    renamed = (event.metadata or {}).get(KEY, {})
    if event.entity not in renamed:
        return event
    schema, name = renamed[event.entity]
    return msgspec.structs.replace(event, schema=schema or DEFAULT_SCHEMA, entity=name)

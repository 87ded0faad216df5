"""The log: SQL as plain functions of a synchronous Connection, and the reader that holds a lease on a position."""

from .check import verify
from .listing import list_events
from .pauses import pause, paused, resume
from .query import get_event, groups, newest, rows_by_seq
from .stats import GroupStats, stats
from .writing import append

__all__ = [
    "GroupStats",
    "append",
    "get_event",
    "groups",
    "list_events",
    "newest",
    "pause",
    "paused",
    "resume",
    "rows_by_seq",
    "stats",
    "verify",
]

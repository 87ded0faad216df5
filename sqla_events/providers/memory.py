"""Memory: handlers in this process. What was captured is in the log and survives a restart.

Without a database there is no log: events that are published then live in a bounded buffer and are lost with the process.
"""

from __future__ import annotations

from .log import LogProvider


class MemoryProvider(LogProvider):
    """The log, read in this process."""

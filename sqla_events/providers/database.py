"""Database: the log itself carries the events, to any process that has its URL."""

from __future__ import annotations

from .log import LogProvider


class DatabaseProvider(LogProvider):
    """The log, read by any process."""

"""What a reader reads, and how."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReaderSettings:
    """One reader of one partition of a consumer group."""

    group: str
    owner: str
    """Unique among everybody who may want the lease."""
    partition: int = 0
    partitions: int = 1
    lease: float = 5.0
    """Seconds after which a standby takes over from a reader that is gone."""
    batch_size: int = 1000
    """Rows of one read, at most; fewer where they are large."""
    prefetch: int = 1000
    """Events handed out and not settled, at most."""
    poll_interval: float = 1.0
    """Seconds between reads when nothing happens for long; much less after something did, and none after the doorbell."""
    start: int | None = None
    """Where a group begins that is new: after this seq; None: before the first event; -1: after the last one there is."""
    patterns: tuple[str, ...] = ("*",)
    """What the group's subscriptions want; the payloads of other events stay in the database."""

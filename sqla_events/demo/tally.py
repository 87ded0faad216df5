"""Who got what, in a file that survives SIGKILL, and the sum at the end.

Why a file: the count must not come from the library that it is about, and a killed process tells nobody anything. One
``write`` of a line to a file opened for appending is whole or not there.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..event import Event
from ..filter import matches


class Tally:
    """Deliveries by subscription and event id. Several processes may note in the same file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)

    def note(self, subscription: str, event: Event) -> None:
        """A handler is through with an event: its last line."""
        os.write(self._file, f"{subscription} {event.id}\n".encode())

    def counts(self) -> Counter[tuple[str, str]]:
        """How often each (subscription, event id) was handled."""
        lines = self.path.read_text().splitlines()
        return Counter((name, event_id) for name, _, event_id in (line.partition(" ") for line in lines))

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


@dataclass(frozen=True)
class Sum:
    """The books."""

    captured: int
    """Events in the log."""
    delivered: int
    """Those that every subscription that wants them has handled."""
    dead: int
    """Those that are a dead letter of a subscription, and handled by the others."""
    duplicates: int
    """Handlings beyond the first of the same event by the same subscription."""
    unknown: int
    """Handled, and not in the log: of a transaction that was rolled back."""

    @property
    def lost(self) -> int:
        """Neither delivered nor dead."""
        return self.captured - self.delivered - self.dead

    @property
    def right(self) -> bool:
        """Whether the books balance."""
        return self.lost == 0 and self.unknown == 0


def add_up(
    log: Iterable[tuple[str, str]], dead: set[tuple[str, str]], handled: Counter[tuple[str, str]], patterns: Mapping[str, Sequence[str]]
) -> Sum:
    """Compare the log (id, type) with what the handlers noted and the dead letters (subscription, id)."""
    events = dict(log)
    delivered = buried = 0
    for event_id, event_type in events.items():
        wanted = {(name, event_id) for name, some in patterns.items() if any(matches(one, event_type) for one in some)}
        missing = wanted - handled.keys()
        delivered += not missing
        buried += bool(missing) and missing <= dead
    unknown = sum(1 for _, event_id in handled if event_id not in events)
    return Sum(len(events), delivered, buried, handled.total() - len(handled), unknown)

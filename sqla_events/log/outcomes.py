"""What became of deliveries, collected until the next commit writes it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..provider import Failure
from .troubles import FAILED, REDRIVEN, RETRYING, Past, Trouble

Key = tuple[int, str]
"""Seq and subscription."""


class Outcomes:
    """Troubles to write; knows which events have rows that must go when they are acknowledged.

    :param known: what the database says about events that will be delivered again: seq -> subscription -> (status, attempts).
    """

    def __init__(self, known: Mapping[int, Past]) -> None:
        self._pending: dict[Key, Trouble] = {}
        self._retrying: dict[int, set[str]] = {}
        self._buried: set[Key] = set()
        self.redriven: set[Key] = set()
        """Dead letters that are in hand again."""
        self._leaving: set[Key] = set()
        """Those that are through, and whose rows still say otherwise."""
        for seq, subscriptions in known.items():
            self._retrying[seq] = {name for name, (status, _, _) in subscriptions.items() if status == RETRYING}

    def __bool__(self) -> bool:
        return bool(self._pending)

    def failed(self, seq: int, failure: Failure, again_at: float | None, redriven: bool = False) -> None:
        """A handler failed: it will be tried again at that time (Unix seconds), or never (None)."""
        key = (seq, failure.subscription)
        if again_at is None:
            status = FAILED
            self._retrying.get(seq, set()).discard(failure.subscription)
            if redriven:
                self._buried.add(key)
        elif redriven:
            status = REDRIVEN
        else:
            status = RETRYING
            self._retrying.setdefault(seq, set()).add(failure.subscription)
        self._pending[key] = Trouble(
            seq, failure.subscription, status, failure.attempts, again_at, failure.error, failure.traceback
        )

    def acknowledged(self, seq: int) -> None:
        """Every subscription is through with the event."""
        for subscription in self._retrying.pop(seq, ()):
            self._pending[seq, subscription] = Trouble(seq, subscription, None)

    def redelivered(self, seq: int, subscription: str) -> None:
        """A dead letter was delivered again and acknowledged: it is none any more, unless it was buried again."""
        key = (seq, subscription)
        self.redriven.discard(key)
        self._leaving.add(key)
        if key in self._buried:
            self._buried.remove(key)
        else:
            self._pending[key] = Trouble(seq, subscription, None)

    def not_again(self) -> frozenset[Key]:
        """Redriven dead letters that a read must not hand out, whatever their rows say."""
        return frozenset(self.redriven | self._leaving)

    def written(self, troubles: Iterable[Trouble]) -> None:
        """These are in the database now."""
        if self._leaving:
            self._leaving -= {(one.seq, one.subscription) for one in troubles if one.status != REDRIVEN}

    def take(self) -> list[Trouble]:
        """What is to be written now."""
        taken, self._pending = list(self._pending.values()), {}
        return taken

    def give_back(self, troubles: Iterable[Trouble]) -> None:
        """It was not written; what was said since wins."""
        self._pending = {(one.seq, one.subscription): one for one in troubles} | self._pending

"""What became of deliveries, collected until it is written: a flush is one call, and repeating it changes nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from ...provider import Failure
from .delivery import NEVER, NO_ATTEMPTS, NOBODY, RedisDelivery


class Trouble(msgspec.Struct):
    """Failed attempts of one subscription with one entry. Times are Unix seconds."""

    attempts: int
    error: str
    first_failed_at: float
    last_failed_at: float
    next_attempt_at: float | None
    """None: it gave up."""


Troubles = dict[str, Trouble]
"""By subscription."""

_decoder = msgspec.json.Decoder(Troubles)


def known(stored: list[bytes]) -> dict[bytes, Troubles]:
    """From a hash of entry ids to JSON, fields and values in turn."""
    return {entry: _decoder.decode(text) for entry, text in zip(stored[::2], stored[1::2], strict=True)}


class Outcomes:
    """Of one consumer with one partition."""

    def __init__(self, group: str, troubles: dict[bytes, Troubles]) -> None:
        self._group = group
        self._troubles = troubles
        self._acked: list[bytes] = []
        self._changed: set[bytes] = set()
        self._forgotten: list[bytes] = []
        self._letters: list[list[str | bytes | float]] = []

    def past(self, entry: bytes) -> tuple[dict[str, int], frozenset[str], Mapping[str, float]]:
        """Attempts by subscription, the subscriptions that gave up, and when the next attempts are due."""
        troubles = self._troubles.get(entry)
        if troubles is None:
            return NO_ATTEMPTS, NOBODY, NEVER
        due = {name: one.next_attempt_at for name, one in troubles.items() if one.next_attempt_at is not None}
        tried = {name: troubles[name].attempts for name in due}
        return tried, frozenset(troubles.keys() - due.keys()), due

    def acknowledged(self, entry: bytes) -> None:
        """Done."""
        self._acked.append(entry)
        if self._troubles and self._troubles.pop(entry, None) is not None:
            self._changed.discard(entry)
            self._forgotten.append(entry)

    def failed(self, delivery: RedisDelivery, failure: Failure, delay: float | None) -> None:
        """It will be tried again after so many seconds, or never (None)."""
        moment = time.time()
        troubles = self._troubles.setdefault(delivery.entry, {})
        before = troubles.get(failure.subscription)
        trouble = troubles[failure.subscription] = Trouble(
            failure.attempts,
            failure.error,
            before.first_failed_at if before else moment,
            moment,
            None if delay is None else moment + delay,
        )
        self._changed.add(delivery.entry)
        if delay is None:
            self._letters.append(_letter(self._group, delivery, failure, trouble))

    def take(self) -> list[Any] | None:
        """Everything collected since, as the script wants it; None: nothing."""
        if not (self._acked or self._changed or self._letters):
            return None
        attempts = [part for entry in self._changed for part in (entry, msgspec.json.encode(self._troubles[entry]))]
        lists: list[list[Any]] = [self._acked, self._forgotten, attempts, *self._letters]
        self._acked, self._changed, self._forgotten, self._letters = [], set(), [], []
        return [part for one in lists for part in (len(one), *one)]


def _letter(group: str, delivery: RedisDelivery, failure: Failure, trouble: Trouble) -> list[str | bytes | float]:
    fields: dict[str, str | bytes | float] = {
        "group": group,
        "subscription": failure.subscription,
        "type": delivery.type,
        "lane": delivery.lane,
        "headers": delivery.headers,
        "body": delivery.body,
        "error": failure.error,
        "traceback": failure.traceback,
        "attempts": failure.attempts,
        "first_failed_at": trouble.first_failed_at,
        "last_failed_at": trouble.last_failed_at,
    }
    return [part for pair in fields.items() for part in pair]

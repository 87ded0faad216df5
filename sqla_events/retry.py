"""How long to wait before trying again, driven by tenacity."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import tenacity

from .errors import Reject, RetryLater
from .settings import DURATION, FLOAT, INT, Section, setting


@dataclass(frozen=True)
class RetryPolicy(Section):
    """Exponential back-off: attempt n + 1 follows ``initial_delay * backoff_factor ** (n - 1)`` seconds after attempt n.

    :raises ConfigError: for a value out of range.
    """

    path: ClassVar[str] = "retry_policy"
    max_retries: int = setting(INT, 3, "Attempts after the first; 0: none.", least=0)
    initial_delay: float = setting(DURATION, 1.0, "Seconds before the first retry.", least=0)
    max_delay: float = setting(DURATION, 30.0, "Seconds; no delay grows beyond this (before jitter).", least=0)
    backoff_factor: float = setting(
        FLOAT, 2.0, "What each further delay is multiplied by; 1: always the same delay.", least=1
    )
    jitter: float = setting(
        FLOAT,
        0.1,
        "Up to this share of the delay is added at random, so that many failures do not come back at once; 0: none.",
        least=0,
    )

    def delay(self, failures: int) -> float:
        """Seconds to wait after this many failures (at least 1), jitter included."""
        exponent = min(failures - 1, 64)  # beyond that every float is past any max_delay
        delay = min(self.initial_delay * self.backoff_factor**exponent, self.max_delay)
        return delay * (1 + random.uniform(0, self.jitter))  # noqa: S311 - spreads load, keeps no secret


FOREVER = RetryPolicy(max_retries=2**31, initial_delay=0.05, max_delay=5.0, jitter=0.5)
"""For a transport that is down: soon at first, then every few seconds until it answers."""


class Attempts:
    """One event's attempts with one handler: what tenacity asks before it stops, waits or goes on.

    ``failed`` counts the failures so far, also those before a restart. RetryLater waits as long as it says and counts
    as no failure; Reject, and what is not in ``retry_on``, ends it.
    """

    def __init__(
        self, policy: RetryPolicy, failed: int = 0, retry_on: tuple[type[BaseException], ...] = (Exception,)
    ) -> None:
        self.policy = policy
        self.failed = failed
        self.retry_on = retry_on

    def note(self, error: BaseException) -> None:
        """Count a failure that is one."""
        if not isinstance(error, RetryLater):
            self.failed += 1

    def again(self, error: BaseException) -> bool:
        """Whether another attempt follows this error, which has been noted."""
        if isinstance(error, RetryLater):
            return True
        return (
            not isinstance(error, Reject)
            and isinstance(error, self.retry_on)
            and self.failed <= self.policy.max_retries
        )

    def wait(self, error: BaseException) -> float:
        """Seconds until that attempt."""
        return error.delay if isinstance(error, RetryLater) else self.policy.delay(max(self.failed, 1))

    def retrying(
        self, sleep: Callable[[float], Awaitable[None]], before_sleep: Callable[[float, BaseException], None]
    ) -> tenacity.AsyncRetrying:
        """A tenacity controller that repeats a call by these rules and raises the last error unchanged."""

        def remember(state: tenacity.RetryCallState) -> None:
            before_sleep(state.upcoming_sleep, _error(state))

        return tenacity.AsyncRetrying(
            retry=lambda state: state.outcome is not None and state.outcome.failed and self.again(_error(state)),
            wait=lambda state: self.wait(_error(state)),
            before_sleep=remember,
            sleep=sleep,
            reraise=True,
        )


def _error(state: tenacity.RetryCallState) -> BaseException:
    assert state.outcome is not None
    error = state.outcome.exception()
    assert error is not None
    return error


async def until_available(
    call: Callable[[], Awaitable[Any]],
    transient: type[BaseException] | tuple[type[BaseException], ...],
    sleep: Callable[[float], Awaitable[None]],
    on_failure: Callable[[float, BaseException], None],
) -> Any:
    """Call until it does not raise ``transient``, backing off between; anything else it raises comes through at once."""
    attempts = Attempts(FOREVER, retry_on=transient if isinstance(transient, tuple) else (transient,))

    async def noted() -> Any:
        try:
            result = await call()
        except BaseException as error:
            attempts.note(error)
            raise
        attempts.failed = 0
        return result

    return await attempts.retrying(sleep, on_failure)(noted)

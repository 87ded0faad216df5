"""Back-off: how long, how often, and what ends it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqla_events.errors import ConfigError, ProviderUnavailable, Reject, RetryLater
from sqla_events.retry import Attempts, RetryPolicy, until_available


def test_delays_grow_exponentially_up_to_the_maximum() -> None:
    """1, 2, 4, 8 … and never more than max_delay."""
    policy = RetryPolicy(initial_delay=1, max_delay=30, backoff_factor=2, jitter=0)
    assert [policy.delay(failures) for failures in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]


@given(st.integers(1, 10**6), st.floats(0, 10), st.floats(0, 100), st.floats(1, 10), st.floats(0, 2))
def test_a_delay_stays_within_its_bounds(
    failures: int, first: float, most: float, factor: float, jitter: float
) -> None:
    """Whatever the policy and however many failures: between 0 and max_delay plus jitter, and no overflow."""
    delay = RetryPolicy(initial_delay=first, max_delay=most, backoff_factor=factor, jitter=jitter).delay(failures)
    assert 0 <= delay <= most * (1 + jitter) + 1e-9


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_retries", -1),
        ("max_retries", 1.5),
        ("max_retries", True),
        ("initial_delay", -0.1),
        ("backoff_factor", 0.5),
        ("jitter", "x"),
        ("max_delay", float("nan")),
    ],
)
def test_a_value_out_of_range_is_named(field: str, value: object) -> None:
    """The error says which setting, which value, what is allowed."""
    with pytest.raises(ConfigError, match=rf"retry_policy\.{field} is .*must be"):
        RetryPolicy(**{field: value})


def test_max_retries_counts_the_attempts_after_the_first() -> None:
    """max_retries=2: a third failure is the last; RetryLater counts nothing; Reject ends at once."""
    attempts = Attempts(RetryPolicy(max_retries=2))
    answers = []
    for error in (ValueError(), RetryLater(1), ValueError(), ValueError()):
        attempts.note(error)
        answers.append(attempts.again(error))
    assert answers == [True, True, True, False]
    assert not Attempts(RetryPolicy()).again(Reject())


def test_retry_later_waits_as_long_as_it_says() -> None:
    """Its delay, not the policy's."""
    assert Attempts(RetryPolicy()).wait(RetryLater(12.5)) == 12.5


async def test_until_available_backs_off_and_forgets() -> None:
    """It calls again after each transient failure, with growing delays, and lets anything else through."""
    pauses: list[float] = []
    answers: list[BaseException | str] = [ProviderUnavailable("a"), ProviderUnavailable("b"), "here"]

    async def call() -> str:
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    assert await until_available(call, ProviderUnavailable, sleep, lambda delay, error: None) == "here"
    assert len(pauses) == 2
    assert 0 < pauses[0] < pauses[1]
    answers.append(KeyError())
    with pytest.raises(KeyError):
        await until_available(call, ProviderUnavailable, sleep, lambda delay, error: None)

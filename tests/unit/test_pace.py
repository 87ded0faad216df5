"""How often the log is looked at."""

from __future__ import annotations

from sqla_events.log.pace import LIVELY, SHORTEST, Pace


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def looks(pace: Pace, clock: Clock, seconds: float) -> list[float]:
    """The pauses of so many seconds in which nothing comes."""
    end, pauses = clock.now + seconds, []
    while clock.now < end:
        pauses.append(pace.pause())
        clock.now += pauses[-1]
    return pauses


def test_looks_are_frequent_after_events_and_rare_in_silence() -> None:
    """Milliseconds at first; in the long run only every ``longest`` seconds."""
    clock = Clock()
    pace = Pace(1.0, clock)
    first = looks(pace, clock, 2.0)
    assert first[0] == SHORTEST
    assert max(first) == LIVELY
    later = looks(pace, clock, 60.0)
    assert later == sorted(later)
    assert later[-1] == 1.0
    assert len(later) < 75
    pace.found()
    assert pace.pause() == SHORTEST


def test_a_bell_that_rang_too_early_is_followed_by_quick_looks() -> None:
    """And is forgotten when nothing comes of it."""
    clock = Clock()
    pace = Pace(10.0, clock)
    looks(pace, clock, 100.0)
    pace.rung()
    quick = looks(pace, clock, 0.1)
    assert quick[0] < 0.001
    assert len(quick) > 8
    assert pace.pause() > 1.0


def test_never_longer_than_asked() -> None:
    """Also where that is shorter than the usual shortest."""
    assert Pace(0.001, Clock()).pause() == 0.001

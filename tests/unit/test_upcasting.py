"""Old versions become the newest step by step, and what cannot is said clearly."""

from __future__ import annotations

import pytest

from sqla_events.errors import ConfigError, EventError
from sqla_events.event import Event
from sqla_events.upcasting import Upcasters


def old(version: int = 1, event_type: str = "public.users.create") -> Event:
    return Event(type=event_type, payload={"steps": []}, schema_version=version)


def step(number: int) -> object:
    def upcast(event: Event) -> Event:
        return event.replace(payload={"steps": [*event.payload["steps"], number]})

    return upcast


@pytest.fixture
def upcasters() -> Upcasters:
    made = Upcasters()
    for version in (3, 2, 4):
        made.add("public.users.*", version, step(version))  # type: ignore[arg-type]
    return made


def test_every_step_is_taken_in_order(upcasters: Upcasters) -> None:
    """From whichever version the event has; identity and order of the event stay."""
    for version in (1, 2, 3, 4):
        event = old(version)
        made = upcasters(event)
        assert made.payload["steps"] == list(range(version + 1, 5))
        assert (made.schema_version, made.id, made.type) == (4, event.id, event.type)


def test_other_types_stay_as_they_are(upcasters: Upcasters) -> None:
    """Whatever version they have."""
    event = old(7, "public.orders.create")
    assert upcasters(event) is event
    assert Upcasters()(old(3)).schema_version == 3


def test_the_upcaster_registered_last_is_used(upcasters: Upcasters) -> None:
    """Where patterns overlap; also after events of that type have been seen."""
    upcasters(old())
    upcasters.add("public.users.create", 4, step(44))  # type: ignore[arg-type]
    assert upcasters(old(3)).payload["steps"] == [44]


def test_what_cannot_be_upcast_is_said(upcasters: Upcasters) -> None:
    """A step that is missing, fails, or gives no event; an event from the future."""
    with pytest.raises(EventError, match="newer than this process"):
        upcasters(old(5))
    some = Upcasters()
    some.add("*", 3, lambda event: event.payload["nothing"])
    with pytest.raises(EventError, match=r"no upcaster to version 2; register one: @broker.upcaster\('public.users.create', to=2\)"):
        some(old())
    with pytest.raises(EventError, match="cannot be made version 3: KeyError"):
        some(old(2))
    some.add("public.*.*", 3, lambda event: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(EventError, match="gave None; it must give an Event"):
        some(old(2))


@pytest.mark.parametrize(
    ("pattern", "to", "error", "told"),
    [
        ("public.users.*", 2, ConfigError, "to version 2 already"),
        ("public.users.*", 1, ConfigError, "from 2 on"),
        ("public.users.*", True, ConfigError, "from 2 on"),
        ("public users", 2, EventError, "pattern is 'public users'"),
    ],
)
def test_wrong_registrations_are_refused(
    upcasters: Upcasters, pattern: str, to: int, error: type[Exception], told: str
) -> None:
    """At once, not with the first event."""
    with pytest.raises(error, match=told):
        upcasters.add(pattern, to, step(to))  # type: ignore[arg-type]

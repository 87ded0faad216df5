"""Which subscriptions want an event, and what subscribing accepts."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from sqlalchemy import Column, ForeignKey, Integer, MetaData, Table
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqla_events.errors import ConfigError, EventError
from sqla_events.event import Event
from sqla_events.retry import RetryPolicy
from sqla_events.subscription import Subscription, Subscriptions, is_coroutine_function, name_of, patterns_of


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)


class Manager(Person):
    __tablename__ = "managers"
    id: Mapped[int] = mapped_column(ForeignKey("people.id"), primary_key=True)


def handler(event: Event) -> None: ...


async def coroutine(event: Event) -> None: ...


def one(name: str, *patterns: str, to: Any = handler) -> Subscription:
    return Subscription(name, patterns, to, "g", RetryPolicy())


def test_patterns_of_classes_and_tables() -> None:
    """A mapped class stands for its tables, joined inheritance for all of them; names are quoted as in types."""
    odd = Table("odd.name", MetaData(), Column("id", Integer), schema="app")
    assert patterns_of([Person], "public") == ("public.people.*",)
    assert patterns_of([Person, "update", "delete"], "main") == ("main.people.update", "main.people.delete")
    assert set(patterns_of([Manager], "public")) == {"public.people.*", "public.managers.*"}
    assert patterns_of([odd], "public") == ("app.odd%2Ename.*",)


@pytest.mark.parametrize("targets", [[], ["public..x"], [42], [Base], [Person, "up date"]])
def test_what_is_no_pattern_is_an_error(targets: list[Any]) -> None:
    """Nothing, a broken pattern, something that is not mapped."""
    with pytest.raises(EventError):
        patterns_of(targets, "public")


def test_each_subscription_once_and_in_order() -> None:
    """Two matching patterns of one subscription are one match."""
    subscriptions = Subscriptions()
    first, second = one("a", "*.*.create", "public.*.*"), one("b", "*")
    subscriptions.add(first)
    subscriptions.add(second)
    assert subscriptions.matching("public.users.create") == (first, second)
    assert subscriptions.matching("x.y.delete") == (second,)
    subscriptions.remove("b")
    assert subscriptions.matching("x.y.delete") == ()
    assert subscriptions.patterns == ("*.*.create", "public.*.*")


def test_a_name_is_taken_once() -> None:
    """Retries and dead letters are kept under the name."""
    subscriptions = Subscriptions()
    subscriptions.add(one("a", "*"))
    with pytest.raises(ConfigError, match="already has a subscription named 'a'"):
        subscriptions.add(one("a", "*"))
    assert subscriptions.free_name("a") == "a#2"
    assert subscriptions.free_name("b") == "b"


def test_names_and_kinds_of_handlers() -> None:
    """Functions, coroutine functions, partials and objects with __call__."""

    class Callable_:
        async def __call__(self, event: Event) -> None: ...

    assert name_of(partial(handler)) == f"{__name__}.handler"
    assert name_of(Callable_()).endswith("Callable_")
    assert [is_coroutine_function(h) for h in (handler, coroutine, partial(coroutine), Callable_())] == [
        False,
        True,
        True,
        True,
    ]


def test_what_is_not_callable_is_an_error() -> None:
    """At subscribing, not at the first event."""
    with pytest.raises(ConfigError, match="must be callable"):
        one("a", "*", to="nope")

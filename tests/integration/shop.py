"""A small application: what the integration tests hook into."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from sqla_events import Event


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    orders: Mapped[list[Order]] = relationship(cascade="all, delete-orphan", back_populates="user")


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    total: Mapped[int] = mapped_column(default=0)
    user: Mapped[User] = relationship(back_populates="orders")


class Inbox:
    """A handler that keeps what it gets and can be waited for."""

    def __init__(self, fail: Callable[[Event], BaseException | None] = lambda event: None) -> None:
        self.events: list[Event] = []
        self.attempts = 0
        self._fail = fail
        self._changed = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._changed:
            self.attempts += 1
            error = self._fail(event)
            if error is None:
                self.events.append(event)
            self._changed.notify_all()
        if error is not None:
            raise error

    @property
    def types(self) -> list[str]:
        return [event.type for event in self.events]

    def wait(self, count: int, seconds: float = 20) -> list[Event]:
        """Until so many events are here."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.events) >= count, seconds), self.types
            return list(self.events)


def eventually(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """What the condition gives once it is true."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (answer := condition()):
        assert time.monotonic() < deadline, "condition did not come true"
        pause.wait(0.01)
    return answer

"""Who is doing what: user, session and metadata that every event of a stretch of code carries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class About:
    """What an event says about its making."""

    user_id: int | str | None = None
    session_id: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


_NOTHING = About()
_current: ContextVar[About] = ContextVar("sqla_events_context", default=_NOTHING)


current: Callable[[], About] = _current.get
"""What applies here; empty outside every ``event_context``."""


@contextmanager
def event_context(
    *, user_id: int | str | None = None, session_id: str | None = None, **metadata: Any
) -> Iterator[None]:
    """Give every event that is captured or published inside these facts.

    Contexts nest: an inner one keeps what it does not say itself, and metadata is merged. Works for threads and tasks
    alike (a context variable: a task inherits the context it was created in, a thread starts with none).

    ::

        with event_context(user_id=user.id, request_id="…"):
            session.commit()
    """
    outer = _current.get()
    about = About(
        outer.user_id if user_id is None else user_id,
        outer.session_id if session_id is None else str(session_id),  # a kind of text of its own is no JSON
        {**outer.metadata, **metadata},
    )
    token = _current.set(about)
    try:
        yield
    finally:
        _current.reset(token)

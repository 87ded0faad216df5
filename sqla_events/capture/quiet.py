"""Connections get an engine's events when they are about to write, and not before.

SQLAlchemy joins the listeners of an engine to each of its Connections anew, name by name: in a transaction of a SELECT and
an UPDATE some 70 calls of Python, a quarter of the steps that capture costs, and one that only reads pays for them too. So the
engine is left as one that nobody listens to, and each Connection is told to dispatch its events before it executes
anything but a SELECT: by the execution context, in which SQLAlchemy lets dialects prepare their statements. It is told by
``_has_events``, as SQLAlchemy tells it where somebody listens to one Connection alone. What does not pass there says so
itself: see :func:`buffer.wake`.

An engine that has listeners of the application's, whenever they come, stays as it is: all of its Connections dispatch
everything. So does each engine on a version of SQLAlchemy of which the tests have not shown that it works so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Dialect, Engine

from .buffer import ATTRIBUTE

TESTED = ("2.0.", "2.1.")
"""Versions of SQLAlchemy: see tests/capture/test_quiet.py."""


def possible() -> bool:
    """Whether this SQLAlchemy is one of them. If not, ``after_execute`` tells of results."""
    return sa.__version__.startswith(TESTED)


@contextmanager
def quietly(engine: Engine) -> Iterator[None]:
    """What comes to listen to the engine in this block is told by Connections that are awake."""
    watch(engine.dialect)  # before the engine forgets: other threads are writing
    with unheard(engine):
        yield


@contextmanager
def unheard(engine: Engine) -> Iterator[None]:
    """Listeners of the engine's that come in this block leave no mark on it: that of its class, where somebody listens to all
    engines, would be hidden by it. Nor do those that another thread adds meanwhile.
    """
    heard = "_has_events" in engine.__dict__
    yield
    if not heard and possible():
        engine.__dict__.pop("_has_events", None)


def watch(dialect: Dialect) -> None:
    """Have the statements of a dialect wake their Connections, if they do not yet."""
    contexts: Any = dialect.execution_ctx_cls
    if not issubclass(contexts, _Waking) and possible():
        dialect.execution_ctx_cls = _waking(contexts)


def unwatch(dialect: Dialect) -> None:
    """No more; but what somebody else has made of our class stays."""
    plain = dialect.execution_ctx_cls.__dict__.get("sqla_events_plain")
    if plain is not None:
        dialect.execution_ctx_cls = plain


class _Waking:
    """What one execution does beside its dialect's own."""

    compiled: Any
    is_text: bool
    statement: str
    root_connection: Connection

    def pre_exec(self) -> None:
        # What stands behind a SELECT and a semicolon may write.
        if self.compiled is None or self.is_text or not self.statement.startswith("SELECT") or ";" in self.statement:
            self.root_connection._has_events = True
        super().pre_exec()  # type: ignore[misc]

    def _setup_result_proxy(self) -> Any:
        """After the statement. Not in ``after_execute``: whether that is dispatched was decided before."""
        result = super()._setup_result_proxy()  # type: ignore[misc]
        buffer = self.root_connection.__dict__.get(ATTRIBUTE)
        if buffer is not None and buffer.plans:
            buffer.executed(self.root_connection, buffer, self)
        return result


@cache
def _waking(plain: type) -> Any:
    return type(plain.__name__, (_Waking, plain), {"sqla_events_plain": plain})

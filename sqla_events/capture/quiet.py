"""Connections get an engine's events when they are about to write, and not before.

SQLAlchemy joins the listeners of an engine to each of its Connections anew, name by name: in a transaction of a SELECT and
an UPDATE some 70 calls of Python, a quarter of all that capture costs, and one that only reads pays for them too. So the
engine is left as one that nobody listens to, and each Connection is told to dispatch its events before it executes
anything but a SELECT: by the execution context, in which SQLAlchemy lets dialects prepare their statements. It is told by
``_has_events``, as SQLAlchemy tells it where somebody listens to one Connection alone. What does not pass there says so
itself: see :func:`wake`.

An engine that has listeners of the application's, whenever they come, stays as it is: all of its Connections dispatch
everything. So does each engine on a version of SQLAlchemy of which the tests have not shown that it works so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from .buffer import Buffer, held

TESTED = ("2.0.", "2.1.")
"""Versions of SQLAlchemy: see tests/capture/test_quiet.py."""

Executed = Callable[[Connection, Buffer, Any], None]


def possible() -> bool:
    """Whether this SQLAlchemy is one of them. If not, ``after_execute`` tells of results."""
    return sa.__version__.startswith(TESTED)


class Quiet:
    """One engine whose Connections dispatch events only when they write."""

    def __init__(self, engine: Engine, executed: Executed) -> None:
        """:param executed: called with an execution context after the statement, where a Connection has a buffer."""
        self._engine = engine
        self._executed = executed
        self._contexts: Any = None
        self._plain: Any = None

    def listen(self, hook: Callable[[], None]) -> None:
        """Hook in, by a function that adds the engine's listeners."""
        if not possible():
            hook()
            return
        dialect = self._engine.dialect
        self._plain = dialect.execution_ctx_cls
        bases = (self._plain,) if issubclass(self._plain, _Waking) else (_Waking, self._plain)  # somebody's own, made of ours
        self._contexts = type(self._plain.__name__, bases, {"sqla_events_executed": staticmethod(self._executed)})
        dialect.execution_ctx_cls = self._contexts  # before the engine forgets: other threads are writing
        with unheard(self._engine):
            hook()

    def unlisten(self) -> None:
        """Unhook."""
        if self._contexts is not None and self._engine.dialect.execution_ctx_cls is self._contexts:
            self._engine.dialect.execution_ctx_cls = self._plain
        self._contexts = None


@contextmanager
def unheard(engine: Engine) -> Iterator[None]:
    """Listeners of the engine's that come in this block are for Connections that are awake.

    They leave no mark on the engine: that of its class, where somebody listens to all engines, would be hidden by it.
    """
    heard = "_has_events" in engine.__dict__
    yield
    if not heard:
        engine.__dict__.pop("_has_events", None)


def wake(connection: Connection) -> None:
    """Let a Connection dispatch its engine's events from now on."""
    connection._has_events = True


class _Waking:
    """What one execution does beside its dialect's own."""

    sqla_events_executed: Executed
    compiled: Any
    is_text: bool
    statement: str
    root_connection: Connection

    def pre_exec(self) -> None:
        if self.compiled is None or self.is_text or not self.statement.startswith("SELECT"):
            self.root_connection._has_events = True
        super().pre_exec()  # type: ignore[misc]

    def _setup_result_proxy(self) -> Any:
        """After the statement. Not in ``after_execute``: whether that is dispatched was decided before."""
        result = super()._setup_result_proxy()  # type: ignore[misc]
        buffer = held(self.root_connection)
        if buffer is not None and buffer.plans:
            self.sqla_events_executed(self.root_connection, buffer, self)
        return result

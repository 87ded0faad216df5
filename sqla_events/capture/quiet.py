"""Connections get an engine's events when they are about to write, and not before.

SQLAlchemy joins the listeners of an engine to each of its Connections anew, name by name: in a transaction of a SELECT and
an UPDATE some 70 calls of Python, and one that only reads pays for them too. So the engine is left as one that nobody listens
to, and each Connection is told to dispatch its events before it executes anything but a SELECT: by the execution context,
in which SQLAlchemy lets dialects prepare their statements. It is told by ``_has_events``, as SQLAlchemy tells it where somebody
listens to one Connection alone. What does not pass there says so itself: see :func:`buffer.wake`.

What is executed once (no ``executemany``) passes without events even then: its context calls the one listener that there is,
before and after it, SAVEPOINT and what ends it included; of COMMIT and ROLLBACK the dialect tells (``commits``). An UPDATE of
one row through psycopg costs 2,000 steps of Python's interpreter in 50 calls; it was 2,400 in 90 with events from the write on.

An engine that has listeners of the application's, whenever they come, stays as it is: all of its Connections dispatch
everything. So does each engine on a version of SQLAlchemy of which the tests have not shown that it works so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Dialect, Engine
from sqlalchemy.engine.base import OptionEngine, RootTransaction
from sqlalchemy.engine.default import DefaultExecutionContext
from sqlalchemy.engine.interfaces import ExecuteStyle

from . import commits
from .buffer import ATTRIBUTE, wake
from .commits import CONTEXTS, MISSED, put, take_off

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
    if possible():
        put(dialect, "do_begin", _do_begin)
        dialect.__dict__[CONTEXTS] = _Waking
        if not issubclass(contexts, _Waking):
            dialect.execution_ctx_cls = _waking(contexts)


def unwatch(dialect: Dialect) -> None:
    """No more; but what somebody else has made of our class stays."""
    take_off(dialect, "do_begin", _do_begin)
    dialect.__dict__.pop(CONTEXTS, None)
    plain = dialect.execution_ctx_cls.__dict__.get("sqla_events_plain")
    if plain is not None:
        dialect.execution_ctx_cls = plain


def _do_begin(dialect: Dialect, plain: Callable[[Any], None] | None, proxied: Any) -> None:
    """A transaction begins: somebody may have put things of his own in the place of ours. A statement may have begun it, which
    then is none that we have seen.
    """
    if not issubclass(dialect.execution_ctx_cls, _Waking):
        watch(dialect)
        getattr(proxied, "__dict__", {})[MISSED] = True
    if getattr(dialect.do_commit, "func", None) is not commits.do_commit:
        commits.watch(dialect)
    if plain is None:
        type(dialect).do_begin(dialect, proxied)
    else:
        plain(proxied)


LISTENERS = "_sqla_events_listeners"
SOLE = "_sqla_events_listener"
"""Of an engine: the only one of its listeners."""

EXECUTE = ExecuteStyle.EXECUTE


class Listens(Protocol):
    """What is to be told of statements without an event: as ``before_cursor_execute`` and ``after_cursor_execute`` tell it."""

    def before(
        self, connection: Connection, dbapi_cursor: Any, sql: str, parameters: Any, context: Any, executemany: bool
    ) -> tuple[str, Any]:
        """It runs what is returned."""

    def after(
        self, connection: Connection, dbapi_cursor: Any, sql: str, parameters: Any, context: Any, executemany: bool
    ) -> None:
        """It has run."""


def attach(engine: Engine, listener: Listens) -> None:
    """Let an engine's contexts call a listener, where there is but one. Not those of an engine that ``execution_options()`` has
    made: what listens to the one that it was made of is to be told of its statements too.
    """
    if possible() and not isinstance(engine, OptionEngine):
        _set(engine, (*engine.__dict__.get(LISTENERS, ()), listener))


def detach(engine: Engine, listener: Listens) -> None:
    """No more."""
    _set(engine, tuple(one for one in engine.__dict__.get(LISTENERS, ()) if one is not listener))


def _set(engine: Engine, listeners: tuple[Listens, ...]) -> None:
    engine.__dict__[LISTENERS] = listeners
    engine.__dict__[SOLE] = listeners[0] if len(listeners) == 1 else None


def told(context: Any) -> bool:
    """Whether a context calls its listener itself: an event comes on top where somebody has begun to listen meanwhile."""
    return getattr(context, "sqla_events_caller", None) is not None


def failed(context: Any) -> None:
    """A statement has failed: its context shows what the caller has written."""
    if told(context):
        context.statement, context.parameters = context.sqla_events_caller[1:]


SENT = "_sqla_events_sent"
"""Of a context whose listeners are told by events: the statement that it sends, and what the caller has written."""


def sent(context: Any) -> tuple[str, str]:
    """What a context sends, and what the caller has written."""
    if told(context):
        return context.statement, context.sqla_events_caller[1]
    pair: tuple[str, str] = context.__dict__.get(SENT, ("", ""))
    return pair


class _Waking:
    """What one execution does beside its dialect's own."""

    compiled: Any
    cursor: Any
    execute_style: ExecuteStyle
    is_text: bool
    statement: str
    parameters: Any
    root_connection: Connection

    sqla_events_caller: tuple[Listens, str, Any] | None = None
    """Who is told of the statement, and what the caller has written, with its parameters."""

    sqla_events_prepares = True
    """Whether the dialect does something of its own before a statement."""

    def pre_exec(self) -> None:
        if self.sqla_events_prepares:
            super().pre_exec()  # type: ignore[misc]
        statement = self.statement
        if statement.startswith("SELECT") and self.compiled is not None and not self.is_text and ";" not in statement:
            return  # what stands behind a semicolon may write
        connection = self.root_connection
        engine, transaction = connection.engine, connection._transaction
        if transaction is None:
            return  # by this Connection SQLAlchemy makes a database's acquaintance: it tells nobody
        listener = engine.__dict__.get(SOLE)
        if (
            listener is None
            or connection._has_events
            or engine._has_events
            or self.execute_style is not EXECUTE
            or type(transaction) is not RootTransaction
        ):
            wake(connection)  # somebody else listens, or there are several executions, or two phases
            return
        parameters = self.parameters
        self.sqla_events_caller = listener, statement, parameters
        try:
            self.statement, sent = listener.before(connection, self.cursor, statement, parameters[0], self, False)
        except BaseException as error:
            connection._handle_dbapi_exception(error, statement, parameters[0], self.cursor, self)  # type: ignore[arg-type]
        self.parameters = [sent]

    def _setup_result_proxy(self) -> Any:
        """After the statement. Not in ``after_execute``: whether that is dispatched was decided before."""
        connection, caller = self.root_connection, self.sqla_events_caller
        if caller is not None:
            sql, parameters = self.statement, self.parameters[0]
            listener, self.statement, self.parameters = caller
            listener.after(connection, self.cursor, sql, parameters, self, False)
        elif not connection._has_events:
            return super()._setup_result_proxy()  # type: ignore[misc]
        result = super()._setup_result_proxy()  # type: ignore[misc]
        buffer = connection.__dict__.get(ATTRIBUTE)
        if buffer is not None and buffer.plans:
            buffer.executed(connection, buffer, self)
        return result


@cache
def _waking(plain: type) -> Any:
    prepares = plain.pre_exec is not DefaultExecutionContext.pre_exec  # type: ignore[attr-defined]
    return type(plain.__name__, (_Waking, plain), {"sqla_events_plain": plain, "sqla_events_prepares": prepares})

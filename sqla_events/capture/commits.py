"""Who is told of a COMMIT where no event tells of it, and who that it went well, which no event of SQLAlchemy's tells at all.

Both by the dialect: it is what commits. What waits is kept by the proxy of the driver's connection, so that it ends with it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import ref

from sqlalchemy.engine import Connection, Dialect

BEFORE = "_sqla_events_before_commit"
AFTER = "_sqla_events_after_commit"


Committed = Callable[[bool], object]
"""Called with True when a COMMIT has gone well."""

Commit = Callable[[Connection], Committed | None]
"""Called before a COMMIT."""


def before(connection: Connection, commit: Commit) -> None:
    """Call ``commit`` before the transaction commits, whether an event tells of it as well or not."""
    connection._dbapi_connection.__dict__[BEFORE] = commit, ref(connection)


def after(connection: Connection, committed: Committed) -> None:
    """Tell of the COMMIT that comes now, where an event told of it before the dialect did."""
    connection._dbapi_connection.__dict__[AFTER] = committed


def watch(dialect: Dialect) -> None:
    """Have a dialect tell, if it does not yet."""
    for name, function in _FUNCTIONS.items():
        put(dialect, name, function)


def unwatch(dialect: Dialect) -> None:
    """No more."""
    for name, function in _FUNCTIONS.items():
        take_off(dialect, name, function)


def put(dialect: Dialect, name: str, function: Callable[..., None]) -> None:
    """Have a function called in place of a dialect's: its first arguments are that one, and the dialect."""
    present = getattr(dialect, name)
    if getattr(present, "func", None) is not function:
        setattr(dialect, name, partial(function, present, dialect))


def take_off(dialect: Dialect, name: str, function: Callable[..., None]) -> None:
    """No more; but what somebody else has put on top stays."""
    present = dialect.__dict__.get(name)
    if isinstance(present, partial) and present.func is function:
        del dialect.__dict__[name]
        if getattr(dialect, name) != present.args[0]:  # somebody had put one of his own there before us
            setattr(dialect, name, present.args[0])


def _do_commit(plain: Callable[[Any], None], _: Dialect, proxied: Any) -> None:
    waiting, committed = getattr(proxied, "__dict__", _NOTHING), None
    if BEFORE in waiting:
        commit, reference = waiting.pop(BEFORE)
        if (connection := reference()) is not None:
            committed = commit(connection)
    if AFTER in waiting:
        committed = waiting.pop(AFTER)
    plain(proxied)
    if committed is not None:
        committed(True)


def _do_commit_twophase(plain: Callable[..., None], _: Dialect, connection: Connection, *given: Any, **named: Any) -> None:
    waiting = getattr(connection._dbapi_connection, "__dict__", _NOTHING)
    committed = waiting.pop(AFTER, None)
    plain(connection, *given, **named)
    if committed is not None:
        committed(True)


_NOTHING: dict[str, Any] = {}
"""Of a connection that has no proxy of a pool's."""

_FUNCTIONS: dict[str, Callable[..., None]] = {"do_commit": _do_commit, "do_commit_twophase": _do_commit_twophase}

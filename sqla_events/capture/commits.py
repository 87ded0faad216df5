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


Commit = Callable[[Connection], object]


def before(connection: Connection, commit: Commit) -> None:
    """Call ``commit`` before the transaction commits, whether an event tells of it as well or not."""
    connection._dbapi_connection.__dict__[BEFORE] = commit, ref(connection)


def after(connection: Connection, committed: Callable[[bool], object]) -> None:
    """Call ``committed(True)`` when the COMMIT that comes now has gone well."""
    connection._dbapi_connection.__dict__[AFTER] = committed


def watch(dialect: Dialect) -> None:
    """Have a dialect tell, if it does not yet."""
    for name, function in _FUNCTIONS.items():
        present = getattr(dialect, name)
        if getattr(present, "func", None) is not function:
            setattr(dialect, name, partial(function, present))


def unwatch(dialect: Dialect) -> None:
    """No more; but what somebody else has put on top stays."""
    for name, function in _FUNCTIONS.items():
        present = dialect.__dict__.get(name)
        if isinstance(present, partial) and present.func is function:
            del dialect.__dict__[name]
            if getattr(dialect, name) != present.args[0]:  # somebody had put one of his own there before us
                setattr(dialect, name, present.args[0])


def _do_commit(plain: Callable[[Any], None], proxied: Any) -> None:
    waiting = getattr(proxied, "__dict__", _NOTHING)
    if BEFORE in waiting:
        commit, reference = waiting.pop(BEFORE)
        if (connection := reference()) is not None:
            commit(connection)
    committed = waiting.pop(AFTER, None)
    plain(proxied)
    if committed is not None:
        committed(True)


def _do_commit_twophase(plain: Callable[..., None], connection: Connection, *given: Any, **named: Any) -> None:
    waiting = getattr(connection._dbapi_connection, "__dict__", _NOTHING)
    committed = waiting.pop(AFTER, None)
    plain(connection, *given, **named)
    if committed is not None:
        committed(True)


_NOTHING: dict[str, Any] = {}
"""Of a connection that has no proxy of a pool's."""

_FUNCTIONS = {"do_commit": _do_commit, "do_commit_twophase": _do_commit_twophase}

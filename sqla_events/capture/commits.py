"""Who is told of a COMMIT or ROLLBACK where no event tells of it, and that a COMMIT went well, which no event of SQLAlchemy's tells.

By the dialect: it is what commits and rolls back, also for a pool that takes a connection back. What waits is kept by the proxy
of the driver's connection, so that it ends with it; two Connections may share one (SingletonThreadPool), and its transaction.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol
from weakref import ref

from sqlalchemy.engine import Connection, Dialect, Engine
from sqlalchemy.pool import PoolResetState
from sqlalchemy.pool.base import reset_commit, reset_none

from ..errors import CaptureError
from ..signals import logger

WRITTEN = "_sqla_events_written"
"""Of a proxy: what is to be done before its COMMIT, or after its ROLLBACK."""
AFTER = "_sqla_events_after_commit"
"""Who is to be told when it has gone well."""
MISSED = "_sqla_events_missed"
"""Its transaction may have statements that nobody has seen."""

CONTEXTS = "_sqla_events_contexts"
"""Of a dialect: the class that those of its executions have to be of."""

Committed = Callable[[bool], object]
"""Called with True when a COMMIT has gone well."""

Commit = Callable[[Connection], Committed | None]
"""Called before a COMMIT."""


class Clears(Protocol):
    """What belongs to a transaction."""

    def clear(self) -> None:
        """It is rolled back."""

    def back_to(self, savepoint: str) -> None:
        """It is rolled back to a savepoint."""

    @property
    def unwritten(self) -> bool:
        """Whether there are events that are not in the log yet."""


def before(connection: Connection, commit: Commit, buffer: Clears) -> None:
    """Call ``commit`` before the transaction commits, whether an event tells of it as well or not; or clear what it has."""
    waiting = connection._dbapi_connection.__dict__
    if WRITTEN in waiting:
        waiting[WRITTEN].append((buffer, commit, ref(connection)))
    else:
        waiting[WRITTEN] = [(buffer, commit, ref(connection))]


def after(connection: Connection, committed: Committed) -> None:
    """Tell of the COMMIT that comes now, where an event told of it before the dialect did."""
    connection._dbapi_connection.__dict__.setdefault(AFTER, []).append(committed)


def broken_off(connection: Connection, error: BaseException) -> None:
    """What we ask the driver has failed: if the task was cancelled, or the program interrupted, the driver may be amid a COPY still, and
    nobody may get its connection. SQLAlchemy does the same after its own statements.
    """
    if not isinstance(error, Exception):
        connection.invalidate(error)


def undo(connection: Connection) -> None:
    """Roll back where SQLAlchemy does not, as it takes the transaction for over."""
    if connection.invalidated:
        return
    try:
        connection.dialect.do_rollback(connection.connection)
    except BaseException as error:
        connection.invalidate(error)
        if not isinstance(error, Exception):
            raise


# The dialect's functions --------------------------------------------------------------------------------------------


def watch(dialect: Dialect) -> None:
    """Have a dialect tell, if it does not yet. For good: hooks may go while a transaction has events to write."""
    for name, function in _FUNCTIONS.items():
        put(dialect, name, function)


def put(dialect: Dialect, name: str, function: Callable[..., None]) -> None:
    """Have a function called in place of a dialect's: its first arguments are the dialect, and that one, if it has one of its own;
    None stands for its class's.
    """
    present = dialect.__dict__.get(name)
    if getattr(present, "func", None) is not function:
        setattr(dialect, name, partial(function, dialect, present))


def take_off(dialect: Dialect, name: str, function: Callable[..., None]) -> None:
    """No more; but what somebody else has put on top stays."""
    present = dialect.__dict__.get(name)
    if isinstance(present, partial) and present.func is function:
        del dialect.__dict__[name]
        if present.args[1] is not None:
            setattr(dialect, name, present.args[1])


def do_commit(dialect: Dialect, plain: Callable[[Any], None] | None, proxied: Any) -> None:
    """A COMMIT, by a Connection or by the pool.

    :raises CaptureError: if what the transaction has written cannot be told: it is rolled back.
    """
    waiting = getattr(proxied, "__dict__", _NOTHING)
    if MISSED in waiting or not issubclass(dialect.execution_ctx_cls, getattr(dialect, CONTEXTS, object)):
        _refuse(dialect, proxied)
    told: list[Committed] = []
    if WRITTEN in waiting:
        for buffer, commit, reference in waiting[WRITTEN]:
            connection = reference()
            committed = _unwritten(dialect, proxied, buffer) if connection is None else commit(connection)
            if committed is not None:
                told.append(committed)
        del waiting[WRITTEN]
    if AFTER in waiting:
        told += waiting.pop(AFTER)
    try:
        if plain is None:
            type(dialect).do_commit(dialect, proxied)
        else:
            plain(proxied)
    except BaseException as error:
        if told and (dialect.name == "sqlite" or not isinstance(error, dialect.loaded_dbapi.Error)):
            waiting[AFTER] = told  # the driver's transaction goes on: the database was locked, or it was not the driver who failed
        raise
    for committed in told:
        committed(True)


def _do_rollback(dialect: Dialect, plain: Callable[[Any], None] | None, proxied: Any) -> None:
    try:
        if plain is None:
            type(dialect).do_rollback(dialect, proxied)
        else:
            plain(proxied)
    finally:
        waiting = getattr(proxied, "__dict__", _NOTHING)
        if waiting:
            for buffer, _, _ in waiting.pop(WRITTEN, ()):
                buffer.clear()
            waiting.pop(AFTER, None)
            waiting.pop(MISSED, None)


def _do_rollback_to_savepoint(dialect: Dialect, plain: Callable[..., None] | None, connection: Connection, name: str) -> None:
    """Events tell of it as well, as long as there are hooks."""
    if plain is None:
        type(dialect).do_rollback_to_savepoint(dialect, connection, name)
    else:
        plain(connection, name)
    for buffer, _, reference in getattr(connection._dbapi_connection, "__dict__", _NOTHING).get(WRITTEN, ()):
        if reference() is connection:
            buffer.back_to(name)


def _do_commit_twophase(
    dialect: Dialect, plain: Callable[..., None] | None, connection: Connection, *given: Any, **named: Any
) -> None:
    told = getattr(connection._dbapi_connection, "__dict__", _NOTHING).pop(AFTER, ())
    if plain is None:
        type(dialect).do_commit_twophase(dialect, connection, *given, **named)
    else:
        plain(connection, *given, **named)
    for committed in told:
        committed(True)


def _refuse(dialect: Dialect, proxied: Any) -> None:
    dialect.do_rollback(proxied)
    raise CaptureError(
        f"somebody has set execution_ctx_cls of the {dialect.name} dialect while its engine is captured: this transaction may have "
        "writes that have no event, and is rolled back; set it before install_crud_hooks()"
    )


def _unwritten(dialect: Dialect, proxied: Any, buffer: Clears) -> Committed | None:
    """Of a Connection that is no more, while somebody holds its proxy."""
    if buffer.unwritten:
        dialect.do_rollback(proxied)
        raise CaptureError(
            "a Connection has been dropped amid its transaction, and its events with it: the transaction is rolled back; commit it, or "
            "close the Connection"
        )
    return None


def commits_on_return(engine: Engine) -> bool:
    """Whether the engine's pool commits what is given back, or leaves it to who is next."""
    return engine.pool._reset_on_return in (reset_commit, reset_none)


def abandoned(raw: Any, record: Any, state: PoolResetState) -> None:
    """Before a pool commits what comes back to it: of a proxy that was dropped nobody knows what has an event."""
    if state.asyncio_safe and (record.fairy_ref is None or record.fairy_ref() is None):
        raw.rollback()
        logger.error(
            "a connection was dropped without being closed: what it has written and not committed is rolled back, whatever "
            "pool_reset_on_return says, since its events are lost"
        )


_NOTHING: dict[str, Any] = {}
"""Of a connection that has no proxy of a pool's."""

_FUNCTIONS: dict[str, Callable[..., None]] = {
    "do_commit": do_commit,
    "do_rollback": _do_rollback,
    "do_rollback_to_savepoint": _do_rollback_to_savepoint,
    "do_commit_twophase": _do_commit_twophase,
}

"""The objects behind a flush: what the session has loaded of them lends events their old values."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.orm import Mapper
from sqlalchemy.orm.interfaces import EXT_CONTINUE

from .buffer import buffer_of

MAX_STATES = 20_000
"""More are leftovers of updates that turned out to change nothing."""

_captured: Counter[Dialect] = Counter()
"""Of captured engines, of which several may share one: those that ``execution_options()`` makes of an engine."""


def listen(dialect: Dialect) -> None:
    """For one more engine."""
    _listen_to_mappers()
    _captured[dialect] += 1


def unlisten(dialect: Dialect) -> bool:
    """For one engine less; True if it was the dialect's last."""
    _captured[dialect] -= 1
    if _captured[dialect]:
        return False
    del _captured[dialect]
    return True


@cache
def _listen_to_mappers() -> None:
    """Once and for good: SQLAlchemy does not stand listeners on a class that come and go while other threads flush."""
    for name in ("before_update", "before_delete"):
        event.listen(Mapper, name, _remember, raw=True, retval=True)


def _remember(mapper: Mapper[Any], connection: Connection, state: Any) -> Any:
    """An object is about to be updated or deleted."""
    if connection.dialect in _captured and state.key is not None:
        states = buffer_of(connection).states_of(connection)
        if len(states) > MAX_STATES:
            states.clear()
        for table in mapper.tables:
            states[table, state.key[1]] = state
    return EXT_CONTINUE

"""The objects behind a flush: what the session has loaded of them lends events their old values."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.orm import Mapper
from sqlalchemy.orm.interfaces import EXT_CONTINUE

from .buffer import buffer_of
from .mapped import key_columns

_CAPTURED = "_sqla_events_captured"
"""Kept by a dialect: how many engines of it are captured. Those that ``execution_options()`` makes of an engine share its own."""


def listen(dialect: Dialect) -> None:
    """For one more engine."""
    _listen_to_mappers()
    dialect.__dict__[_CAPTURED] = dialect.__dict__.get(_CAPTURED, 0) + 1


def unlisten(dialect: Dialect) -> bool:
    """For one engine less; True if it was the dialect's last."""
    if dialect.__dict__[_CAPTURED] > 1:
        dialect.__dict__[_CAPTURED] -= 1
        return False
    del dialect.__dict__[_CAPTURED]
    return True


@cache
def _listen_to_mappers() -> None:
    """Once and for good: SQLAlchemy does not stand listeners on a class that come and go while other threads flush."""
    for name, listener in LISTENERS.items():
        event.listen(Mapper, name, listener, raw=True, retval=True)


def _remembering(name: str) -> Callable[[Mapper[Any], Connection, Any], Any]:
    """What remembers the states of objects that are about to be updated, or deleted."""

    def remember(mapper: Mapper[Any], connection: Connection, state: Any) -> Any:
        if _CAPTURED in connection.dialect.__dict__ and state.key is not None:
            buffer = buffer_of(connection)
            states = buffer.states_of(connection, name)
            if len(states) > buffer.most_states:
                buffer.drop_leftovers()
                states = buffer.states_of(connection, name)
            for table, attributes in _tables(mapper):
                key = state.key[1] if attributes is None else _key(state, attributes)
                states[table, key] = state
        return EXT_CONTINUE

    return remember


LISTENERS = {"before_update": _remembering("states"), "before_delete": _remembering("leaving")}
"""Of all mappers."""


@lru_cache(maxsize=4096)
def _tables(mapper: Mapper[Any]) -> list[tuple[sa.Table, tuple[str, ...] | None]]:
    """The tables of a mapped class, each with the attributes that its key is made of; None where that is the identity of the object."""
    identity = [mapper._columntoproperty.get(column) for column in mapper.primary_key]
    found: list[tuple[sa.Table, tuple[str, ...] | None]] = []
    for table in mapper.tables:
        if isinstance(table, sa.Table):
            key = [mapper._columntoproperty.get(table.columns[name]) for name in key_columns(table)]
            if key == identity:
                found.append((table, None))
            elif None not in key:
                found.append((table, tuple(one.key for one in key if one is not None)))
    return found


def _key(state: Any, attributes: tuple[str, ...]) -> tuple[Any, ...]:
    """A key as the database has it."""
    committed, current = state.committed_state, state.dict
    return tuple(committed[name] if name in committed else current.get(name) for name in attributes)


def forget_tables() -> None:
    """A mapped class may have further ones."""
    _tables.cache_clear()

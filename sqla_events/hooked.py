"""Whose hooks are on an engine: one broker's at most, or each write would be captured twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from .errors import ConfigError

_BROKER = "_sqla_events_broker"
"""Kept by the engine itself, so that it lives as long as the engine and not longer."""

_engines: WeakSet[Engine] = WeakSet()
_lock = threading.Lock()


def broker_of(engine: Engine | AsyncEngine) -> Any:
    """The broker whose hooks see what this engine writes: its own, or that of an engine that it was made of; None if there is none."""
    return next((one.__dict__[_BROKER] for one in _origins(engine) if _BROKER in one.__dict__), None)


def claim(engine: Engine | AsyncEngine, broker: Any) -> None:
    """This broker's hooks are on the engine from now on.

    :raises ConfigError: if another broker's hooks see what it writes, or what an engine made of it writes.
    """
    own = next(_origins(engine))
    with _lock:
        if broker_of(own) not in (None, broker):
            raise ConfigError(
                f"engine {own!r} has the hooks of another broker; use that one, or call its uninstall() first"
            )
        made_of_it = [one for one in _engines if _BROKER in one.__dict__ and one is not own and own in _origins(one)]
        if made_of_it:
            raise ConfigError(
                f"an engine that execution_options() of {own!r} returned has hooks already, so that its writes would be "
                "captured twice; call uninstall() of its broker first: hooks on this engine see both"
            )
        own.__dict__[_BROKER] = broker
        _engines.add(own)


def release(engine: Engine | AsyncEngine, broker: Any) -> None:
    """Its hooks are off again."""
    own = next(_origins(engine))
    with _lock:
        if own.__dict__.get(_BROKER) is broker:
            del own.__dict__[_BROKER]
            _engines.discard(own)


def _origins(engine: Engine | AsyncEngine) -> Iterator[Engine]:
    """The engine and those that it was made of by ``execution_options()``: events of theirs are its events, too."""
    one: Engine | None = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
    while one is not None:
        yield one
        one = getattr(one, "_proxied", None)

"""``install_crud_hooks``: the one call that an existing application adds. ``connect``: for a process that is not it."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from .bridge import engine_of
from .broker import Broker
from .config import Config
from .errors import ConfigError
from .hooked import broker_of
from .metrics import shared_metrics

_lock = threading.Lock()


def install_crud_hooks(
    engine: Engine | AsyncEngine,
    config: Config | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Broker:
    """Capture every insert, update and delete made through this engine as an event, from now on.

    ::

        broker = install_crud_hooks(engine, {"provider": "memory"})

        @broker.subscribe("public.users.*")
        def handler(event): ...

        broker.start()

    :param engine: the application's Engine or AsyncEngine. Its database must have the event tables
        (``sqla-events migrate URL``).
    :param config: a Config, a dict, the path of a YAML file, or a provider URL (``redis://…``, ``nats://…``);
        without it, the environment (``SQLA_EVENTS_…``) and the defaults.
    :param settings: single settings; they win over ``config``.
    :returns: the broker of this engine. Calling again with an equal configuration returns the same one, also with an
        engine that ``engine.execution_options()`` made of it, whose writes the hooks see anyway.
    :raises ConfigError: if a setting is wrong, the engine is in AUTOCOMMIT or of a database that is not supported, or
        hooks with another configuration, or on an engine made of this one, are installed.
    """
    if not isinstance(engine, (Engine, AsyncEngine)):
        raise ConfigError(f"engine is {engine!r}; it must be a SQLAlchemy Engine or AsyncEngine")
    loaded = Config.load(config, **settings)
    with _lock:
        broker: Broker | None = broker_of(engine)
        if broker is not None:
            return _same(broker, loaded)
        broker = Broker(loaded, engine).install()
        shared_metrics().attach(broker.signals)
        return broker


def connect(config: Config | Mapping[str, Any] | str | os.PathLike[str] | None = None, **settings: Any) -> Broker:
    """A broker for a process that has neither the application's models nor its engine: it consumes, publishes and asks.

    ::

        broker = connect("redis://localhost/0")        # or nats://…; needs no database
        broker = connect("postgresql://app@db/shop")   # reads the log itself

    :param config: as for :func:`install_crud_hooks`. A database is used where ``database.url`` (or the URL itself) names
        one; PostgreSQL URLs without a driver get psycopg, those of an asyncio driver an AsyncEngine.
    :raises ConfigError: if a setting is wrong, or the provider needs a database and none is named.
    """
    loaded = Config.load(config, **settings)
    if loaded.database.url is None and loaded.provider == "database":
        raise ConfigError("provider 'database' reads the log, and database.url does not say where it is")
    broker = Broker(loaded, None if loaded.database.url is None else engine_of(loaded.database.url))
    shared_metrics().attach(broker.signals)
    return broker


def _same(broker: Broker, config: Config) -> Broker:
    if broker.config != config:
        raise ConfigError(
            "hooks are installed on this engine with another configuration; call uninstall() on that broker first"
        )
    return broker

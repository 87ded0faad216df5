"""What a command is about: the database or transport that its URL names, and a broker to ask it with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncEngine

from ..bridge import engine_of
from ..broker import Broker
from ..config import Config
from ..errors import ConfigError


@contextmanager
def broker_of(url: str, **options: Any) -> Iterator[Broker]:
    """A broker that captures nothing and runs nothing yet."""
    engine = _engine(url)
    if engine is None:
        options["provider"] = url
    config = _config(**options)
    if engine is not None:
        refuse_missing_file(engine.url)
    try:
        yield Broker(config, engine)
    finally:
        if engine is not None:
            getattr(engine, "sync_engine", engine).dispose()


def _engine(url: str) -> Engine | AsyncEngine | None:
    """None for the URL of a transport: what is asked is asked there, without a database."""
    return None if _is_transport(url) else engine_of(url)


def _is_transport(url: str) -> bool:
    """By the scheme alone: the rest of a transport's URL may be none to SQLAlchemy (several hosts with commas)."""
    name, separator, _ = url.partition("://")
    try:
        make_url(f"{name.partition('+')[0]}://").get_dialect()
    except (NoSuchModuleError, ArgumentError):
        return bool(separator) and name != "postgres"
    return False


def refuse_missing_file(url: URL) -> None:
    """SQLite would make an empty database where a path was mistyped."""
    path = url.database if url.get_backend_name() == "sqlite" else None
    if path and not path.startswith((":memory:", "file:")) and not Path(path).is_file():
        raise ConfigError(f"there is no file {path!r}; if that is its name, create it with: sqla-events migrate {str(url)!r}")


def _config(table_name: str | None, schema: str | None, config: str | None = None, provider: str | None = None) -> Config:
    names = {key: value for key, value in {"table_name": table_name, "schema": schema}.items() if value is not None}
    overrides: dict[str, Any] = {"database": names} if names else {}
    if provider is not None:
        overrides["provider"] = provider
    return Config.load(config, **overrides)

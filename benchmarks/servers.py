"""Private servers for the benchmarks: those of the tests, but durable, as in production."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.postgres import PostgresServer


class DurablePostgres(PostgresServer):
    """PostgreSQL that syncs its WAL at every commit."""

    @property
    def command(self) -> list[str | Path]:  # type: ignore[override]
        options = ("fsync=on", "wal_level=logical", "full_page_writes=on", "shared_buffers=512MB", "max_wal_size=4GB")
        return [*super().command, *(part for option in options for part in ("-c", option))]


@contextmanager
def postgres() -> Iterator[PostgresServer]:
    """A server that lives as long as the block."""
    server = DurablePostgres()
    server.start()
    try:
        yield server
    finally:
        server.remove()


@contextmanager
def database_urls(folder: Path) -> Iterator[dict[str, Callable[[str], str]]]:
    """By label, what makes the URL of a fresh database of a given name."""
    numbers = itertools.count(1)
    with postgres() as server:

        def database(driver: str) -> Callable[[str], str]:
            return lambda name: server.url(driver, server.create_database(name=f"{name}_{next(numbers)}"))

        yield {
            "sqlite": lambda name: f"sqlite:///{folder / name}.db",
            "postgresql+psycopg": database("psycopg"),
            "postgresql+asyncpg": database("asyncpg"),
        }

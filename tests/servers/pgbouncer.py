"""A private PgBouncer in transaction mode before a private PostgreSQL, where this machine has the program."""

from __future__ import annotations

import shutil
from pathlib import Path

from sqlalchemy.engine import URL

from .child import Child, scratch, unprivileged_user
from .postgres import PostgresServer

SERVER_CONNECTIONS = 3
"""Fewer than there are clients: every transaction may be on another one than the last."""


def local_binary() -> Path | None:
    """The program, if it is installed."""
    found = shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")
    return Path(found) if found else None


class PgBouncer(Child):
    """One pooler; a transaction keeps its server connection, a session does not."""

    def __init__(self, binary: Path, server: PostgresServer) -> None:
        self.user = unprivileged_user()
        super().__init__("pgbouncer", scratch("pgbouncer", self.user))
        self._binary = binary
        (self.folder / "pgbouncer.ini").write_text(
            f"""[databases]
* = host=127.0.0.1 port={server.port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {SERVER_CONNECTIONS}
max_client_conn = 200
ignore_startup_parameters = extra_float_digits
server_round_robin = 1
"""
        )

    @property
    def command(self) -> list[str | Path]:  # type: ignore[override]
        return [self._binary, self.folder / "pgbouncer.ini"]

    def url(self, driver: str, database: str) -> str:
        """A SQLAlchemy URL that goes through it."""
        return URL.create(f"postgresql+{driver}", "postgres", None, "127.0.0.1", self.port, database).render_as_string()

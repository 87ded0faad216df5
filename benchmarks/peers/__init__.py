"""Other Python outboxes and queues, each in an environment of its own, draining a backlog of 50,000 of the same events.

The environments are made once, with pip, in ``.peers`` at the root of the project. A peer that cannot be installed or run
here is named with its reason and left out.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measured import Cost, cpu_of
from benchmarks.report import Figure
from tests.servers.postgres import PostgresServer

FOLDER = Path(__file__).parent
ENVIRONMENTS = FOLDER.parent.parent / ".peers"
COUNT = 50_000
PATIENCE = 300.0
"""Seconds a peer may take for anything."""


@dataclass(frozen=True)
class Peer:
    """A package, and the script here that drains its backlog."""

    package: str
    script: str
    python: str = "python3"


PEERS = (
    Peer("eventsourcing[postgres]==9.5.*", "eventsourcing_drain"),
    Peer("walbox==1.0.*", "walbox_drain", "python3.13"),
    Peer("txoutbox[postgres]==0.2.*", "txoutbox_unordered"),
    Peer("txoutbox[postgres]==0.2.*", "txoutbox_ordered"),
    Peer("pgqueuer[asyncpg]==1.6.*", "pgqueuer_drain"),
    Peer("faststream-outbox[asyncpg]==0.19.*", "faststream_outbox_drain"),
)


def figures(server: PostgresServer) -> Iterator[Figure]:
    """Events a second of each."""
    for peer in PEERS:
        name = f"peer_{peer.script.removesuffix('_drain')}"
        try:
            cost = drained(peer, server)
        except (subprocess.SubprocessError, OSError) as error:
            print(f"{name}: not measured: {_reason(error)}")
            continue
        yield Figure(name, cost.rate, "events/s")
        yield Figure(f"{name}_per_cpu_second", cost.count / cost.cpu, "events/s")
        yield Figure(f"{name}_per_cpu_second_with_postgres", cost.count / (cost.cpu + cost.server_cpu), "events/s")
        yield Figure(f"{name}_rss", cost.rss, "MB")


def drained(peer: Peer, server: PostgresServer) -> Cost:
    """What the peer needs for its backlog."""
    python = environment(peer)
    database = server.create_database(name=f"peer_{peer.script}")
    dsn = server.url("psycopg", database).replace("+psycopg", "")
    _run([python, FOLDER / f"{peer.script}.py", "prepare", dsn, str(COUNT)])
    before = cpu_of(server.pid)
    told = json.loads(_run([python, FOLDER / f"{peer.script}.py", "drain", dsn, str(COUNT)]).splitlines()[-1])
    return Cost(COUNT, told["seconds"], told["cpu"], cpu_of(server.pid) - before, told["rss"])


def environment(peer: Peer) -> Path:
    """The interpreter of the peer's environment, which is made if it is not there."""
    folder = ENVIRONMENTS / peer.package.partition("==")[0].partition("[")[0]
    python = folder / "bin" / "python"
    if not python.exists():
        _run([_interpreter(peer.python), "-m", "venv", folder])
        try:
            _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", peer.package])
        except subprocess.SubprocessError:
            shutil.rmtree(folder)
            raise
    return python


def _interpreter(name: str) -> str:
    """The command; a pyenv shim may stand in for a version that is not there, so it is asked."""
    if name == "python3":
        return sys.executable
    found = [name, *map(str, Path.home().glob(f".pyenv/versions/{name.removeprefix('python')}*/bin/python"))]
    for one in found:
        if shutil.which(one) and not subprocess.run([one, "--version"], check=False, capture_output=True).returncode:
            return one
    raise FileNotFoundError(f"it needs {name}, which is not installed")


def _run(command: list[str | Path]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout


def _reason(error: Exception) -> str:
    shown = getattr(error, "stderr", None) or str(error)
    return shown.strip().splitlines()[-1] if shown.strip() else type(error).__name__

"""What the drivers of all peers share. Standard library only: each runs in an environment of its own.

    python PEER.py prepare|drain DSN COUNT

``prepare`` makes the peer's tables and a backlog, ``drain`` handles it all and prints its cost as JSON.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from pathlib import Path

BODY = {"key": {"id": 0}, "after": {"name": "x" * 120, "email": "y" * 80, "note": "z" * 60}}
"""As in our own backlog."""


class Seen:
    """Counts events; ``all`` is set with the last one."""

    def __init__(self, count):
        self._left = count
        self.all = asyncio.Event()

    def one(self, many=1):
        self._left -= many
        if self._left <= 0:
            self.all.set()


def main(prepare, drain):
    """Do what the command line says."""
    action, dsn, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if action == "prepare":
        asyncio.run(prepare(dsn, count))
        return
    started, cpu = time.perf_counter(), time.process_time()
    asyncio.run(drain(dsn, count))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    rss = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    print(json.dumps({"seconds": seconds, "cpu": cpu, "rss": rss}))

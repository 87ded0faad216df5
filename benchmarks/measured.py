"""What a piece of work costs: run in a process of its own, with the CPU seconds of that process and of PostgreSQL."""

from __future__ import annotations

import multiprocessing
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """Of handling ``count`` events. A process's own start (imports) does not count."""

    count: int
    seconds: float
    cpu: float
    """CPU seconds of the process."""
    server_cpu: float
    """CPU seconds of PostgreSQL, all its processes."""
    rss: float
    """MB, the most it ever had."""

    @property
    def rate(self) -> float:
        return self.count / self.seconds


class Meter:
    """Starts counting when it is made; ``stop`` says what it was."""

    def __init__(self, server_pid: int) -> None:
        self._server = server_pid
        self._before = (time.perf_counter(), time.process_time(), cpu_of(server_pid))

    def stop(self, count: int) -> Cost:
        """The cost since the beginning."""
        now = (time.perf_counter(), time.process_time(), cpu_of(self._server))
        seconds, cpu, server = (after - before for after, before in zip(now, self._before, strict=True))
        return Cost(count, seconds, cpu, server, _peak())


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """What ``work`` returns, run in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def cpu_of(pid: int) -> float:
    """CPU seconds of a process, its children, and those of them that have ended."""
    total = 0.0
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and (fields := _stat(folder)) and str(pid) in (folder.name, fields[1]):
            own = fields[11:13] if folder.name != str(pid) else fields[11:15]
            total += sum(map(int, own)) / TICKS
    return total


def _peak() -> float:
    """MB. Not ru_maxrss, which a process inherits from the one that forked it."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def _stat(folder: Path) -> list[str]:
    """Fields of /proc/PID/stat from the state on: [0] state, [1] parent, [11] utime, [12] stime, [13] and [14] of dead children."""
    try:
        return (folder / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []

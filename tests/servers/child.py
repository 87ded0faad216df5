"""A server that a test run starts for itself: in a folder of its own, on a free port, gone when the run is gone."""

from __future__ import annotations

import atexit
import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

START_TIMEOUT = 60.0
"""Seconds a server may take to answer."""


class ServerError(RuntimeError):
    """A private server did not start; the message ends with its log."""


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], timeout: float = START_TIMEOUT, what: str = "condition") -> None:
    """Poll until ``condition()`` holds.

    :raises TimeoutError: after ``timeout`` seconds, naming ``what``.
    """
    deadline = time.monotonic() + timeout
    pause = 0.002
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: still not so after {timeout:g} s")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)


def answers(port: int) -> bool:
    """Whether something accepts connections on the port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def unprivileged_user() -> str | None:
    """Whom a server runs as that refuses root; None: as ourselves, because we are not root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody", "daemon") if name in names), None)


def scratch(name: str, user: str | None = None) -> Path:
    """A new folder that belongs to ``user`` and is deleted when this process ends.

    Below /tmp where there is one: the path of a unix socket may have 107 characters, and TMPDIR can be longer than that.
    """
    root = "/tmp" if Path("/tmp").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix=f"sqla-events-{name}-", dir=root))
    if user:
        shutil.chown(folder, user)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _die_with_parent() -> None:
    """In the child: be killed when the test process is gone, however it went (Linux; elsewhere atexit alone)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Child:
    """One server process. Subclasses say the command line, and when it is up.

    ``start`` and ``kill`` may be called again and again: the port and the folder stay, so clients can reconnect.
    """

    command: Sequence[str | Path]
    user: str | None = None

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.kill)

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        assert self._process is not None
        return self._process.pid

    def ready(self) -> bool:
        """Whether it answers."""
        return answers(self.port)

    def start(self) -> None:
        """Start it unless it runs; return when it answers.

        :raises ServerError: if it ends or does not answer in time.
        """
        if self.running:
            return
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(part) for part in self.command],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=self.user,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self._wait()

    def _wait(self) -> None:
        try:
            wait_until(lambda: self.ready() or not self.running, what=f"{self.name} starts")
        except TimeoutError as error:
            raise ServerError(f"{error}\n{self.log()}") from None
        if not self.running:
            raise ServerError(f"{self.name} ended while starting\n{self.log()}")

    def log(self) -> str:
        """The end of what it printed."""
        return (self.folder / "log").read_text(errors="replace")[-4000:]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal and wait for its end."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(number)
        self._process.wait(START_TIMEOUT)
        self._process = None

    def stop(self) -> None:
        """End it in good order."""
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would."""
        self.signal(signal.SIGKILL)

    def restart(self) -> None:
        """Crash, then come back on the same port with what was stored."""
        self.kill()
        self.start()

    def remove(self) -> None:
        """End it and delete its folder."""
        self.kill()
        atexit.unregister(self.kill)
        shutil.rmtree(self.folder, ignore_errors=True)


def wheel_file(distribution: str, name: str) -> Path:
    """A file that an installed wheel brought, by the end of its path; the Makefile puts some beside the environment's own.

    :raises ServerError: if the wheel is not installed or has no such file.
    """
    from importlib.metadata import distributions

    for found in distributions(name=distribution, path=[*sys.path, str(Path(sys.prefix, "servers"))]):
        for entry in found.files or ():
            if str(entry).endswith(name):
                return Path(str(entry.locate())).resolve()
    raise ServerError(f"{name} of {distribution} is not installed: pip install '.[test]', or on Python 3.12 and later: make .venv/.test")

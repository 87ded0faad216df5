"""SQLAlchemy's own tests, from its source distribution; the library itself stays the one that is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import sqlalchemy

VERSION = sqlalchemy.__version__
LINE = ".".join(VERSION.split(".")[:2])

_WANTED = ("test/", "lib/sqlalchemy/testing/plugin/", "setup.cfg", "pyproject.toml")


def tests(cache: Path) -> Path:
    """The folder of the source distribution of the installed version, fetched from PyPI where it is not there yet."""
    folder = cache / f"sqlalchemy-{VERSION}"
    if not (folder / "setup.cfg").exists():
        archive = next(iter(sorted(cache.glob(f"[sS][qQ][lL]*-{VERSION}.tar.gz"))), None) or _download(cache)
        with tarfile.open(archive) as packed:
            names = [one for one in packed.getmembers() if one.name.partition("/")[2].startswith(_WANTED)]
            packed.extractall(cache, members=names, filter="data")
        (cache / archive.name.removesuffix(".tar.gz")).rename(folder) if not folder.exists() else None
    return folder


def _download(cache: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "SQLAlchemy"]  # not Cython, which its build wants
    # pip makes the metadata by a build, which would compile the extensions for minutes
    environment = os.environ | {"DISABLE_SQLALCHEMY_CEXT": "1"}
    subprocess.run([*command, f"SQLAlchemy=={VERSION}", "-d", str(cache)], check=True, env=environment)
    return next(iter(cache.glob(f"[sS][qQ][lL]*-{VERSION}.tar.gz")))

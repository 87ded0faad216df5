"""The migrations travel inside the wheel and are found there."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_wheel_brings_its_migrations(tmp_path: Path) -> None:
    """Unpacked far from the checkout, it creates the tables."""
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("sqla_events-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    assert (tmp_path / "site" / "sqla_events" / "py.typed").is_file()
    assert (tmp_path / "site" / "sqla_events" / "providers" / "redis" / "lua" / "take.lua").is_file()
    script = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import sqla_events.alembic as a;"
        "assert str(a.migrations()).startswith(sys.argv[1]), a.migrations();"
        "a.upgrade(sys.argv[2]); a.check(sys.argv[2])"
    )
    arguments = [str(tmp_path / "site"), f"sqlite:///{tmp_path / 'wheel.db'}"]
    done = subprocess.run([sys.executable, "-c", script, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

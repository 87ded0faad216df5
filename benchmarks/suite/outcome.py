"""What a run of SQLAlchemy's tests with hooks says, beside what is known about them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = dict[str, Any]

_DATABASE = re.compile(r"_(?:sqlite|postgresql)\+\w+?_[\d_]+(?=::)")
BAD = ("failed", "error")


def records(folder: Path) -> dict[str, Record]:
    """The records of a run by test, without the database in their names."""
    found: dict[str, Record] = {}
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            record = json.loads(line)
            found[_DATABASE.sub("", record["test"])] = record
    return found


def failed(record: Record) -> bool:
    return record["outcome"].startswith(BAD)


Excuses = dict[str, str]
"""Tests that fail for a reason that is no fault of capture's; reason by test. A replay that differs has no excuse."""

_HEAD = """# Read by outcome.py. Tests of SQLAlchemy's that fail with the hooks because they see SELECTs of ours, and which.
# Each passes where no listener sees these SELECTs: make sqlalchemy-suite runs it that way, too."""


def read_excuses(file: Path) -> Excuses:
    """From sections ``[reason]``, each followed by tests, a line each."""
    found, reason = {}, ""
    for line in file.read_text().splitlines() if file.exists() else ():
        if line.startswith("["):
            reason = line.strip("[]")
        elif line and not line.startswith("#"):
            found[line] = reason
    return found


def write_excuses(excuses: Excuses, file: Path) -> None:
    """The same file again, sorted."""
    lines = [_HEAD]
    for reason in sorted(set(excuses.values())):
        lines += ["", f"[{reason}]", *sorted(test for test, why in excuses.items() if why == reason)]
    file.write_text("\n".join(lines) + "\n")


@dataclass
class Outcome:
    """The line of the table for one database, and what stands behind its numbers."""

    database: str
    passed: int = 0
    failing: list[Record] = field(default_factory=list)
    """Fail with the hooks, pass without them, and are not excused."""
    excused: dict[str, str] = field(default_factory=dict)
    checked: int = 0
    checks: int = 0
    events: int = 0
    rows: int = 0
    differing: list[Record] = field(default_factory=list)
    gaps: list[Record] = field(default_factory=list)
    """Differ only in tables that a reported gap has written."""
    unchecked: list[Record] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)
    """Fail only because they see SELECTs of ours, and no reason is listed."""
    stale: list[str] = field(default_factory=list)
    """Excused, and pass."""

    @property
    def good(self) -> bool:
        return not self.failing and not self.differing


def compared(database: str, hooked: dict[str, Record], failing_without: set[str], seeing: set[str], excuses: Excuses) -> Outcome:
    """What a run with hooks says.

    :param failing_without: tests that fail without hooks too.
    :param seeing: tests that fail because they see SELECTs of ours: they pass where no listener does. No other failure is excused.
    """
    found = Outcome(database)
    for test, record in hooked.items():
        if test not in failing_without:
            _add_outcome(found, test, record, excuses.get(test), test in seeing)
        _add_replay(found, record)
    return found


def _add_outcome(found: Outcome, test: str, record: Record, reason: str | None, seeing: bool) -> None:
    if not failed(record):
        found.passed += record["outcome"] == "passed"
        if reason is not None:
            found.stale.append(test)
    elif reason is not None and seeing:
        found.excused[test] = reason
    else:
        found.failing.append(record)
        if seeing:
            found.unlisted.append(test)


def _add_replay(found: Outcome, record: Record) -> None:
    found.checked += record["checks"] > 0
    for name in ("checks", "events", "rows"):
        setattr(found, name, getattr(found, name) + record[name])
    if record["differences"]:
        found.differing.append(record)
    elif record["behind_gaps"]:
        found.gaps.append(record)
    if record["unchecked"]:
        found.unchecked.append(record)


# What it looks like -------------------------------------------------------------------------------------------------

COLUMNS = ("database", "passed", "failed", "excused", "tests replayed", "checks", "events", "rows compared", "differences", "reported gaps", "not checkable")


def table(outcomes: Iterable[Outcome]) -> str:
    lines = [COLUMNS]
    for one in outcomes:
        counts = (one.passed, len(one.failing), len(one.excused), one.checked, one.checks, one.events, one.rows, len(one.differing), len(one.gaps), len(one.unchecked))
        lines.append((one.database, *(f"{count:,}" for count in counts)))
    widths = [max(len(line[n]) for line in lines) for n in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.ljust(width) if n == 0 else cell.rjust(width) for n, (cell, width) in enumerate(zip(line, widths, strict=True))) for line in lines)

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


@dataclass(frozen=True)
class Excuses:
    """Tests that fail, or whose replay differs, for a reason that is no fault of capture's; reason by test."""

    failing: dict[str, str]
    differing: dict[str, str]

    @classmethod
    def read(cls, file: Path) -> Excuses:
        """From sections ``[fails: reason]`` and ``[differs: reason]``, each followed by tests, a line each."""
        found: dict[str, dict[str, str]] = {"fails": {}, "differs": {}}
        kind = reason = ""
        for line in file.read_text().splitlines() if file.exists() else ():
            line = line.strip()
            if line.startswith("["):
                kind, _, reason = line.strip("[]").partition(": ")
            elif line and not line.startswith("#"):
                found[kind][line] = reason
        return cls(found["fails"], found["differs"])

    def write(self, file: Path) -> None:
        """The same file again, sorted."""
        lines = [_HEAD]
        for kind, tests in (("fails", self.failing), ("differs", self.differing)):
            for reason in sorted(set(tests.values())):
                lines += ["", f"[{kind}: {reason}]", *sorted(test for test, why in tests.items() if why == reason)]
        file.write_text("\n".join(lines) + "\n")


_HEAD = "# Read by outcome.py. Tests of SQLAlchemy's that fail with the hooks, or whose replay differs, and why that is no fault."


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
    stale: list[str] = field(default_factory=list)
    """Excused, and pass."""

    @property
    def good(self) -> bool:
        return not self.failing and not self.differing


def compared(database: str, hooked: dict[str, Record], failing_without: set[str], excuses: Excuses) -> Outcome:
    """What a run with hooks says, given the tests that fail without them too."""
    found = Outcome(database)
    for test, record in hooked.items():
        _add_outcome(found, test, record, test in failing_without, excuses)
        _add_replay(found, test, record, excuses)
    return found


def _add_outcome(found: Outcome, test: str, record: Record, failed_before: bool, excuses: Excuses) -> None:
    if not failed(record):
        found.passed += record["outcome"] == "passed"
        if test in excuses.failing:
            found.stale.append(test)
    elif not failed_before:
        if test in excuses.failing:
            found.excused[test] = excuses.failing[test]
        else:
            found.failing.append(record)


def _add_replay(found: Outcome, test: str, record: Record, excuses: Excuses) -> None:
    found.checked += record["checks"] > 0
    for name in ("checks", "events", "rows"):
        setattr(found, name, getattr(found, name) + record[name])
    if record["differences"]:
        if test in excuses.differing:
            found.excused[test] = excuses.differing[test]
        else:
            found.differing.append(record)
    elif record["behind_gaps"]:
        found.gaps.append(record)
    if record["unchecked"]:
        found.unchecked.append(record)


# What it looks like -------------------------------------------------------------------------------------------------

_REASONS = (
    (re.compile(r"assertsql\.py:\d+: AssertionError|assert_sql_count|Expected \d+ statements|CountStatements"), "asserts the emitted SQL or the number of statements"),
)


def classified(records: Iterable[Record]) -> dict[str, str]:
    """The reasons that can be told from the traceback; others need eyes."""
    found = {}
    for record in records:
        for pattern, reason in _REASONS:
            if pattern.search(record["text"]):
                found[_DATABASE.sub("", record["test"])] = reason
    return found


COLUMNS = ("database", "passed", "failed", "excused", "tests replayed", "checks", "events", "rows compared", "differences", "reported gaps", "not checkable")


def table(outcomes: Iterable[Outcome]) -> str:
    lines = [COLUMNS]
    for one in outcomes:
        counts = (one.passed, len(one.failing), len(one.excused), one.checked, one.checks, one.events, one.rows, len(one.differing), len(one.gaps), len(one.unchecked))
        lines.append((one.database, *(f"{count:,}" for count in counts)))
    widths = [max(len(line[n]) for line in lines) for n in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.ljust(width) if n == 0 else cell.rjust(width) for n, (cell, width) in enumerate(zip(line, widths, strict=True))) for line in lines)

"""What capture costs: seconds of whole transactions with hooks, beside none, a hand-written insert of the same events,
triggers, PostgreSQL-Audit and SQLAlchemy-Continuum. What each of them is: ways.py.

Each way runs in a process and on a database of its own; in every round they have a turn one after the other, so that noise of
the machine hits them alike, and each time in another order: who comes after a long transaction is faster. A turn inserts, changes and
removes its rows, small ones several times over: a single transaction of one row, when six other programs have had the processor,
takes two to three times as long as the next ones, and ratios of such ones tell how cold the caches were (``--turns 1`` shows
them; of two processes with the same code one then has a tenth more of an overhead). What a turn says is its median, and the figure is
the median round. Of two processes that do the same, one is up to a tenth faster from its start to its end; so all is measured
in several sets of fresh processes, one row, of which a tenth is what is to be found out, in most. All run on the same SQLAlchemy.
Cases:

``insert``, ``update``, ``delete``   objects of a session, 2 of 10 columns changed; an update and a delete load their rows first
``set_insert`` and so on             one statement: bulk ``insert()``, ``update()`` and ``delete()`` of all rows, which
                                     neither Continuum nor what is written by hand after a flush sees
``portions``                         a million rows in one transaction, by bulk ``insert()`` of 10,000 at a time: seconds,
                                     and how far memory rises above that of the same process after one portion

``ratio`` is our time over the baseline's. Lines ``overhead`` compare what is added to no capture: our share over theirs.

    python benchmarks/capture.py [--json FILE] [--rounds N] [--sets N] [--turns N] [--rows 1,100,10000] [--only psycopg] [--portions 1000000]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.report import Figure, publish
from benchmarks.servers import database_urls

ROOT = Path(__file__).resolve().parent.parent
OPERATIONS = ("insert", "update", "delete")
SETS = ("set_insert", "set_update", "set_delete")
ROUNDS = {1: 10, 100: 4, 10_000: 3}
TURNS = {1: 10, 100: 3}
"""How often a turn inserts, changes and removes its rows, by their number; else once."""
SETS_OF_PROCESSES = {1: 9, 100: 4, 10_000: 2}
"""By rows; else one."""

SLOW = "postgresql+asyncpg"
"""Where 10,000 rows take Continuum minutes, and PostgreSQL-Audit at times."""

EVERYWHERE = ("none", "hand_written", "capture", "continuum")
ON_POSTGRES = (*EVERYWHERE, "statement_triggers", "row_triggers", "postgresql_audit")

BASELINES = {"statement_triggers": "trigger", "row_triggers": "trigger"}
"""What a way is called in the JSON; the rest by their own names."""


class Runner:
    """A way in its process."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        sync = url.replace("+asyncpg", "+psycopg")
        command = [sys.executable, str(ROOT / "benchmarks" / "ways.py"), name, url, sync]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with code {self._process.wait()}; its error stands above")
        return line

    def run(self, operation: str, rows: int) -> tuple[float, int]:
        """Seconds of one transaction (or the number of events that it has kept), and bytes of memory at the peak."""
        answer, peak = self._ask(operation, rows, 1)
        return float(answer), int(peak)

    def turn(self, operations: Sequence[str], rows: int, times: int) -> list[float]:
        """Seconds of one transaction of each operation: the medians, where all of them run several times over."""
        return [*map(float, self._ask(",".join(operations), rows, times)[:-1])]

    def _ask(self, operations: str, rows: int, times: int) -> list[str]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{operations} {rows} {times}\n")
        self._process.stdin.flush()
        return self._line().split()

    def close(self) -> None:
        self._process.communicate()


@dataclass
class Case:
    """Seconds of one operation on so many rows, by way."""

    label: str
    operation: str
    rows: int
    times: dict[str, list[float]] = field(default_factory=dict)

    def median(self, way: str) -> float:
        return statistics.median(self.times[way])

    def ratio(self, way: str, baseline: str) -> float:
        """Median of the rounds' own ratios: what slows the machine down for a while slows both."""
        return statistics.median(a / b for a, b in zip(self.times[way], self.times[baseline], strict=False))

    def figures(self) -> Iterator[Figure]:
        """Our time over every other way's; then what each adds to no capture."""
        ours = self.median("capture")
        name = f"{self.label} {self.operation} {self.rows}"
        for way in self.times:
            if way != "capture":
                suffix = {"row_triggers": " (row triggers)"}.get(way, "")
                yield Figure(
                    name + suffix, ours / self.rows * 1e6, "us/row", BASELINES.get(way, way), self.ratio("capture", way)
                )
        if "continuum" in self.times:
            added, theirs = self.ratio("capture", "none") - 1, self.ratio("continuum", "none") - 1
            yield Figure(f"{name} overhead", added * 100, "% of none", "continuum", added / theirs)

    def line(self) -> str:
        """Every way over no capture, side by side."""
        ratios = "  ".join(f"{way} {self.ratio(way, 'none'):.2f}" for way in self.times)
        return f"{self.label} {self.operation} {self.rows}: {self.median('none') / self.rows * 1e6:.1f} us/row; over none: {ratios}"


def measure(ways: list[Runner], cases: list[Case], rounds: int, turns: int, order: Random) -> None:
    """Cases of one number of rows. A turn inserts, changes and removes the same rows; Continuum's of 10,000 comes only once."""
    rows, operations = cases[0].rows, [case.operation for case in cases]
    for number in range(rounds + 1):
        for way in order.sample(ways, len(ways)):
            if way.name == "continuum" and rows >= 10_000 and number != 1:
                continue
            seconds = way.turn(operations, rows, turns)
            if number:  # the first round fills caches
                for case, one in zip(cases, seconds, strict=True):
                    case.times.setdefault(way.name, []).append(one)


def same_events(ways: list[Runner]) -> None:
    """Nobody is fast by doing nothing."""
    counts = {way.name: int(way.run("count", 0)[0]) for way in ways if way.name not in ("none", "continuum")}
    if len(set(counts.values())) != 1 or not all(counts.values()):
        raise SystemExit(f"not all have kept the same number of events: {counts}")


def portions(label: str, make_url: Callable[[str], str], rows: int) -> Iterator[Figure]:
    """One large transaction: time, and how far memory rises above that of the same process at work on one portion."""
    seconds, rises = {}, {}
    for name in ("none", "capture"):
        way = Runner(name, make_url(f"portions_{name}"))
        way.run("portions", 10_000)
        way.run("set_delete", 0)
        _, before = way.run("count", 0)
        seconds[name], after = way.run("portions", rows)
        rises[name] = (after - before) / 2**20
        way.close()
    yield Figure(f"{label} portions {rows}", seconds["capture"] / rows * 1e6, "us/row", "none", seconds["capture"] / seconds["none"])
    for name, rise in rises.items():
        yield Figure(f"{label} portions {rows} memory ({name})", rise, "MiB")


@contextmanager
def processes(
    label: str, make_url: Callable[[str], str], number: object, options: argparse.Namespace, only: Sequence[str] = ON_POSTGRES
) -> Iterator[list[Runner]]:
    """A process for each way, as long as the block."""
    names = [name for name in (EVERYWHERE if label == "sqlite" else ON_POSTGRES) if name in only]
    with ExitStack() as stack:
        ways = [Runner(name, make_url(f"{name}_{number}")) for name in names if name not in options.without.split(",")]
        for way in ways:
            stack.callback(way.close)
        yield ways


def figures(label: str, make_url: Callable[[str], str], options: argparse.Namespace) -> Iterator[Figure]:
    """All of one database and driver."""
    number, order = 0, Random(1)
    for rows in map(int, options.rows.split(",")):
        cases = [Case(label, operation, rows) for operation in OPERATIONS]
        sets = [Case(label, operation, rows) for operation in SETS]
        for turn in range(options.sets or SETS_OF_PROCESSES.get(rows, 1)):
            number += 1
            with processes(label, make_url, number, options) as ways:
                if rows >= 10_000 and (turn or label == SLOW):
                    ways = [way for way in ways if way.name != "continuum"]
                if rows >= 10_000 and label == SLOW:  # a single UPDATE may take it nine minutes, amid the rounds of the others
                    ways = [way for way in ways if way.name != "postgresql_audit"]
                measure(ways, cases, options.rounds or ROUNDS.get(rows, 3), options.turns or TURNS.get(rows, 1), order)
                same_events(ways)
                if rows >= 10_000 and not turn:  # PostgreSQL-Audit may take minutes for one of these
                    seeing = [way for way in ways if way.name not in ("continuum", "hand_written")]  # which do not see these
                    measure(seeing, sets, options.rounds or 3, 1, order)
        for case in [*cases, *sets]:
            if case.times:
                print(case.line(), file=sys.stderr, flush=True)
                yield from case.figures()


def apart(label: str, make_url: Callable[[str], str], options: argparse.Namespace) -> Iterator[Figure]:
    """Continuum's transactions of 10,000 rows where each takes minutes: once, and not amid the rounds of the others."""
    if "continuum" in options.without.split(",") or "10000" not in options.rows.split(","):
        return
    cases = [Case(label, operation, 10_000) for operation in OPERATIONS]
    with processes(label, make_url, "apart", options, ("none", "capture", "continuum")) as ways:
        measure(ways, cases, 1, 1, Random(1))
    for case in cases:
        print(case.line(), file=sys.stderr, flush=True)
        yield from (figure for figure in case.figures() if figure.baseline == "continuum")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default=os.environ.get("JSON"))
    parser.add_argument("--rounds", type=int, default=0, help="rounds for each set of processes; 0: 10, 4 and 3 for 1, 100 and 10,000 rows")
    parser.add_argument("--sets", type=int, default=0, help="sets of processes; 0: 9, 4 and 2 for 1, 100 and 10,000 rows")
    parser.add_argument("--turns", type=int, default=0, help="transactions of each kind in a turn; 0: 10, 3 and 1 for 1, 100 and 10,000 rows")
    parser.add_argument("--rows", default="1,100,10000")
    parser.add_argument("--only", default="", help="part of a database's label: sqlite, psycopg, asyncpg")
    parser.add_argument("--without", default="", help="ways to leave out, as continuum,postgresql_audit")
    parser.add_argument("--portions", type=int, default=1_000_000, help="rows of the one large transaction; 0: none")
    options = parser.parse_args()
    started, found = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder, database_urls(Path(folder)) as urls:
        for label, make_url in urls.items():
            if options.only in label:
                found += figures(label, make_url, options)
                found += apart(label, make_url, options) if label == SLOW else ()
                if options.portions and label != SLOW:
                    found += portions(label, make_url, options.portions)
    publish(found, options.json)
    print(f"{time.perf_counter() - started:.0f} seconds")


if __name__ == "__main__":
    main()

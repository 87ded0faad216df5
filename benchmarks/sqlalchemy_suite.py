"""SQLAlchemy's own tests with the hooks on every engine: which fail, and whether the events replay to the same tables.

    python benchmarks/sqlalchemy_suite.py [--database sqlite|postgresql|aiosqlite|asyncpg|all] [--json FILE] [test/orm/test_session.py ...]

``all`` are SQLite and PostgreSQL. Through the asyncio drivers nothing is replayed: the question is what a test sees.
The version is that of the SQLAlchemy that is installed; its tests come from PyPI. What fails with the hooks runs once more
without them, and once more with hooks whose SELECTs no listener sees. Ends with 1 if a replay differs, or if a test fails that
passes without hooks; but for those that see a SELECT of ours and are listed in benchmarks/suite/excused-<line>.txt. See docs/proof.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.suite import sdist
from benchmarks.suite.mutants import MUTANTS
from benchmarks.suite.outcome import Outcome, Record, compared, failed, read_excuses, records, table, write_excuses
from benchmarks.suite.postgresql import PostgreSQL
from tests.servers.postgres import PostgresServer

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".sqlalchemy-suite"
EXCUSED = Path(__file__).parent / "suite" / f"excused-{sdist.LINE}.txt"
WRITING = (
    "association", "bind", "cascade", "composites", "cycles", "defaults", "deferred", "dynamic", "events", "expire", "manytomany", "merge",
    "naturalpks", "onetoone", "relationships", "scoping", "session", "sync", "transaction", "unitofwork", "unitofworkv2", "versioning",
)  # fmt: skip
"""Modules of test/orm that write most; what they leave out reads, or makes mappers."""
INHERITING = ("abc_inheritance", "assorted_poly", "basic", "concrete", "magazine", "manytomany", "poly_linked_list", "poly_persistence", "productspec", "single")
MODULES = {
    "sqlite": ("test/orm", "test/ext"),
    "postgresql": (
        "test/orm/dml",
        *(f"test/orm/test_{name}.py" for name in WRITING),
        *(f"test/orm/inheritance/test_{name}.py" for name in INHERITING),
        "test/ext/test_mutable.py",
        "test/ext/test_horizontal_shard.py",
    ),
}

UNREPLAYED = dict.fromkeys(("aiosqlite", "asyncpg"), (*MODULES["postgresql"], "test/ext/asyncio"))
"""By driver."""


class UntouchedPostgres(PostgresServer):
    """PostgreSQL that does not vacuum meanwhile: some of the tests take rows to come back in the order of their insertion."""

    @property
    def command(self) -> list[str | Path]:  # type: ignore[override]
        return [*super().command, "-c", "autovacuum=off"]


@contextmanager
def database_url(database: str) -> Iterator[str]:
    """Where the tests run: SQLite in memory, or a PostgreSQL of their own, prepared as SQLAlchemy's tests want it."""
    if database.endswith("sqlite"):
        yield "sqlite://" if database == "sqlite" else "sqlite+aiosqlite://"
        return
    server = UntouchedPostgres()
    server.start()
    try:
        with server.connect() as connection:
            connection.execute("CREATE DATABASE test")
        with server.connect("test") as connection:
            connection.execute("CREATE SCHEMA test_schema")
            connection.execute("CREATE SCHEMA test_schema_2")
            connection.execute("CREATE EXTENSION hstore")
            connection.execute("CREATE EXTENSION citext")
            PostgreSQL().prepare(connection)
        yield server.url("psycopg" if database == "postgresql" else database, "test")
    finally:
        server.remove()


def run(database: str, tests: list[str], jobs: int, *options: str) -> dict[str, Record]:
    """Run tests in a process of their own; the record of each."""
    source = sdist.tests(CACHE)
    folder = CACHE / f"run-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "records").mkdir(parents=True)
    environment = os.environ | {"PYTHONNOUSERSITE": "1", "PYTHONPATH": str(ROOT)}
    workers = ["-n", str(jobs), "--dist", "worksteal"] if jobs > 1 else []
    with database_url(database) as url, (folder / "log").open("w") as log:
        command = [
            sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.suite.plugin", "-p", "no:timeout", "-p", "no:asyncio", "-p", "no:hypothesispytest",
            "-c", str(source / "pyproject.toml"), "--rootdir", str(source), "-o", "addopts=-p warnings -p logging --strict-markers",
            "--dburi", url, "--suite-record", str(folder / "records"), *workers, *options, *(str(source / test) for test in tests),
        ]  # fmt: skip
        done = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=False)
    end = (folder / "log").read_text()[-3000:]
    if done.returncode not in (0, 1):
        raise SystemExit(f"pytest ended with {done.returncode}:\n{end}")
    found = records(folder / "records")
    passed = sum(record["outcome"] == "passed" for record in found.values())
    if (said := re.search(r"(\d+) passed", end)) and int(said[1]) != passed:
        raise SystemExit(f"{said[1]} tests have passed, but {passed} are recorded: a worker broke off\n{end}")
    shutil.rmtree(folder)
    return found


def failing(database: str, tests: list[str], *options: str) -> set[str]:
    """Run some tests by their names, and say which fail."""
    if not tests:
        return set()
    only = CACHE / f"only-{os.getpid()}"
    only.write_text("\n".join(tests))
    try:
        found = run(database, sorted({test.partition("::")[0] for test in tests}), 1, f"--suite-only={only}", *options)
    finally:
        only.unlink()
    return {test for test, record in found.items() if failed(record)}


def prove(database: str, options: argparse.Namespace) -> Outcome:
    """Run with hooks, and what fails once more without, and once more with hooks whose SELECTs no listener sees."""
    mutant = [f"--suite-mutant={options.mutant}"] if options.mutant else []
    hooked = run(database, options.modules or list((MODULES | UNREPLAYED)[database]), options.jobs, "--suite-hooks", *mutant)
    bad = {test: record["test"] for test, record in hooked.items() if failed(record)}
    bare = failing(database, list(bad.values()))
    unseen = failing(database, list(bad.values()), "--suite-hooks", "--suite-unseen")
    return compared(database, hooked, bare, bad.keys() - unseen, read_excuses(EXCUSED))


def tell(outcome: Outcome) -> None:
    """What the numbers do not say."""
    for record in outcome.failing:
        last = [line for line in record["text"].splitlines() if line.strip()][-1:]
        print(f"FAILED {record['test']}\n    {''.join(last)[:300]}")
    for record in outcome.differing:
        print(f"DIFFERS {record['test']}")
        print("\n".join(f"    {line[:300]}" for line in record["differences"][:6]))
    for record in outcome.gaps:
        print(f"GAP {record['test']}: {record['gaps'][0][:150]}")
    for record in outcome.unchecked:
        print(f"NOT CHECKED {record['test']}: {record['unchecked'][0][:150]}")
    if outcome.stale:
        print(f"excused, and pass on {outcome.database}: {len(outcome.stale)}")


def accept(outcomes: list[Outcome]) -> None:
    """Add to the list what fails only because it sees SELECTs of ours."""
    excuses = read_excuses(EXCUSED)
    for outcome in outcomes:
        excuses.update(dict.fromkeys(outcome.unlisted, "sees a SELECT of ours"))
    write_excuses(excuses, EXCUSED)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--database", choices=[*MODULES, *UNREPLAYED, "all"], default="all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", help="write the figures there")
    parser.add_argument("--mutant", choices=[name for name in MUTANTS if name], help="damage the events: the run must notice")
    parser.add_argument("--accept", action="store_true", help="list new failures of tests that pass where no listener sees our SELECTs")
    parser.add_argument("modules", nargs="*", help="files or folders of SQLAlchemy's tests; all that concern it where none is given")
    options = parser.parse_args()
    CACHE.mkdir(exist_ok=True)
    started = time.monotonic()
    outcomes = [prove(database, options) for database in (MODULES if options.database == "all" else [options.database])]
    for outcome in outcomes:
        tell(outcome)
    print(f"SQLAlchemy {sdist.VERSION}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}, {time.monotonic() - started:.0f} s")
    print(table(outcomes))
    if options.accept:
        accept(outcomes)
    if options.json:
        Path(options.json).write_text(json.dumps({"sqlalchemy": sdist.VERSION, "databases": [asdict(one) for one in outcomes]}, indent=1) + "\n")
    return 0 if all(outcome.good for outcome in outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main())

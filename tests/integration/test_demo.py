"""``make demo`` as somebody runs it who has just cloned the repository."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter

import pytest
import sqlalchemy as sa

from sqla_events.demo.tally import Sum, add_up

LAST = re.compile(r"captured = delivered \+ dead: (\d+) = (\d+) \+ (\d+)\n0 lost\n\Z")


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sqla_events", "demo", *arguments], capture_output=True, text=True, timeout=90, check=False
    )


def check(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    last = LAST.search(done.stdout)
    assert last, done.stdout
    captured, delivered, dead = map(int, last.groups())
    assert captured == delivered + dead
    assert (captured, dead) == (413, 1)
    assert "(exit code -9)" in done.stdout
    assert "charged 13.00 at attempt 3" in done.stdout
    assert "handled although rolled back = 0" in done.stdout
    assert "#666" not in done.stdout


def test_on_sqlite() -> None:
    """Without any argument: exit code 0, and the books balance."""
    check(demo())


def test_on_postgresql_and_it_leaves_nothing(postgres_url: str) -> None:
    """With --url, beside an application's tables: the same, and afterwards the database is as before."""
    engine = sa.create_engine(postgres_url)
    before = sorted(sa.inspect(engine).get_table_names())
    check(demo("--url", postgres_url))
    assert sorted(sa.inspect(engine).get_table_names()) == before
    engine.dispose()


def test_it_refuses_a_database_with_tables_of_these_names(sqlite_url: str) -> None:
    """They might be somebody's: one line, exit code 1, nothing dropped."""
    engine = sa.create_engine(sqlite_url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE shop_users (id INTEGER)"))
    done = demo("--url", sqlite_url)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"Error: .*shop_users.*\n", done.stderr)
    assert sa.inspect(engine).has_table("shop_users")
    engine.dispose()


LOG = [("1", "a.b.create"), ("2", "a.b.delete")]
ALL = {("x", "1"): 1, ("x", "2"): 1, ("y", "1"): 1}


@pytest.mark.parametrize(
    ("handled", "dead", "expected", "right"),
    [
        (ALL, set(), Sum(2, 2, 0, 0, 0), True),
        ({**ALL, ("x", "2"): 3}, set(), Sum(2, 2, 0, 2, 0), True),
        ({("x", "1"): 1, ("x", "2"): 1}, {("y", "1")}, Sum(2, 1, 1, 0, 0), True),
        ({("x", "1"): 1, ("x", "2"): 1}, set(), Sum(2, 1, 0, 0, 0), False),
        ({("y", "1"): 1, ("x", "2"): 1}, {("y", "1")}, Sum(2, 1, 0, 0, 0), False),
        ({**ALL, ("x", "3"): 1}, set(), Sum(2, 2, 0, 0, 1), False),
    ],
    ids=["whole", "repeated", "dead", "lost", "lost by the other subscription", "of a rollback"],
)
def test_the_sum_finds_what_is_wrong(handled: dict[tuple[str, str], int], dead: set[tuple[str, str]], expected: Sum, right: bool) -> None:
    """An event lost by one subscription, or handled without being in the log, turns the demo red."""
    found = add_up(LOG, dead, Counter(handled), {"x": ("*",), "y": ("*.*.create",)})
    assert (found, found.right) == (expected, right)

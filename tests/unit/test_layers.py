"""Imports point down: the architecture, as a test. What may import what is in RANKS and nowhere else."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "sqla_events"
RANKS = {
    0: {"event", "event_type", "errors", "encoding"},
    1: {"position", "filter", "retry", "schema", "provider", "signals", "hooked", "context", "bridge", "settings", "wire", "cloudevents"},
    2: {"config", "log", "deliveries", "subscription", "groups", "upcasting", "providers", "capture.settings"},
    3: {"capture", "relay", "consumer", "jobs", "workers", "upkeep"},
    4: {"broker", "inspection", "lifecycle", "publisher", "publishing", "replaying", "runtime", "triggers"},
    5: {"install", "cli", "metrics", "dashboard", "demo", "testing", "alembic", "autogenerate", "__main__"},
}
RANK = {part: rank for rank, parts in RANKS.items() for part in parts}
FACADE = "__init__"
"""The public names: imports everything and is imported by nobody."""

MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """Dotted name below the package: ``log.reader``; of a package its own name: ``log``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def rank_of(module: str) -> int:
    """That of the module itself where it has one (``capture.settings``), else of its package; a KeyError: give it one."""
    return RANK[module] if module in RANK else RANK[top(module)]


def top(module: str) -> str:
    return module.partition(".")[0]


@cache
def imports(path: Path) -> frozenset[str]:
    """Our modules that a file imports at run time, wherever in it, except under TYPE_CHECKING."""
    here = ["sqla_events", *path.relative_to(PACKAGE).parts[:-1]]
    found = {target for node in ast.walk(ast.parse(path.read_text())) for target in targets(node, here)}
    names = {name_of(module) for module in MODULES}
    return frozenset(target if target in names else target.rpartition(".")[0] or FACADE for target in found)


def targets(node: ast.AST, here: list[str]) -> list[str]:
    if isinstance(node, ast.Import):
        full = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        base = [*here[: len(here) - node.level + 1]] if node.level else []
        module = ".".join([*base, *([node.module] if node.module else [])])
        full = [f"{module}.{alias.name}" for alias in node.names]
    else:
        full = []
    return [name.removeprefix("sqla_events").removeprefix(".") for name in full if top(name) == "sqla_events"]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    """No module imports one above it, and nobody but the edges imports the façade or the tests' package."""
    module = name_of(path)
    if module == FACADE:
        return
    rank = rank_of(module)
    above = {other for other in imports(path) - {FACADE} if rank_of(other) > rank}
    assert not above
    assert rank == 5 or FACADE not in imports(path)
    if top(module) != "testing":
        assert "testing" not in {top(other) for other in imports(path)}


def test_nothing_imports_itself_in_a_circle() -> None:
    """Whichever module is imported first, the others are whole when it needs them."""
    order = TopologicalSorter({name_of(path): imports(path) - {name_of(path)} for path in MODULES})
    order.prepare()


def test_the_loops_do_not_know_each_other() -> None:
    """Capture, relay and consumer meet in the broker only."""
    names = {"capture", "relay", "consumer"}
    for path in MODULES:
        if (loop := top(name_of(path))) in names:
            assert {top(other) for other in imports(path)} & names <= {loop}

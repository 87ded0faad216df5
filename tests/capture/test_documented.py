"""docs/capture.md: each line of its table names tests that are there, and each write path is in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import registry

from tests.capture.conftest import Stage
from tests.capture.model import Tag
from tests.capture.test_write_paths import PATHS

ROOT = Path(__file__).parents[2]
LINES = [line.split(" | ") for line in (ROOT / "docs" / "capture.md").read_text().splitlines() if re.match(r"\| .+ \| .*\w+\.\w+.* \|$", line)]
FILES = {path.stem.removeprefix("test_"): path.read_text() for folder in ("capture", "triggers") for path in (ROOT / "tests" / folder).glob("test_*.py")}


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[0].removeprefix("| ")[:40])
def test_a_line_is_tested(line: list[str]) -> None:
    """Every test that it names exists."""
    named = re.findall(r"(\w+)\.(\w+)", line[-1])
    assert named
    for file, function in named:
        assert re.search(rf"^(async )?def {function}\(", FILES[file], re.MULTILINE), f"{file}.{function}"


def test_every_write_path_has_its_line() -> None:
    """Nothing is tested of which the table says nothing."""
    named = {name for line in LINES for _, name in re.findall(r"(\w+)\.(\w+)", line[-1])}
    assert len(LINES) >= 29
    assert {path.__name__ for path in PATHS} <= named


@pytest.mark.parametrize("old_values", ["known", "always", "never"])
def test_what_is_known_before(stage: Stage, old_values: str) -> None:
    """Of set-based and many UPDATEs and DELETEs, on each server: ``old_values`` switches it."""
    stage.hook(old_values=old_values)
    table = Tag.__table__
    with stage.session() as session, session.begin():
        session.execute(sa.insert(Tag), [{"id": n, "name": f"t{n}"} for n in range(1, 7)])
        session.execute(sa.update(Tag).where(Tag.id == 1).values(name="a"), execution_options={"synchronize_session": False})
        many = [{"which": "t2", "new": "b"}, {"which": "t3", "new": "c"}]
        session.connection().execute(table.update().where(table.c.name == sa.bindparam("which")).values(name=sa.bindparam("new")), many)
        session.execute(sa.delete(Tag).where(Tag.id == 4))
        session.connection().execute(table.delete().where(table.c.name == sa.bindparam("which")), [{"which": "t5"}, {"which": "t6"}])
    updates = [event.before for event in stage.check() if event.operation == "update"]
    deletes = [event.before for event in stage.events() if event.operation == "delete"]
    assert updates == ([{"name": f"t{n}"} for n in (1, 2, 3)] if old_values == "always" else [{}] * 3)
    assert deletes == ([{}] * 3 if old_values == "never" else [{"id": n, "name": f"t{n}"} for n in (4, 5, 6)])


def test_concrete_inheritance(stage: Stage) -> None:
    """A table for each class, with all of its columns."""
    mapping = registry()
    shapes = sa.Table("shapes", mapping.metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(10)))
    circles = sa.Table("circles", mapping.metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(10)), sa.Column("radius", sa.Integer))
    shape = type("Shape", (), {})
    circle = type("Circle", (shape,), {})
    mapping.map_imperatively(shape, shapes)
    mapping.map_imperatively(circle, circles, inherits=shape, concrete=True)
    stage.create(mapping.metadata)
    stage.hook()
    with stage.session() as session, session.begin():
        one, two = shape(), circle()
        one.name, two.name, two.radius = "a", "b", 1
        session.add_all([one, two])
        session.flush()
        two.radius = 2
        session.flush()
        session.execute(sa.update(circle).values(name="c"))
        session.execute(sa.update(circle), [{"id": 1, "radius": 3}])
        session.delete(one)
    assert [event.entity for event in stage.check(mapping.metadata)].count("circles") == 4

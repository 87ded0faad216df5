"""Upserts: whether a row was inserted or updated, and what it was before."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from tests.capture.conftest import Stage
from tests.capture.model import Seat, Tag

Told = list[tuple[str, str | None, Any]]


def told(stage: Stage) -> Told:
    return [(event.operation, event.key, event.before.get("guest", "?") if event.before else None) for event in stage.check()[1:]]


def upsert(stage: Stage, how: str) -> None:
    make: Any = postgresql.insert if stage.engine.dialect.name == "postgresql" else sqlite.insert
    rows = [{"row": "A", "number": 1, "guest": "new"}, {"row": "B", "number": 2, "guest": "in"}]
    with stage.engine.begin() as connection:
        connection.execute(sa.insert(Seat), {"row": "A", "number": 1, "guest": "old"})
        insert = make(Seat)
        clause = {"index_elements": ["row", Seat.number], "set_": {"guest": insert.excluded.guest}}
        if how == "values":
            connection.execute(insert.values(rows).on_conflict_do_update(**clause))
        elif how == "many":
            connection.execute(insert.on_conflict_do_update(**clause), rows)
        elif how == "returning":
            done = connection.execute(insert.values(rows).on_conflict_do_update(**clause).returning(Seat.guest))
            assert done.scalars().all() == ["new", "in"]
        else:
            for row in rows:
                connection.execute(insert.values(**row).on_conflict_do_update(**clause))


@pytest.mark.parametrize("how", ["values", "many", "returning", "one by one"])
def test_with_old_values_both_databases_tell(stage: Stage, how: str) -> None:
    """``old_values: always``."""
    stage.hook(old_values="always")
    upsert(stage, how)
    assert told(stage) == [("update", '["A",1]', "old"), ("create", '["B",2]', None)]


def test_without_it_postgresql_tells_the_operation_and_sqlite_says_that_it_does_not_know(stage: Stage) -> None:
    """``xmax`` or ``old``; ``"upsert": true``."""
    stage.hook()
    upsert(stage, "values")
    first, second = stage.check()[1:]
    if stage.engine.dialect.name == "postgresql":
        assert (first.operation, second.operation) == ("update", "create")
        assert "upsert" not in first.payload
    else:
        assert (first.operation, second.operation) == ("create", "create")
        assert first.payload["upsert"] is second.payload["upsert"] is True


def test_one_row_twice(sqlite_url: str) -> None:
    """The first set inserts it, the second finds it. (PostgreSQL refuses this.)"""
    engine = sa.create_engine(sqlite_url)
    Tag.metadata.create_all(engine)
    stage = Stage(engine, engine)
    broker = stage.hook(old_values="always")
    insert = sqlite.insert(Tag)
    statement = insert.on_conflict_do_update(index_elements=[Tag.id], set_={"name": insert.excluded.name})
    with engine.begin() as connection:
        connection.execute(statement, [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}])
        connection.execute(insert.values([{"id": 1, "name": "c"}, {"id": 2, "name": sa.func.lower("D")}]).on_conflict_do_update(
            index_elements=[Tag.id], set_={"name": insert.excluded.name}))
    assert [(event.operation, event.key, event.before) for event in stage.events()] == [
        ("create", "1", {}), ("update", "1", {"id": 1, "name": "a"}), ("update", "1", {"id": 1, "name": "b"}), ("create", "2", {}),
    ]  # fmt: skip
    broker.uninstall()
    engine.dispose()


def test_where_the_parameters_do_not_tell(stage: Stage) -> None:
    """A key that is an expression, or that the update itself changes: no more is said than the database says."""
    stage.hook(old_values="always")
    make: Any = postgresql.insert if stage.engine.dialect.name == "postgresql" else sqlite.insert
    with stage.engine.begin() as connection:
        connection.execute(sa.insert(Seat), {"row": "A", "number": 1, "guest": "old"})
        for values in ({"row": "A", "number": sa.text("1")}, {"row": "A", "number": 1}):
            insert = make(Seat).values(guest="x", **values)
            connection.execute(insert.on_conflict_do_update(index_elements=["row", "number"], set_={"guest": "y", "number": 1}))
    if stage.engine.dialect.name == "sqlite":
        assert all(event.payload["upsert"] for event in stage.check()[1:])

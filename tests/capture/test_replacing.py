"""Rows that make way for others: upserts that change a key, and what SQLite's REPLACE removes. Seen, or a reported gap."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from sqla_events import CaptureError
from tests.capture.conftest import Stage

metadata = sa.MetaData()
people = sa.Table(
    "mailboxes", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("email", sa.String(20), unique=True),
    sa.Column("n", sa.Integer, server_default="1"),
)  # fmt: skip
replaced = sa.Table(
    "replaced", metadata, sa.Column("id", sa.Integer, primary_key=True, sqlite_on_conflict_primary_key="REPLACE"),
    sa.Column("x", sa.String(5), nullable=False, server_default="d", sqlite_on_conflict_not_null="REPLACE"),
)  # fmt: skip
pushed = sa.Table(
    "pushed", metadata, sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("x", sa.String(5), unique=True, sqlite_on_conflict_unique="REPLACE"),
)  # fmt: skip


@pytest.fixture
def made(stage: Stage) -> Stage:
    stage.create(metadata)
    return stage


def insert(stage: Stage) -> Any:
    return postgresql.insert(people) if stage.engine.dialect.name == "postgresql" else sqlite.insert(people)


def fill(connection: sa.Connection) -> None:
    connection.execute(people.insert(), [{"id": number, "email": f"e{number}"} for number in (1, 2, 3)])


@pytest.mark.parametrize("old_values", ["known", "always"])
def test_an_upsert_of_all_columns(made: Stage, old_values: str) -> None:
    """The row of the conflict gets the new key; its event is of the old one."""
    made.hook(old_values=old_values, on_gap="raise")
    statement = insert(made)
    change = statement.on_conflict_do_update(index_elements=["email"], set_={one.name: statement.excluded[one.name] for one in people.c})
    with made.engine.begin() as connection:
        fill(connection)
        connection.execute(change, {"id": 10, "email": "e1", "n": 5})
        connection.execute(change, [{"id": 20, "email": "e2", "n": 6}, {"id": 40, "email": "e4", "n": 7}])
    events = made.check(metadata)[3:]
    assert [(event.operation, event.key, event.after["id"]) for event in events] == [("update", "1", 10), ("update", "2", 20), ("create", "40", 40)]


@pytest.mark.parametrize("old_values", ["known", "always"])
def test_an_upsert_that_sets_the_key_to_what_it_is(made: Stage, old_values: str) -> None:
    """No key changes: no gap."""
    made.hook(old_values=old_values, on_gap="raise")
    statement = insert(made)
    change = statement.on_conflict_do_update(index_elements=["id"], set_={one.name: statement.excluded[one.name] for one in people.c})
    own = insert(made).on_conflict_do_update(index_elements=["email"], set_={"id": people.c.id, "n": 9})
    with made.engine.begin() as connection:
        fill(connection)
        connection.execute(change, {"id": 1, "email": "new", "n": 5})
        connection.execute(own, {"id": 50, "email": "e2", "n": 6})
    keys = [(event.operation, event.key) for event in made.check(metadata)[3:]]
    told = old_values == "always" or made.engine.dialect.name == "postgresql"
    assert keys == [("update" if told else "create", key) for key in "12"]


def test_an_upsert_that_changes_the_key_of_its_own_conflict(made: Stage) -> None:
    """Where the row as it was is not told, nobody knows which it was."""
    made.hook(on_gap="raise")
    change = insert(made).values(id=1).on_conflict_do_update(index_elements=["id"], set_={"id": 500})
    recent = made.engine.dialect.name == "postgresql" and (made.engine.dialect.server_version_info or ()) >= (18,)
    with made.engine.begin() as connection:
        fill(connection)
        if recent:
            connection.execute(change)
        else:
            with pytest.raises(CaptureError, match="changes the key"):
                connection.execute(change)
    made.check(metadata)


def on_sqlite(stage: Stage) -> None:
    if stage.engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL has no REPLACE")


def test_rows_that_are_replaced_under_their_own_key(made: Stage) -> None:
    """An upsert. A NULL that the default replaces is the default."""
    on_sqlite(made)
    made.hook(on_gap="raise")
    with made.engine.begin() as connection:
        connection.execute(replaced.insert(), {"id": 1, "x": "a"})
        connection.execute(replaced.insert(), {"id": 1, "x": "b"})
        connection.execute(replaced.insert(), [{"id": 1, "x": None}, {"id": 2, "x": None}])
        connection.execute(replaced.insert().prefix_with("OR REPLACE"), {"id": 2, "x": "c"})
        connection.execute(replaced.update().where(replaced.c.id == 1).values(x=None))
    assert [event.after["x"] for event in made.check(metadata)] == ["a", "b", "d", "d", "c", "d"]


def test_rows_that_are_in_the_way(made: Stage) -> None:
    """Nothing tells which they are: not in silence."""
    on_sqlite(made)
    made.hook(on_gap="raise")
    with made.engine.begin() as connection:
        fill(connection)
        for write in (
            people.insert().prefix_with("OR REPLACE").values(id=9, email="e1"),
            people.update().prefix_with("OR REPLACE").where(people.c.id == 2).values(email="e1"),
            pushed.insert().values(id=1, x="a"),
            replaced.update().where(replaced.c.id == 5).values(id=1),
        ):
            with pytest.raises(CaptureError, match="REPLACE"):
                connection.execute(write)
        connection.execute(people.update().prefix_with("OR IGNORE").where(people.c.id == 2).values(email="e1"))
        connection.execute(people.delete().where(people.c.id == 3))
    made.check(metadata)

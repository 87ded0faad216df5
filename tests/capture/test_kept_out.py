"""Rows that are kept out of a table, or stay what they were, and how that is told: by counts, or by the rows that come back."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_events import install_crud_hooks
from sqla_events.signals import Gap
from tests.capture.conftest import Stage


class Apart(DeclarativeBase):
    """Not the other tests'."""


class Guest(Apart):
    """The application makes its key, and nothing is left to the database."""

    __tablename__ = "guests"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    name: Mapped[str]


GUESTS: sa.Table = Guest.__table__  # type: ignore[assignment]
ADA, BOB = {"name": "Ada"}, {"name": "Bob"}

RETURNING: dict[str, Callable[[Session], Any]] = {
    "core": lambda s: s.connection().execute(GUESTS.insert().returning(GUESTS.c.id), ADA).all(),
    "core, key given": lambda s: s.connection().execute(GUESTS.insert().returning(GUESTS.c.name), {"id": uuid.UUID(int=1), **ADA}).all(),
    "core, not fetched": lambda s: s.connection().execute(GUESTS.insert().returning(GUESTS.c.id), ADA),
    "entity": lambda s: s.scalars(sa.insert(Guest).returning(Guest), ADA).all(),
    "entity, values": lambda s: s.scalars(sa.insert(Guest).values(ADA).returning(Guest)).all(),
    "one in a list": lambda s: s.scalars(sa.insert(Guest).returning(Guest.id), [ADA]).all(),
    "two": lambda s: s.scalars(sa.insert(Guest).returning(Guest.id), [ADA, BOB]).all(),
    "two in order": lambda s: s.scalars(sa.insert(Guest).returning(Guest.id, sort_by_parameter_order=True), [ADA, BOB]).all(),
    "from_statement": lambda s: s.scalars(sa.select(Guest).from_statement(sa.insert(Guest).returning(Guest)), ADA).all(),
    "behind a CTE": lambda s: s.connection().execute(_behind_a_cte(GUESTS.insert().returning(GUESTS.c.id)), ADA).all(),
}


def _behind_a_cte(statement: Any) -> Any:
    return statement.add_cte(sa.select(sa.literal(1).label("x")).cte("c"))


@pytest.mark.parametrize("way", RETURNING)
def test_an_insert_whose_caller_wants_rows(stage: Stage, way: str) -> None:
    """SQLite's driver counts no rows before they are fetched."""
    stage.create(Apart.metadata)
    stage.hook()
    with stage.session() as session:
        RETURNING[way](session)
        session.commit()
    names = [(event.after or {})["name"] for event in stage.check(Apart.metadata)]
    assert sorted(names) == (["Ada", "Bob"] if way.startswith("two") else ["Ada"])


@pytest.mark.parametrize("default", [None, "d"], ids=["", "server default"])
@pytest.mark.parametrize("returning", [False, True], ids=["", "returning"])
@pytest.mark.parametrize("keeper", ["constraint", "trigger"])
def test_an_insert_that_is_kept_out(stage: Stage, keeper: str, returning: bool, default: str | None) -> None:
    """Has no event, whatever else has to come back."""
    if stage.engine.dialect.name != "sqlite":
        pytest.skip("SQLite's")
    metadata = sa.MetaData()
    only = sa.UniqueConstraint("u", sqlite_on_conflict="IGNORE") if keeper == "constraint" else sa.UniqueConstraint("u")
    table = sa.Table(
        "kept_out", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("u", sa.Integer),
        sa.Column("d", sa.String, server_default=default), only,
    )  # fmt: skip
    stage.create(metadata)
    if keeper == "trigger":
        body = "WHEN new.u IN (SELECT u FROM kept_out) BEGIN SELECT RAISE(IGNORE); END"
        with stage.engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE TRIGGER keeps BEFORE INSERT ON kept_out {body}")
    stage.hook()
    insert = table.insert().returning(table.c.u) if returning else table.insert()
    with stage.engine.begin() as connection:
        for number in (1, 2):
            connection.execute(insert, {"id": number, "u": 1})
    assert [event.key for event in stage.check(metadata)] == ["1"]


def links() -> tuple[sa.MetaData, sa.Table]:
    metadata = sa.MetaData()
    return metadata, sa.Table(
        "links", metadata, sa.Column("item", sa.Integer, primary_key=True), sa.Column("tag", sa.Integer, primary_key=True)
    )


MERGES: dict[str, Callable[[sa.Connection, sa.Table], Any]] = {
    "one set": lambda c, t: c.execute(t.update().prefix_with("OR IGNORE").where(t.c.tag == 2).values(tag=1)),
    "two sets": lambda c, t: c.execute(
        t.update().prefix_with("OR IGNORE").where(t.c.tag == sa.bindparam("old")), [{"old": 2, "tag": 1}, {"old": 1, "tag": 3}]
    ),
    "none moves": lambda c, t: c.execute(t.update().prefix_with("OR IGNORE").where(t.c.item == 1, t.c.tag == 2).values(tag=1)),
}


@pytest.mark.parametrize("way", MERGES)
@pytest.mark.parametrize("old_values", ["known", "always"])
def test_rows_that_stay_where_they_are(stage: Stage, old_values: str, way: str) -> None:
    """UPDATE OR IGNORE that moves rows to other keys, of which some are taken."""
    if stage.engine.dialect.name != "sqlite":
        pytest.skip("SQLite's")
    metadata, table = links()
    stage.create(metadata)
    stage.hook(old_values=old_values)
    with stage.engine.begin() as connection:
        connection.execute(table.insert(), [{"item": 1, "tag": 1}, {"item": 1, "tag": 2}, {"item": 2, "tag": 2}])
        MERGES[way](connection, table)
    stage.check(metadata)


def test_rows_without_a_key_that_stay_are_a_gap(stage: Stage) -> None:
    """Which of them have changed nothing tells."""
    if stage.engine.dialect.name != "sqlite":
        pytest.skip("SQLite's")
    metadata = sa.MetaData()
    table = sa.Table("loose", metadata, sa.Column("item", sa.Integer), sa.Column("tag", sa.Integer), sa.UniqueConstraint("item", "tag"))
    stage.create(metadata)
    found: list[Any] = []
    stage.hook().signals.subscribe(found.append, Gap)
    with stage.engine.begin() as connection:
        connection.execute(table.insert(), [{"item": 1, "tag": 1}, {"item": 1, "tag": 2}, {"item": 2, "tag": 2}])
        connection.execute(table.update().prefix_with("OR IGNORE").where(table.c.tag == 2).values(tag=1))
    assert [gap.table for gap in found] == ["loose"]
    assert [event.operation for event in stage.events()] == ["create"] * 3


@pytest.mark.parametrize("verb", ["update", "delete"])
def test_by_key_behind_a_cte_that_matches_nothing(stage: Stage, verb: str) -> None:
    """SQLite's driver counts no rows of a statement that begins with WITH."""
    metadata, table = links()
    stage.create(metadata)
    stage.hook()
    place = table.c.item == sa.bindparam("i"), table.c.tag == sa.bindparam("t")
    statement: Any = table.update().where(*place).values(item=table.c.item) if verb == "update" else table.delete().where(*place)
    with stage.engine.begin() as connection:
        connection.execute(table.insert(), {"item": 1, "tag": 1})
        for number in (9, 1):
            connection.execute(_behind_a_cte(statement), {"i": number, "t": 1})
    assert [event.operation for event in stage.check(metadata)] == ["create", verb]


def test_counts_of_aiosqlite(sqlite_url: str) -> None:
    """DO NOTHING tells by them whether the row went in."""
    table = sa.Table(
        "counted", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("d", sa.String, server_default="d")
    )
    plain = sqlite.insert(table)

    async def counts(hooks: bool) -> list[int]:
        engine = create_async_engine(sqlite_url.replace("sqlite", "sqlite+aiosqlite", 1))
        broker = install_crud_hooks(engine) if hooks else None
        async with engine.begin() as connection:
            await connection.run_sync(table.metadata.create_all)
            await connection.execute(table.delete())
            statements = [plain, plain.on_conflict_do_nothing(), plain.on_conflict_do_update(index_elements=["id"], set_={"d": "e"})]
            found = [(await connection.execute(one, {"id": number})).rowcount for one, number in zip(statements, (1, 1, 1), strict=True)]
            found.append((await connection.execute(plain.values([{"id": 2}, {"id": 3}]))).rowcount)
        if broker is not None:
            broker.uninstall()
        await engine.dispose()
        return found

    assert asyncio.run(counts(hooks=True)) == asyncio.run(counts(hooks=False)) == [1, 0, 1, 2]

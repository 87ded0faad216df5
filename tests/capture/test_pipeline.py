"""In psycopg's pipeline, which an application has opened, the same events come of the same writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import create_async_engine

from sqla_events import EventFilter, install_crud_hooks
from sqla_events.capture import within

metadata = sa.MetaData()
things = sa.Table("things", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", sa.Integer), sa.Column("at", sa.Integer, onupdate=sa.text("7")))
parts = sa.Table(
    "parts", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("thing", sa.ForeignKey("things.id", ondelete="CASCADE"))
)
MANY = [{"k": number % 150, "n": number} for number in range(1, 400)]

Write = Callable[[sa.Connection], Any]
WRITES: dict[str, Write] = {
    "insert": lambda c: c.execute(things.insert(), {"id": 500, "n": 1}),
    "insert_many": lambda c: c.execute(things.insert(), [{"id": 500 + number, "n": 1} for number in range(40)]),
    "insert_values": lambda c: c.execute(things.insert().values([{"id": 500, "n": 1}, {"id": 501, "n": 1}])),
    "from_select": lambda c: c.execute(things.insert().from_select(["id", "n"], sa.select(things.c.id + 500, things.c.n))),
    "update": lambda c: c.execute(things.update().where(things.c.n > 0).values(n=5)),
    "update_twice": lambda c: [c.execute(things.update().values(n=things.c.n + 1)) for _ in range(2)],
    "update_nothing": lambda c: c.execute(things.update().where(things.c.n < 0).values(n=5)),
    "update_moving": lambda c: c.execute(things.update().where(things.c.id > 5).values(id=things.c.id + 1000)),
    "update_by_key": lambda c: c.execute(things.update().where(things.c.id == sa.bindparam("k")), {"k": 1, "n": 9}),
    "update_of_nothing_by_key": lambda c: c.execute(things.update().where(things.c.id == sa.bindparam("k")), {"k": 999, "n": 9}),
    "update_many": lambda c: c.execute(things.update().where(things.c.id == sa.bindparam("k")), MANY),
    "update_many_plain": lambda c: c.execute(parts.update().where(parts.c.id == sa.bindparam("k")), [{"k": k, "thing": 2} for k in (1, 99, 2)]),
    "update_many_sets": lambda c: c.execute(things.update().where(things.c.id < sa.bindparam("k")), [{"k": 3, "n": 1}, {"k": 2, "n": 2}]),
    "delete": lambda c: c.execute(parts.delete().where(parts.c.id > 0)),
    "delete_by_key": lambda c: c.execute(parts.delete().where(parts.c.id == sa.bindparam("k")), {"k": 1}),
    "delete_many": lambda c: c.execute(parts.delete().where(parts.c.id == sa.bindparam("k")), [{"k": k} for k in (1, 99, 2)]),
    "cascade": lambda c: c.execute(things.delete().where(things.c.id == 1)),
    "upsert": lambda c: c.execute(insert(things).values(id=1, n=3).on_conflict_do_update(index_elements=["id"], set_={"n": 4})),
    "nothing": lambda c: c.execute(insert(things).values([{"id": 1, "n": 3}, {"id": 501, "n": 4}]).on_conflict_do_nothing()),
    "cte": lambda c: c.execute(parts.delete().where(parts.c.thing.in_(sa.select(things.insert().values(id=900, n=1).returning(things.c.id).cte().c.id)))),
}  # fmt: skip


def run(connection: sa.Connection, write: Write) -> None:
    raw: Any = connection.connection.dbapi_connection
    with raw.pipeline():
        write(connection)


def events_of(connection: sa.Connection) -> list[tuple[Any, ...]]:
    rows = connection.exec_driver_sql("SELECT operation, entity, key, CAST(payload AS TEXT), CAST(types AS TEXT) FROM events ORDER BY seq").all()
    connection.exec_driver_sql("DELETE FROM events")
    return [tuple(row) for row in rows]


def filled(connection: sa.Connection) -> None:
    for table in reversed(metadata.sorted_tables):
        connection.execute(table.delete())
    connection.execute(things.insert(), [{"id": number, "n": 1} for number in range(1, 100)])
    connection.execute(parts.insert(), [{"id": number, "thing": 1} for number in (1, 2, 3)])
    connection.exec_driver_sql("DELETE FROM events")


def rolled_back(connection: sa.Connection, write: Write) -> list[tuple[Any, ...]]:
    """The events of a write that leaves nothing behind."""
    with connection.begin_nested() as savepoint:
        write(connection)
        with connection.begin_nested():  # what is captured is written before it
            pass
        found = events_of(connection)
        savepoint.rollback()
    return found


@pytest.mark.parametrize("few", [0, 25])
@pytest.mark.parametrize("old_values", ["known", "always"])
def test_the_same_events(postgres_url: str, monkeypatch: pytest.MonkeyPatch, few: int, old_values: str) -> None:
    """Whether a statement writes them itself or not."""
    monkeypatch.setattr(within, "FEW", few)
    engine = sa.create_engine(postgres_url)
    metadata.create_all(engine)
    broker = install_crud_hooks(engine, {"capture": {"old_values": old_values}})
    with engine.begin() as connection:
        filled(connection)
        for name, write in WRITES.items():
            expected = rolled_back(connection, write)
            assert rolled_back(connection, lambda c, write=write: run(c, write)) == expected, name  # type: ignore[misc]
            assert expected or "nothing" in name
    broker.uninstall()
    engine.dispose()


def test_the_same_events_of_an_asynchronous_connection(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose cursor has its rows beforehand."""
    monkeypatch.setattr(within, "FEW", 0)

    async def story() -> None:
        engine = create_async_engine(postgres_url)
        broker = install_crud_hooks(engine, {})
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
            await connection.run_sync(filled)
            raw: Any = (await connection.get_raw_connection()).driver_connection
            for name, write in WRITES.items():
                expected = await connection.run_sync(rolled_back, write)
                async with connection.begin_nested() as savepoint:
                    async with raw.pipeline():
                        await connection.run_sync(write)
                    async with connection.begin_nested():
                        pass
                    assert await connection.run_sync(events_of) == expected, name
                    await savepoint.rollback()
        broker.uninstall()
        await engine.dispose()

    asyncio.run(story())


def test_an_error_is_that_of_the_statement(postgres_url: str) -> None:
    """Caught, and undone by a savepoint, it hinders nothing."""
    engine = sa.create_engine(postgres_url)
    metadata.create_all(engine)
    broker = install_crud_hooks(engine, {})
    with engine.begin() as connection:
        connection.execute(things.insert(), {"id": 1, "n": 1})
    with engine.begin() as connection:
        with pytest.raises(sa.exc.IntegrityError, match="things_pkey"), connection.begin_nested():
            run(connection, lambda c: c.execute(things.insert().from_select(["id", "n"], sa.select(things.c.id, things.c.n))))
        run(connection, lambda c: c.execute(things.update().values(n=2)))
    assert [(event.operation, event.key) for event in broker.list(EventFilter(limit=100))] == [("create", "1"), ("update", "1")]
    broker.uninstall()
    engine.dispose()

"""Data-modifying CTEs, on PostgreSQL: they are captured, and the caller's rows are what they would be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import create_async_engine

from sqla_events import EventFilter, install_crud_hooks
from sqla_events.signals import Fact, Gap
from sqla_events.testing import apply, differences
from tests.capture.conftest import Stage
from tests.capture.model import Base, Item, Seat, Tag

tags, items, seats = Tag.__table__, Item.__table__, Seat.__table__


@pytest.fixture(params=["pyformat", "format"])
def hooked(stage: Stage, request: pytest.FixtureRequest) -> Iterator[tuple[Stage, list[Fact]]]:
    """With each form that the driver has for parameters."""
    if stage.engine.dialect.name != "postgresql":
        pytest.skip("SQLite has no data-modifying CTEs")
    facts: list[Fact] = []
    stage.engine.dispose()
    stage.engine = sa.create_engine(stage.engine.url, paramstyle=request.param)
    stage.hook().signals.subscribe(facts.append)
    with stage.session() as s:
        s.add_all([Tag(id=n, name=f"t{n}") for n in range(1, 6)])
        s.add_all([Item(id=n, count=n, label="x", doc={"n": n}) for n in range(1, 4)])
        s.commit()
    facts.clear()
    yield stage, facts
    assert stage.broker is not None
    stage.broker.uninstall()
    stage.engine.dispose()


def gaps(facts: list[Fact]) -> list[Fact]:
    return [fact for fact in facts if isinstance(fact, Gap)]


def test_insert_update_and_delete(hooked: tuple[Stage, list[Fact]]) -> None:
    """Three of them, of which the SELECT reads one: its order, its names and its count are the caller's."""
    stage, facts = hooked
    made = sa.insert(tags).values([{"id": 10, "name": "made"}, {"id": 11, "name": "too"}]).returning(tags.c.id).cte("made")
    changed = sa.update(items).where(items.c.count > 1).values(count=items.c.count + 10).returning(items.c.id, items.c.count).cte("changed")
    gone = sa.delete(tags).where(tags.c.id < 3).cte("gone")
    query = sa.select(changed.c.id.label("one"), changed.c.count, (changed.c.count * 2).label("one")).add_cte(gone, made).order_by(changed.c.count.desc())
    with stage.engine.begin() as connection:
        result = connection.execute(query)
        assert list(result.keys()) == ["one", "count", "one"]
        assert result.all() == [(3, 13, 26), (2, 12, 24)]
    found = stage.check()[8:]
    assert sorted((event.type, event.key) for event in found) == [
        ("public.items.update", "2"), ("public.items.update", "3"), ("public.tags.create", "10"), ("public.tags.create", "11"),
        ("public.tags.delete", "1"), ("public.tags.delete", "2"),
    ]  # fmt: skip
    assert {event.after["count"] for event in found if event.operation == "update"} == {12, 13}
    assert "label" not in next(event for event in found if event.operation == "update").after
    assert gaps(facts) == []


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_through_asynchronous_drivers(stage: Stage, driver: str) -> None:
    """Whose parameters are numbered, or not; some are used twice, and some are of the SELECT alone."""
    if stage.engine.dialect.name != "postgresql":
        pytest.skip("SQLite has no data-modifying CTEs")
    engine = create_async_engine(stage.engine.url.set(drivername=f"postgresql+{driver}"))
    broker = install_crud_hooks(engine, {"capture": {"on_gap": "raise"}})
    odd = sa.bindparam("odd name (it is)", 2)
    made = sa.insert(tags).values([{"id": 10, "name": "100 %"}, {"id": 11, "name": "%(id_1)s"}]).returning(tags.c.id).cte("made")
    changed = sa.update(tags).where(tags.c.id == odd).values(name=sa.literal("%%") + tags.c.name).returning(tags.c.id, tags.c.name).cte("changed")
    gone = sa.delete(tags).where(tags.c.id == odd + 1, tags.c.id.in_([3, 99]), tags.c.name == sa.bindparam("name")).cte("gone")
    query = sa.select(changed.c.id + odd, changed.c.name).add_cte(gone, made).where(changed.c.id > sa.bindparam("least"))
    async with engine.begin() as connection:
        await connection.execute(sa.insert(tags), [{"id": n, "name": f"t{n}"} for n in range(1, 4)])
        assert (await connection.execute(query, {"name": "t3", "least": 0})).all() == [(4, "%%t2")]
    events = await broker.list(EventFilter(limit=1000))
    broker.uninstall()
    await engine.dispose()
    assert sorted((event.operation, event.key) for event in events[3:]) == [("create", "10"), ("create", "11"), ("delete", "3"), ("update", "2")]
    with stage.engine.connect() as source, stage.copy.begin() as copy:
        apply(copy, Base.metadata, events, check_before=True)
        assert differences(source, copy, Base.metadata) == []


def test_a_select_that_finds_nothing(hooked: tuple[Stage, list[Fact]]) -> None:
    """The rows of the CTE come all the same, and the caller gets none."""
    stage, facts = hooked
    gone = sa.delete(items).returning(items.c.id).cte()
    with stage.session() as s:
        assert s.execute(sa.select(gone.c.id).where(gone.c.id > 100)).all() == []
        assert s.execute(sa.select(sa.func.count()).select_from(items)).scalar_one() == 0
        s.commit()
    assert [event.type for event in stage.check()[8:]] == ["public.items.delete"] * 3
    assert gaps(facts) == []


def test_entities_and_parameters(hooked: tuple[Stage, list[Fact]]) -> None:
    """An ORM select of entities from what was inserted; an upsert that tells which it was; every kind of value."""
    stage, facts = hooked
    upsert = postgresql.insert(Tag).values([{"id": 1, "name": "again"}, {"id": 20, "name": "new"}])
    upsert = upsert.on_conflict_do_update(index_elements=["id"], set_={"name": upsert.excluded.name}).returning(Tag)
    cte = upsert.cte("put")
    with stage.session() as s:
        entity = sa.orm.aliased(Tag, cte)
        found = s.scalars(sa.select(entity).where(entity.id > sa.bindparam("least")), {"least": 0}).all()
        assert sorted(tag.name for tag in found) == ["again", "new"]
        s.commit()
    assert sorted((event.operation, event.key) for event in stage.check()[8:]) == [("create", "20"), ("update", "1")]
    assert gaps(facts) == []


@pytest.mark.parametrize("old_values", ["known", "always"])
def test_a_key_that_changes(stage: Stage, old_values: str) -> None:
    """Where RETURNING tells the old one (PostgreSQL 18); else it is a gap, which is reported."""
    if stage.engine.dialect.name != "postgresql":
        pytest.skip("SQLite has no data-modifying CTEs")
    facts: list[Fact] = []
    stage.hook(old_values=old_values).signals.subscribe(facts.append)
    with stage.session() as s:
        s.add(Tag(id=1, name="a"))
        s.commit()
        moved = sa.update(tags).values(id=tags.c.id + 100).returning(tags.c.id).cte()
        assert s.execute(sa.select(moved.c.id)).scalar_one() == 101
        s.commit()
    if (stage.engine.dialect.server_version_info or ())[0] >= 18:
        assert stage.check()[-1].payload["key"] == {"id": 1}
        assert gaps(facts) == []
    else:
        assert len(gaps(facts)) == 1


def test_rows_that_move_to_another_table(hooked: tuple[Stage, list[Fact]]) -> None:
    """An INSERT from what a CTE deletes: both are captured, and the caller's count is that of the INSERT."""
    stage, facts = hooked
    gone = sa.delete(tags).where(tags.c.id > 3).returning(tags.c.id, tags.c.name).cte()
    with stage.engine.begin() as connection:
        result = connection.execute(sa.insert(seats).from_select(["row", "number"], sa.select(gone.c.name, gone.c.id).where(gone.c.id < 5)))
        assert result.rowcount == 1
        assert not result.returns_rows
    assert sorted(event.type for event in stage.check()[8:]) == ["public.seats.create", "public.tags.delete", "public.tags.delete"]
    assert gaps(facts) == []


def test_an_update_that_returns_rows_around_a_cte(hooked: tuple[Stage, list[Fact]]) -> None:
    """The caller gets his columns and his count."""
    stage, facts = hooked
    gone = sa.delete(items).where(items.c.id < 3).returning(items.c.id).cte()
    update = sa.update(tags).where(tags.c.id == gone.c.id, tags.c.id == 2).values(name=tags.c.name + "!")
    with stage.engine.begin() as connection:
        result = connection.execute(update.returning(tags.c.name, tags.c.id))
        assert (result.all(), result.rowcount) == ([("t2!", 2)], 1)
    assert sorted(event.type for event in stage.check()[8:]) == ["public.items.delete", "public.items.delete", "public.tags.update"]
    assert gaps(facts) == []


def test_what_a_statement_around_it_hides_stays_a_reported_gap(stage: Stage) -> None:
    """An INSERT into a table that is not captured, and returns nothing."""
    if stage.engine.dialect.name != "postgresql":
        pytest.skip("SQLite has no data-modifying CTEs")
    facts: list[Fact] = []
    stage.hook(exclude=["public.seats"]).signals.subscribe(facts.append)
    with stage.engine.begin() as connection:
        connection.execute(sa.insert(tags), [{"id": 1, "name": "a"}])
        gone = sa.delete(tags).returning(tags.c.id, tags.c.name).cte()
        connection.execute(sa.insert(seats).from_select(["row", "number"], sa.select(gone.c.name, gone.c.id)))
    assert [event.type for event in stage.events()] == ["public.tags.create"]
    assert [fact.table for fact in gaps(facts)] == ["tags"]


def test_a_failure_leaves_nothing(hooked: tuple[Stage, list[Fact]]) -> None:
    """The next statement of the session is taken for what it is."""
    stage, _ = hooked
    twice = sa.insert(tags).values(id=1, name="taken").returning(tags.c.id).cte()
    with stage.session() as s:
        with pytest.raises(sa.exc.IntegrityError):
            s.execute(sa.select(twice.c.id))
        s.rollback()
        s.add(Tag(id=30, name="after"))
        s.commit()
    assert [event.key for event in stage.check()[8:]] == ["30"]


def test_tables_that_are_not_captured(stage: Stage) -> None:
    """Neither captured nor a gap."""
    if stage.engine.dialect.name != "postgresql":
        pytest.skip("SQLite has no data-modifying CTEs")
    facts: list[Any] = []
    stage.hook(exclude=["public.tags"]).signals.subscribe(facts.append)
    made = sa.insert(tags).values(id=1, name="a").returning(tags.c.id).cte()
    with stage.engine.begin() as connection:
        assert connection.execute(sa.select(made.c.id)).scalar_one() == 1
    assert stage.events() == []
    assert gaps(facts) == []
    assert Base.metadata.tables["tags"] is tags


def test_in_the_schema_of_a_tenant(hooked: tuple[Stage, list[Fact]]) -> None:
    """The CTEs are sent with his schema, and their events have it."""
    stage, facts = hooked
    with stage.engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA tenant; CREATE TABLE tenant.tags (LIKE tags INCLUDING ALL)")
    try:
        with stage.engine.connect().execution_options(schema_translate_map={None: "tenant"}) as connection:
            connection.execute(tags.insert(), [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}])
            changed = sa.update(tags).values(name=tags.c.name + "!").returning(tags.c.id, tags.c.name).cte("changed")
            assert connection.execute(sa.select(changed.c.name).where(changed.c.id > 1)).scalars().all() == ["b!"]
            connection.commit()
        found = [event for event in stage.events() if event.schema == "tenant"]
        assert [(event.type, event.after) for event in found[2:]] == [
            ("tenant.tags.update", {"name": "a!"}), ("tenant.tags.update", {"name": "b!"}),
        ]  # fmt: skip
        assert gaps(facts) == []
    finally:
        with stage.engine.begin() as connection:
            connection.exec_driver_sql("DROP SCHEMA tenant CASCADE")


@pytest.mark.parametrize("keys", [[1], [1, 2, 3], []], ids=len)
def test_lists_of_which_it_is_known_later_how_long_they_are(hooked: tuple[Stage, list[Fact]], keys: list[int]) -> None:
    """``IN``, in the CTE and in the statement around it."""
    stage, facts = hooked
    gone = sa.delete(tags).where(tags.c.id.in_(keys), tags.c.name != "x").returning(tags.c.id).cte()
    with stage.engine.begin() as connection:
        found = connection.scalars(sa.select(gone.c.id).where(gone.c.id.in_([1, 2]))).all()
    assert sorted(found) == [key for key in keys if key < 3]
    assert sorted(event.key for event in stage.check()[8:]) == [str(key) for key in keys]
    assert gaps(facts) == []

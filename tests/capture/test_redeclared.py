"""Tables that are declared further after something of them was captured: events show what the table has now."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from threading import Event
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.declarative import DeferredReflection
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqla_events import install_crud_hooks
from sqla_events.capture import within
from tests.capture.conftest import Stage
from tests.capture.model import Tag


@pytest.fixture
def declared() -> tuple[sa.MetaData, sa.Table]:
    metadata = sa.MetaData()
    things = sa.Table("things", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("x", sa.String))
    return metadata, things


def altered(stage: Stage, sql: str) -> None:
    for engine, prefix in ((stage.engine, ""), (stage.copy, "copy." if stage.copy.dialect.name == "postgresql" else "")):
        with engine.begin() as connection:
            connection.exec_driver_sql(sql.format(prefix))


@pytest.mark.parametrize("few", [0, 25])
@pytest.mark.parametrize("existing", [False, True])
def test_a_further_column(
    stage: Stage, declared: tuple[sa.MetaData, sa.Table], monkeypatch: pytest.MonkeyPatch, few: int, existing: bool
) -> None:
    """In the events of statements, too, that have been made and compiled before."""
    monkeypatch.setattr(within, "FEW", few)
    metadata, things = declared
    stage.create(metadata)
    stage.hook()
    change, gone = things.update().values(x="b"), things.delete()
    with stage.engine.begin() as connection:
        connection.execute(things.insert(), {"id": 1, "x": "a"})
        connection.execute(change)
        connection.execute(gone)
    altered(stage, "ALTER TABLE {}things ADD y NUMERIC")
    if existing:
        sa.Table("things", metadata, sa.Column("y", sa.Numeric), extend_existing=True)
    else:
        things.append_column(sa.Column("y", sa.Numeric))
    with stage.engine.begin() as connection:
        connection.execute(things.insert(), {"id": 2, "x": "a", "y": Decimal("1.5")})
        connection.execute(things.update().where(things.c.id == sa.bindparam("k")), {"k": 2, "y": Decimal("2.5")})
        connection.execute(things.update().values(y=things.c.y + 1))
        connection.execute(change)
    stage.check(metadata)
    with stage.engine.begin() as connection:
        connection.execute(gone)
    events = stage.events()[3:]
    assert [(event.after or {}).get("y") for event in events] == [Decimal("1.5"), Decimal("2.5"), Decimal("3.5"), None, None]
    assert events[-1].before == {"id": 2, "x": "b", "y": Decimal("3.5")}


def test_a_column_of_another_type(stage: Stage) -> None:
    """Its values have the other type."""
    metadata = sa.MetaData()
    things = sa.Table("things", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("x", sa.Float))
    stage.create(metadata)
    stage.hook()
    with stage.engine.begin() as connection:
        connection.execute(things.insert(), {"id": 1, "x": 1.5})
    if stage.engine.dialect.name == "postgresql":
        altered(stage, "ALTER TABLE {}things ALTER x TYPE NUMERIC")
    sa.Table("things", metadata, sa.Column("x", sa.Numeric(10, 1)), extend_existing=True)
    with stage.engine.begin() as connection:
        connection.execute(things.update().values(x=Decimal("2.5")))
    assert [event.after["x"] for event in stage.events()] == [1.5, Decimal("2.5")]
    assert [type(event.after["x"]) for event in stage.events()] == [float, Decimal]


def test_another_key(stage: Stage) -> None:
    """A view, or a table that was reflected, gets one."""
    metadata = sa.MetaData()
    things = sa.Table("things", metadata, sa.Column("a", sa.Integer), sa.Column("b", sa.Integer))
    stage.create(metadata)
    stage.hook()
    with stage.engine.begin() as connection:
        connection.execute(things.insert(), {"a": 1, "b": 2})
        sa.Table("things", metadata, sa.Column("a", sa.Integer, primary_key=True, autoincrement=False), extend_existing=True)
        connection.execute(things.update().values(b=3))
        connection.execute(things.insert(), {"a": 5, "b": 2})
    assert [event.key for event in stage.events()] == ["*", "1", "5"]


def test_a_further_attribute_of_a_mapped_class(stage: Stage) -> None:
    """With its values as the session has loaded them."""

    class Base(DeclarativeBase):
        pass

    class Thing(Base):
        __tablename__ = "things"
        id: Mapped[int] = mapped_column(primary_key=True)
        x: Mapped[str | None]

    stage.create(Base.metadata)
    stage.hook()
    with stage.session() as session:
        session.add(thing := Thing(id=1, x="a"))
        session.commit()
        thing.x = "b"
        session.commit()
    altered(stage, "ALTER TABLE {}things ADD y VARCHAR")
    Thing.y = mapped_column("y", sa.String)  # type: ignore[attr-defined]
    with stage.session() as session:
        session.add(other := Thing(id=2, y="c"))  # type: ignore[call-arg]
        session.commit()
        assert other.y == "c"  # type: ignore[attr-defined]
        other.y = "d"  # type: ignore[attr-defined]
        session.commit()
    stage.check(Base.metadata)
    assert (stage.events()[-1].before, stage.events()[-1].after) == ({"y": "c"}, {"y": "d"})


@pytest.mark.parametrize("by_constraint", [False, True])
def test_a_table_that_refers_to_one_that_was_captured(
    stage: Stage, declared: tuple[sa.MetaData, sa.Table], by_constraint: bool
) -> None:
    """Declared later, as a module that is imported when it is needed: what the database deletes with a row is seen."""
    metadata, things = declared
    stage.create(metadata)
    stage.hook()
    with stage.engine.begin() as connection:
        connection.execute(things.insert(), [{"id": 1, "x": "a"}, {"id": 2, "x": "b"}])
        connection.execute(things.delete().where(things.c.id == 2))
    if by_constraint:
        reference: list[Any] = [sa.Column("thing", sa.Integer), sa.ForeignKeyConstraint(["thing"], ["things.id"], ondelete="CASCADE")]
    else:
        reference = [sa.Column("thing", sa.ForeignKey("things.id", ondelete="CASCADE"))]
    parts = sa.Table("parts", metadata, sa.Column("id", sa.Integer, primary_key=True), *reference)
    metadata.create_all(stage.engine)
    with stage.engine.begin() as connection:
        connection.execute(parts.insert(), {"id": 7, "thing": 1})
        connection.execute(things.delete())
    assert [(event.entity, event.operation) for event in stage.events()[-2:]] == [("parts", "delete"), ("things", "delete")]


def test_nothing_is_listened_to_afterwards(sqlite_url: str, declared: tuple[sa.MetaData, sa.Table]) -> None:
    """Where capture is off, tables are declared as ever; other tables leave what is known as it is."""
    engine = sa.create_engine(sqlite_url)
    broker = install_crud_hooks(engine, {})
    metadata, things = declared
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(things.insert(), {"id": 1})
    known = broker._capture._captured._codecs[things]
    sa.Table("others", metadata, sa.Column("id", sa.Integer, primary_key=True))
    sa.Table("others", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("t", sa.ForeignKey("others.id")))
    assert broker._capture._captured._codecs[things] is known
    broker.uninstall()
    things.append_column(sa.Column("z", sa.Integer))
    assert broker._capture._captured._codecs == {}
    engine.dispose()


def test_tables_declared_while_captures_come_and_go(sqlite_url: str) -> None:
    """In other threads."""
    over, interval = Event(), sys.getswitchinterval()

    def come_and_go() -> None:
        engine = sa.create_engine(sqlite_url)
        while not over.is_set():
            install_crud_hooks(engine, {}).uninstall()
        engine.dispose()

    def declare() -> None:
        for _ in range(300):
            sa.Table("declared", sa.MetaData(), *(sa.Column(f"c{number}", sa.Integer, primary_key=number == 0) for number in range(9)))

    sys.setswitchinterval(1e-6)
    with ThreadPoolExecutor(6) as pool:
        coming = [pool.submit(come_and_go) for _ in range(2)]
        try:
            for done in [pool.submit(declare) for _ in range(4)]:
                done.result()
        finally:
            sys.setswitchinterval(interval)
            over.set()
        for one in coming:
            one.result()


def test_classes_that_are_not_mapped_yet(stage: Stage) -> None:
    """``DeferredReflection`` before its ``prepare()``, or what another thread is declaring: they are none of ours."""

    class Later(DeclarativeBase):
        pass

    class Legacy(DeferredReflection, Later):
        __tablename__ = "legacy"
        id: Mapped[int] = mapped_column(primary_key=True)

    loose = sa.Table("loose", sa.MetaData(), sa.Column("n", sa.Integer))
    stage.create(loose.metadata)
    stage.hook()
    with stage.session() as session:
        session.add(Tag(id=1, name="a"))
        session.commit()
        session.get_one(Tag, 1).name = "b"
        session.flush()
        session.execute(loose.insert(), {"n": 1})
        session.commit()
    assert [event.type for event in stage.events()] == ["public.tags.create", "public.tags.update", "public.loose.create"]
    Later.registry.dispose()


def test_a_choice_by_class_holds_for_every_table_of_its_name(stage: Stage) -> None:
    """Reflected ones, say."""
    stage.hook(include=[Tag])
    tags = sa.Table("tags", sa.MetaData(), autoload_with=stage.engine)
    with stage.engine.begin() as connection:
        connection.execute(tags.insert(), {"id": 1, "name": "a"})
    assert [event.key for event in stage.events()] == ["1"]

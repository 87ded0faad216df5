"""Values that a statement does not say itself: what the database sets, and what a type makes of them. Found by SQLAlchemy's own tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqla_events.schema import Tables
from tests.capture.conftest import Stage


class Base(DeclarativeBase):
    pass


class NothingForNone(sa.types.TypeDecorator[str]):
    impl = sa.String(50)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return "nothing" if value is None else value


class OneWay(sa.types.TypeDecorator[str]):
    """What is read is not what would be written again."""

    impl = sa.String(50)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return f"<{value}>"


class Thing(Base):
    __tablename__ = "told_things"
    __mapper_args__: ClassVar[dict[str, Any]] = {"eager_defaults": True}
    id: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[int] = mapped_column(default=1)
    omitted: Mapped[str | None] = mapped_column(NothingForNone())
    odd: Mapped[str | None] = mapped_column(OneWay(), server_default="from the server")
    double: Mapped[int] = mapped_column(sa.Computed("n * 2", persisted=True))
    bumped: Mapped[int | None] = mapped_column(onupdate=sa.text("40 + 2"))


class Lazy(Base):
    __tablename__ = "told_lazy"
    __mapper_args__: ClassVar[dict[str, Any]] = {"eager_defaults": False}
    id: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[int]
    double: Mapped[int] = mapped_column(sa.Computed("n * 2", persisted=True))


class Plain(Base):
    __tablename__ = "told_plain"
    id: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[int]


@pytest.fixture
def told(stage: Stage) -> Iterator[Stage]:
    stage.create(Base.metadata)
    stage.hook()
    return stage


def test_a_column_that_an_insert_leaves_out_is_null(told: Stage) -> None:
    """Its type may make something else of a None that is bound, but none is."""
    with told.session() as s:
        s.execute(sa.insert(Thing), [{"n": 1}, {"n": 2}])
        s.add(Thing(n=3))
        s.commit()
    assert [event.after["omitted"] for event in told.check(Base.metadata)] == [None, None, "nothing"]


def test_what_an_update_returns_to_the_session_is_known_to_its_event(told: Stage) -> None:
    """eager_defaults lets SQLAlchemy ask for it, so that nothing else has to; the event must not go without."""
    with told.session() as s:
        thing, other = Thing(n=1), Thing(n=2)
        s.add_all([thing, other])
        s.flush()
        thing.n, other.n, other.bumped = 5, 6, Thing.n + 1
        s.commit()
    updates = [event for event in told.check(Base.metadata) if event.operation == "update"]
    assert [(event.after["double"], event.after["bumped"]) for event in updates] == [(10, 42), (12, 3)]
    assert not any("unknown" in event.payload for event in updates)


def test_an_update_that_returns_its_columns_to_the_caller(told: Stage) -> None:
    """By key, with an expression in the SET."""
    with told.session() as s:
        s.add(Thing(n=1))
        s.flush()
        table = Thing.__table__
        statement = sa.update(table).where(table.c.id == sa.bindparam("which")).values(n=sa.bindparam("much") * 3).returning(table.c.n)
        assert s.connection().execute(statement, {"which": 1, "much": 7}).scalar_one() == 21
        s.commit()
    assert told.check(Base.metadata)[-1].after["n"] == 21


def test_a_default_that_its_type_reads_in_another_way_than_it_writes(told: Stage) -> None:
    """The event holds what is stored, for every way of inserting."""
    with told.session() as s:
        s.add(Thing(n=1))
        s.flush()
        s.add_all([Thing(n=2), Thing(n=3)])
        s.flush()
        s.bulk_insert_mappings(Thing, [{"n": 4}, {"n": 5}])
        s.commit()
    assert [event.after["odd"] for event in told.check(Base.metadata)] == ["from the server"] * 5


def test_the_session_learns_no_less_and_no_more_than_without_hooks(told: Stage) -> None:
    """A flush of several rows with given keys leaves computed columns to be loaded: not None, as if they were NULL."""
    with told.session() as s:
        one, two = Lazy(id=1, n=5), Lazy(id=2, n=6)
        s.add_all([one, two])
        s.flush()
        assert "double" in sa.inspect(one).unloaded
        assert (one.double, two.double) == (10, 12)
        s.commit()
    assert [event.after["double"] for event in told.check(Base.metadata)] == [10, 12]


def test_rows_that_a_listener_keeps_from_being_inserted_have_no_event(told: Stage) -> None:
    """SQLAlchemy lets a listener change the statement: what was not inserted did not happen."""
    plain = sa.table("told_plain", sa.column("id"), sa.column("n"))
    with told.engine.begin() as connection:

        @sa.event.listens_for(connection, "before_cursor_execute", retval=True)
        def nothing(conn: Any, cursor: Any, sql: str, parameters: Any, context: Any, executemany: bool) -> Any:
            if sql.startswith("INSERT INTO told_plain"):
                return "UPDATE told_plain SET n = 0 WHERE 1 != 1 RETURNING id", ()
            return sql, parameters

        connection.execute(sa.insert(Plain.__table__).return_defaults(sort_by_parameter_order=True), [{"n": 1}, {"n": 2}])
        assert connection.scalar(sa.select(sa.func.count()).select_from(plain)) == 0
    assert told.check(Base.metadata) == []


def test_defaults_that_are_asked_for_before_the_insert(stage: Stage) -> None:
    """They run in the execution of the INSERT itself, and nothing can ride along with them."""
    metadata = sa.MetaData()
    table = sa.Table(
        "asked", metadata,
        sa.Column("id", sa.Integer, sa.Sequence("asked_seq", optional=stage.engine.dialect.name == "sqlite"), primary_key=True),
        sa.Column("word", sa.String, primary_key=True, default=sa.select(sa.literal("a") + "b").scalar_subquery()),
        sa.Column("fetched", sa.String, server_default="f"),
        implicit_returning=False,
    )  # fmt: skip
    stage.create(metadata)
    stage.hook()
    with stage.session() as s:
        s.execute(sa.insert(table).values(id=101))
        s.execute(sa.insert(table), [{"id": 102}, {"id": 103}])
        if stage.engine.dialect.name != "sqlite":
            s.execute(sa.insert(table))
        s.commit()
    assert {(event.after["word"], event.after["fetched"]) for event in stage.check(metadata)} == {("ab", "f")}


def test_columns_that_triggers_set_on_sqlite(stage: Stage) -> None:
    """RETURNING tells how the row was before they ran: a table that is declared so is read again."""
    if stage.engine.dialect.name != "sqlite":
        pytest.skip("triggers that run after the row is written and change it")
    metadata = sa.MetaData()
    fetched = sa.FetchedValue()
    table = sa.Table(
        "triggered", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", sa.Integer),
        sa.Column("made", sa.String(20), server_default=fetched), sa.Column("changed", sa.String(20), server_onupdate=fetched),
        implicit_returning=False,
    )  # fmt: skip
    stage.create(metadata)
    with stage.engine.begin() as connection:
        for name, when, what in (("ins", "INSERT", "made = 'by ' || NEW.n"), ("up", "UPDATE OF n", "changed = 'to ' || NEW.n")):
            connection.exec_driver_sql(
                f"CREATE TRIGGER {name} AFTER {when} ON triggered BEGIN UPDATE triggered SET {what} WHERE id = NEW.id; END"
            )
    stage.hook()
    with stage.session() as s:
        s.execute(sa.insert(table), [{"n": 1}, {"n": 2}])
        s.execute(sa.insert(table).values(n=3))
        s.execute(sa.update(table).where(table.c.n > 1).values(n=table.c.n + 10))
        s.commit()
    events = stage.check(metadata)
    assert [event.after["made"] for event in events[:3]] == ["by 1", "by 2", "by 3"]
    assert [event.after["changed"] for event in events[3:]] == ["to 12", "to 13"]


def test_a_json_null_in_a_row_that_was_read_is_not_null(stage: Stage) -> None:
    """Rows as they were before an UPDATE, and those that a foreign key deletes."""
    metadata = sa.MetaData()
    parents = sa.Table("told_parents", metadata, sa.Column("id", sa.Integer, primary_key=True))
    children = sa.Table(
        "told_children",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("parent_id", sa.ForeignKey(parents.c.id, ondelete="CASCADE")),
        sa.Column("doc", sa.JSON),
    )
    stage.create(metadata)
    stage.hook(old_values="always")
    with stage.session() as session, session.begin():
        session.execute(parents.insert(), {"id": 1})
        documents = [sa.JSON.NULL, sa.null(), {"a": [1, None]}]
        session.execute(children.insert().values([{"id": n, "parent_id": 1, "doc": doc} for n, doc in enumerate(documents)]))
        session.execute(children.update().where(children.c.id < 2).values(doc={"b": 2}))
        session.execute(children.update().where(children.c.id == 0).values(doc=sa.JSON.NULL))
        session.execute(children.update().where(children.c.id == 1).values(doc=sa.null()))
        session.execute(parents.delete())
    stage.check(metadata)
    with stage.session() as session:
        log = Tables().events
        rows = session.execute(sa.select(log.c.operation, log.c.payload, log.c.types).where(log.c.entity == "told_children").order_by(log.c.seq))
        told = [(operation, json.loads(payload)["before"]["doc"], types) for operation, payload, types in rows if operation != "create"]
    null = '{"/payload/before/doc":"jsonnull"}'
    assert told[:2] == [("update", None, null), ("update", None, None)]
    assert sorted(told[4:], key=repr) == [("delete", None, null), ("delete", None, None), ("delete", {"a": [1, None]}, None)]


def test_rows_that_the_caller_asks_for_are_his(stage: Stage) -> None:
    """One set of parameters, and any columns returned: the event knows the key and the defaults nevertheless."""
    metadata = sa.MetaData()
    table = sa.Table(
        "asked", metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(20)),
        sa.Column("state", sa.String(20), server_default="new"),
    )  # fmt: skip
    stage.create(metadata)
    stage.hook()
    c = table.c
    asked = ([c.id], [c.name], [c.state], [c.id, c.state], [table], [c.state.label("id")], [c.id + 1])
    with stage.engine.begin() as connection:
        got = [connection.execute(table.insert().returning(*columns), {"name": "a"}).one() for columns in asked]
    assert [tuple(row) for row in got] == [(1,), ("a",), ("new",), (4, "new"), (5, "a", "new"), ("new",), (8,)]
    assert [(event.key, event.payload["after"]["state"]) for event in stage.check(metadata)] == [(str(key), "new") for key in range(1, 8)]


def test_a_null_that_is_a_parameter_of_json(stage: Stage) -> None:
    """JSON takes it for NULL, in a list of sets too; anywhere else it is a piece of SQL."""
    table = sa.Table("told_json", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("doc", sa.JSON))
    stage.create(table.metadata)
    stage.hook()
    with stage.engine.begin() as connection:
        connection.execute(table.insert(), {"id": 1, "doc": sa.null()})
        connection.execute(table.insert(), [{"id": 2, "doc": sa.null()}, {"id": 3, "doc": None}])
    assert [event.after["doc"] for event in stage.check(table.metadata)] == [None, None, sa.JSON.NULL]

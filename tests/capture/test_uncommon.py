"""What few do: statements on a mere ``table()``, types that encrypt, keys in another order, rows that something keeps out."""

from __future__ import annotations

import datetime as dt
import itertools
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, column_property, mapped_column, registry, relationship

from sqla_events import CaptureError, Event
from sqla_events.signals import Gap
from tests.capture.conftest import Stage
from tests.capture.model import Tag

b = sa.bindparam


def things() -> tuple[sa.MetaData, sa.Table]:
    metadata = sa.MetaData()
    return metadata, sa.Table("things", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", sa.String(50)))


def befores(events: list[Event]) -> list[dict[str, Any] | None]:
    return [event.before for event in events if event.operation == "update"]


# What is written to -------------------------------------------------------------------------------------------------


class Behind(DeclarativeBase):
    """An application's."""


class Label(Behind):
    """Of which there is one in this process."""

    __tablename__ = "labels_behind"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


def test_a_mere_table_that_a_declared_one_stands_behind(stage: Stage) -> None:
    """As scripts write it: its columns have no types, so the database tells the rows."""
    stage.create(Behind.metadata)
    stage.hook()
    light = sa.table("labels_behind", sa.column("id"), sa.column("name"))
    with stage.session() as session:
        session.execute(light.insert(), [{"id": 5, "name": "a"}, {"id": 6, "name": "b"}])
        session.execute(light.insert().values(id=7, name="c"))
        session.execute(light.update().where(light.c.id == 5).values(name="d"))
        session.execute(light.delete().where(light.c.id == b("which")), {"which": 6})
        session.commit()
    assert [(event.operation, event.key) for event in stage.check(Behind.metadata)] == [
        ("create", "5"), ("create", "6"), ("create", "7"), ("update", "5"), ("delete", "6"),
    ]  # fmt: skip


def test_a_mere_table_that_nobody_declared_is_a_gap(stage: Stage) -> None:
    """Nothing tells its key."""
    metadata, _ = things()
    stage.create(metadata)
    broker, found = stage.hook(), []
    broker.signals.subscribe(found.append, Gap)
    with stage.session() as session:
        session.execute(sa.table("things", sa.column("id")).insert(), {"id": 1})
        session.rollback()
    assert [gap.table for gap in found] == ["things"]


def test_a_mere_table_raises_where_gaps_do(stage: Stage) -> None:
    """Nothing is written then."""
    metadata, _ = things()
    stage.create(metadata)
    stage.hook(on_gap="raise")
    with stage.session() as session, pytest.raises(CaptureError, match="no Table is declared"):
        session.execute(sa.table("things", sa.column("id")).insert(), {"id": 1})


class Joined(DeclarativeBase):
    """Classes that are loaded with their subclasses."""


class Animal(Joined):
    __tablename__ = "animals"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    n: Mapped[str | None]
    __mapper_args__: ClassVar[dict[str, Any]] = {"polymorphic_on": "kind", "polymorphic_identity": "a", "with_polymorphic": "*"}


class Cat(Animal):
    __tablename__ = "cats"
    id: Mapped[int] = mapped_column(sa.ForeignKey("animals.id"), primary_key=True)
    __mapper_args__: ClassVar[dict[str, Any]] = {"polymorphic_identity": "c"}


def test_a_class_that_is_loaded_with_its_subclasses(stage: Stage) -> None:
    """The statement names their join, and writes the class's own table."""
    stage.create(Joined.metadata)
    stage.hook()
    with stage.session() as session:
        session.add_all([Animal(id=1, n="a"), Animal(id=2, n="b"), Cat(id=3, n="c")])
        session.commit()
        session.execute(sa.update(Animal).where(Animal.id == 1).values(n="z"))
        session.query(Animal).filter(Animal.id == 3).update({"n": "q"})
        session.execute(sa.delete(Animal).where(Animal.id == 2))
        session.commit()
    assert [(event.operation, event.key) for event in stage.check(Joined.metadata)[4:]] == [("update", "1"), ("update", "3"), ("delete", "2")]


# Names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sqla_events_0", "sqla_events 0", "old.n", "inserted?", "\N{SNOWMAN} %s %(x)s :y"])
def test_columns_that_are_called_as_we_call_things(stage: Stage, name: str) -> None:
    """Nobody's values are taken for ours."""
    metadata = sa.MetaData()
    odd = sa.Table("odd", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column(name, sa.String(50)), sa.Column("n", sa.Integer))
    stage.create(metadata)
    stage.hook()
    with stage.session() as session:
        session.execute(odd.insert(), {"id": 1, name: "mine", "n": 1})
        session.execute(odd.update().where(odd.c.id == b("which")), {"which": 1, name: "yours"})
        session.execute(odd.update().values({name: "theirs"}))
        session.commit()
        assert session.execute(sa.select(odd)).one() == (1, "theirs", 1)
        session.execute(odd.delete())
        session.commit()
    events = stage.check(metadata)
    assert [event.operation for event in events] == ["create", "update", "update", "delete"]
    assert events[0].after == {"id": 1, name: "mine", "n": 1}


def test_a_parameter_that_is_called_as_ours(stage: Stage) -> None:
    """Of a statement that writes its events itself."""
    metadata, table = things()
    stage.create(metadata)
    stage.hook()
    with stage.session() as session:
        session.execute(table.insert(), [{"id": 1, "n": "a"}, {"id": 2, "n": "a"}])
        changed = session.execute(table.update().where(table.c.n == b("sqla_events_0")).values(n="b"), {"sqla_events_0": "a"})
        assert changed.rowcount == 2
        session.commit()
    stage.check(metadata)


# Types ---------------------------------------------------------------------------------------------------------------


class Ciphertext(sa.TypeDecorator[str]):
    """Another text each time that it is bound."""

    impl = sa.String
    cache_ok = True
    numbers = itertools.count()

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else f"{next(self.numbers)}:{value[::-1]}"

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else value.partition(":")[2][::-1]


def test_what_is_bound_is_what_the_event_has(stage: Stage) -> None:
    """A value that has another ciphertext each time is bound once."""
    metadata = sa.MetaData()
    secrets = sa.Table(
        "secrets", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", Ciphertext),
        sa.Column("at", sa.DateTime), sa.Column("made", sa.Integer, server_default="1"),
    )  # fmt: skip
    stage.create(metadata)
    stage.hook()
    mapped = type("Secret", (), {})
    registry().map_imperatively(mapped, secrets)
    moment = dt.datetime(2026, 1, 2, 3, 4, 5)
    with stage.session() as session:
        one: Any = mapped()
        one.id, one.n, one.at, one.made = 1, "x", moment, 2
        session.add(one)
        session.commit()
        one.n = "y"
        session.commit()
        session.execute(secrets.insert(), [{"id": number, "n": "z", "at": moment} for number in (2, 3, 4)])
        session.execute(secrets.insert(), {"id": 5, "n": None, "at": moment, "made": 3})
        session.execute(secrets.update().where(secrets.c.id == b("which")), [{"which": 2, "n": "q"}, {"which": 3, "n": None}])
        session.commit()
    assert len(stage.check(metadata)) == 8


class Sealed(sa.TypeDecorator[str]):
    """Encrypted by the database."""

    impl = sa.String
    cache_ok = True

    def bind_expression(self, bindparam: Any) -> Any:
        return sa.func.upper(bindparam)

    def column_expression(self, column: Any) -> Any:
        return sa.func.lower(column)


class Marked(sa.types.UserDefinedType[str]):
    """The same of a type of one's own."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "TEXT"

    def bind_expression(self, bindvalue: Any) -> Any:
        return bindvalue.op("||", return_type=self)(sa.literal_column("'#'"))

    def column_expression(self, colexpr: Any) -> Any:
        return sa.func.rtrim(colexpr, "#", type_=self)


@pytest.mark.parametrize("old_values", ["known", "always"])
@pytest.mark.parametrize("kind", [Sealed, Marked])
def test_what_the_database_encrypts_is_in_no_event(stage: Stage, kind: Any, old_values: str) -> None:
    """Not even as an old value, which the session knows decrypted."""
    metadata = sa.MetaData()
    secrets = sa.Table("secrets", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("v", kind))
    stage.create(metadata)
    stage.hook(old_values=old_values)
    mapped = type("Secret", (), {})
    registry().map_imperatively(mapped, secrets)
    with stage.session() as session:
        one: Any = mapped()
        one.id, one.v = 1, "ab"
        session.add(one)
        session.commit()
        assert one.v == "ab"
        one.v = "cd"
        session.commit()
        session.execute(secrets.update().where(secrets.c.id < 5).values(v="ef"))
        session.commit()
        assert one.v == "ef"
        session.delete(one)
        session.commit()
    events = stage.check(metadata)
    stored = {"AB", "CD", "EF"} if kind is Sealed else {"ab#", "cd#", "ef#"}
    assert {side["v"] for event in events for side in (event.before, event.after) if side and "v" in side} == stored


def test_an_interval_that_is_a_timestamp(stage: Stage) -> None:
    """``native=False``: kept since an epoch."""
    metadata = sa.MetaData()
    spans = sa.Table("spans", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("v", sa.Interval(native=False)))
    stage.create(metadata)
    stage.hook()
    with stage.session() as session:
        session.execute(spans.insert(), {"id": 1, "v": dt.timedelta(days=1)})
        session.execute(spans.update().values(v=dt.timedelta(hours=5)))
        session.commit()
    assert [event.after["v"] for event in stage.check(metadata)] == [dt.timedelta(days=1), dt.timedelta(hours=5)]  # type: ignore[index]


# Old values of the right row -----------------------------------------------------------------------------------------


class Named:
    def __init__(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)


def other_order() -> tuple[sa.MetaData, Any, Any]:
    metadata = sa.MetaData()
    integer = {"type_": sa.Integer, "primary_key": True, "autoincrement": False}
    table = sa.Table("pairs", metadata, sa.Column("x", **integer), sa.Column("y", **integer), sa.Column("name", sa.String(20)))
    kind = type("Pair", (Named,), {})
    registry().map_imperatively(kind, table, primary_key=[table.c.y, table.c.x])
    return metadata, kind(x=1, y=2, name="a"), kind(x=2, y=1, name="b")


def key_of_its_own() -> tuple[sa.MetaData, Any, Any]:
    class Base(DeclarativeBase):
        pass

    class Parent(Base):
        __tablename__ = "bases"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        __mapper_args__: ClassVar[dict[str, Any]] = {"polymorphic_on": "kind", "polymorphic_identity": "b"}

    class Child(Parent):
        __tablename__ = "children_of_bases"
        cid: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        base_id: Mapped[int] = mapped_column(sa.ForeignKey("bases.id"))
        name: Mapped[str]
        __mapper_args__: ClassVar[dict[str, Any]] = {"polymorphic_identity": "c"}

    return Base.metadata, Child(id=1, cid=2, name="a"), Child(id=2, cid=1, name="b")


def join_of_two() -> tuple[sa.MetaData, Any, Any]:
    metadata = sa.MetaData()
    first = sa.Table("firsts", metadata, sa.Column("id", sa.Integer, primary_key=True))
    second = sa.Table(
        "seconds", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("first_id", sa.ForeignKey("firsts.id")),
        sa.Column("name", sa.String(20)),
    )  # fmt: skip
    kind = type("Both", (Named,), {})
    properties = {"id": column_property(first.c.id, second.c.first_id), "second_id": second.c.id}
    registry().map_imperatively(kind, sa.join(first, second), primary_key=[first.c.id], properties=properties)
    return metadata, kind(id=1, second_id=2, name="a"), kind(id=2, second_id=1, name="b")


@pytest.mark.parametrize("make", [other_order, key_of_its_own, join_of_two])
def test_old_values_are_those_of_the_row(stage: Stage, make: Any) -> None:
    """Where the identity of an object is not the key of its table, in that order."""
    metadata, one, other = make()
    stage.create(metadata)
    stage.hook()
    with stage.session() as session:
        session.add_all([one, other])
        session.commit()
        assert (one.name, other.name) == ("a", "b")
        one.name, other.name = "A", "B"
        session.commit()
        assert (one.name, other.name) == ("A", "B")
        session.delete(one)
        session.commit()
    events = stage.check(metadata)
    updates = {event.after["name"]: event.before for event in events if event.operation == "update"}  # type: ignore[index]
    assert updates == {"A": {"name": "a"}, "B": {"name": "b"}}
    assert [event.before["name"] for event in events if event.operation == "delete" and "name" in (event.before or {})] == ["A"]


def test_what_a_flush_left_lends_nothing_to_a_later_statement(stage: Stage) -> None:
    """It found nothing to change; meanwhile the row has changed without the session."""
    stage.hook()
    tags = Tag.__table__
    with stage.session() as session:
        session.add(Tag(id=1, name="a"))
        session.commit()
        tag = session.get_one(Tag, 1)
        tag.name = "b"
        tag.name = "a"
        session.flush()
        connection = session.connection()
        connection.execute(sa.update(tags).where(tags.c.name == "a").values(name="mid"))
        connection.execute(sa.update(tags).where(tags.c.id == b("which")), {"which": 1, "name": "core"})
        session.commit()
    assert {"name": "a"} not in befores(stage.check())[1:]


# Rows that something keeps out ---------------------------------------------------------------------------------------


_KEEP = {
    "sqlite": [
        "CREATE TRIGGER keep BEFORE INSERT ON things WHEN EXISTS (SELECT 1 FROM things WHERE id = NEW.id) BEGIN SELECT RAISE(IGNORE); END"
    ],
    "postgresql": [
        (
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN "
            "IF TG_OP = 'UPDATE' AND OLD.id = 1 THEN RETURN NULL; END IF; "
            "IF TG_OP = 'INSERT' AND EXISTS (SELECT FROM things WHERE id = NEW.id) THEN RETURN NULL; END IF; RETURN NEW; END $f$"
        ),
        "CREATE TRIGGER keep BEFORE INSERT OR UPDATE ON things FOR EACH ROW EXECUTE FUNCTION keep()",
    ],
}


@pytest.mark.parametrize("carry", [True, False])
def test_a_row_that_is_there_keeps_out_another(stage: Stage, carry: bool) -> None:
    """There is no event of what a trigger did not let in, although a row of that key is there."""
    metadata, table = things()
    stage.create(metadata)
    with stage.engine.begin() as connection:
        for statement in _KEEP[connection.dialect.name]:
            connection.exec_driver_sql(statement)
    stage.hook(carry=carry)
    with stage.session() as session:
        session.execute(table.insert(), {"id": 1, "n": "first"})
        session.execute(table.insert(), {"id": 1, "n": "second"})
        session.execute(table.insert(), [{"id": 1, "n": "third"}, {"id": 2, "n": "new"}])
        session.execute(table.update().where(table.c.id == b("which")), [{"which": 1, "n": "x"}, {"which": 2, "n": "x"}])
        session.commit()
    events = stage.check(metadata)
    updated = ["2"] if stage.engine.dialect.name == "postgresql" else ["1", "2"]
    assert [event.key for event in events if event.operation == "create"] == ["1", "2"]
    assert [event.key for event in events if event.operation == "update"] == updated


def test_a_conflict_that_the_table_ignores(stage: Stage) -> None:
    """SQLite's ON CONFLICT IGNORE of a constraint."""
    if stage.engine.dialect.name != "sqlite":
        pytest.skip("SQLite's")
    metadata = sa.MetaData()
    table = sa.Table(
        "things", metadata, sa.Column("id", sa.Integer, primary_key=True, sqlite_on_conflict_primary_key="IGNORE"), sa.Column("n", sa.Integer)
    )
    stage.create(metadata)
    stage.hook()
    with stage.session() as session:
        session.execute(table.insert(), {"id": 1, "n": 1})
        session.execute(table.insert(), {"id": 1, "n": 2})
        session.execute(table.insert(), [{"id": 1, "n": 3}, {"id": 2, "n": 4}])
        session.commit()
    assert [event.key for event in stage.check(metadata)] == ["1", "2"]


# The caller sees what he would without -------------------------------------------------------------------------------


@pytest.mark.parametrize("old_values", ["known", "always"])
def test_parameters_that_are_none_when_it_runs(stage: Stage, old_values: str) -> None:
    """``literal_execute`` and ``expanding``, by name."""
    metadata, table = things()
    stage.create(metadata)
    stage.hook(old_values=old_values)
    with stage.session() as session:
        session.execute(table.insert(), [{"id": 1, "n": "a"}, {"id": 2, "n": "b"}])
        literal = sa.update(table).where(table.c.id == b("which", literal_execute=True))
        assert session.execute(literal, {"which": 1, "n": "c"}).rowcount == 1
        several = sa.update(table).where(table.c.id.in_(b("which", expanding=True)))
        assert session.execute(several, {"which": [1, 2], "n": "d"}).rowcount == 2
        assert session.execute(sa.delete(table).where(table.c.id == b("which", literal_execute=True)), {"which": 2}).rowcount == 1
        session.commit()
    events = stage.check(metadata)
    assert [event.operation for event in events] == ["create", "create", "update", "update", "update", "delete"]
    if old_values == "always":
        assert befores(events)[1:] == [{"n": "c"}, {"n": "b"}]


def test_text_that_is_returned(stage: Stage) -> None:
    """Beside what rides along."""
    metadata, table = things()
    stage.create(metadata)
    stage.hook()
    with stage.session() as session:
        assert session.execute(table.insert().values(id=1, n="a").returning(sa.text("*"))).all() == [(1, "a")]
        assert session.execute(table.update().where(table.c.id == 1).values(n="r").returning(sa.text("*"))).all() == [(1, "r")]
        session.commit()
    assert [event.operation for event in stage.check(metadata)] == ["create", "update"]


@pytest.mark.parametrize("paramstyle", ["named", "numeric", "qmark"])
def test_ways_of_writing_parameters(stage: Stage, paramstyle: Any) -> None:
    """SQLAlchemy's are not ours."""
    if stage.engine.dialect.name != "sqlite":
        pytest.skip("SQLite's driver takes several")
    engine = stage.engine = sa.create_engine(stage.engine.url, paramstyle=paramstyle)
    stage.hook()
    with stage.session() as session:
        session.add(Tag(id=1, name="a"))
        session.commit()
        session.execute(sa.update(Tag).values(name="b"))
        session.commit()
    assert [event.operation for event in stage.check()] == ["create", "update"]
    engine.dispose()


def test_an_error_shows_what_the_caller_wrote(stage: Stage) -> None:
    """Without what was to ride along."""
    metadata = sa.MetaData()
    table = sa.Table("things", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", sa.String(9), server_default="d"))
    stage.create(metadata)
    stage.hook()
    with stage.session() as session:
        session.execute(table.insert(), [{"id": 1}])
        with pytest.raises(sa.exc.IntegrityError) as raised:
            session.execute(table.insert(), [{"id": 1}, {"id": 2}])
        assert "RETURNING" not in str(raised.value.statement)
        assert "RETURNING" not in str(raised.value)


def test_commit_of_a_failed_transaction(stage: Stage) -> None:
    """PostgreSQL makes a ROLLBACK of it, and there is no event of what it takes back."""
    if stage.engine.dialect.name != "postgresql":
        pytest.skip("PostgreSQL's")
    stage.hook(carry=False)
    with stage.session() as session:
        session.execute(sa.insert(Tag), [{"id": 1, "name": "a"}])
        with pytest.raises(sa.exc.ProgrammingError):
            session.execute(sa.text("SELECT * FROM nowhere"))
        session.commit()
        session.execute(sa.insert(Tag), [{"id": 2, "name": "a"}])
        session.commit()
    assert [event.key for event in stage.check()] == ["2"]


def test_explain_analyze_executes(stage: Stage) -> None:
    """It is a gap, as what it explains would be."""
    if stage.engine.dialect.name != "postgresql":
        pytest.skip("PostgreSQL's")
    broker, found = stage.hook(), []
    broker.signals.subscribe(found.append, Gap)
    with stage.session() as session:
        for how in ("EXPLAIN ANALYZE", "EXPLAIN (COSTS, ANALYZE)", "explain analyze verbose", "EXPLAIN", "EXPLAIN (COSTS)"):
            session.execute(sa.text(f"{how} UPDATE tags SET name = 'e'"))
        session.rollback()
    assert len(found) == 3


# Keys ----------------------------------------------------------------------------------------------------------------

SPELLINGS: dict[str, list[tuple[Any, str, str]]] = {
    "sqlite": [(sa.String(20, collation="NOCASE"), "ann", "ANN"), (sa.String(20, collation="RTRIM"), "a", "a ")],
    "postgresql": [(postgresql.INET(), "::1", "0:0:0:0:0:0:0:1"), (postgresql.MACADDR(), "08:00:2b:01:02:03", "08002B010203")],
}


@pytest.mark.parametrize("number", [0, 1])
def test_a_row_has_one_key_however_a_statement_spells_it(stage: Stage, number: int) -> None:
    """Its events keep their order by that."""
    kind, stored, other = SPELLINGS[stage.engine.dialect.name][number]
    metadata = sa.MetaData()
    table = sa.Table("spelt", metadata, sa.Column("id", kind, primary_key=True), sa.Column("n", sa.Integer))
    stage.create(metadata)
    stage.hook()
    mapped = type("Spelt", (Named,), {})
    registry().map_imperatively(mapped, table)
    with stage.session() as session:
        session.add(mapped(id=stored, n=1))
        session.commit()
        one: Any = session.scalars(sa.select(mapped)).one()
        one.n = 2
        session.commit()
        by_key = sa.update(table).where(table.c.id == b("which"))
        assert session.execute(by_key, {"which": other, "n": 3}).rowcount == 1
        session.execute(by_key, [{"which": other, "n": 4}, {"which": stored, "n": 5}])
        assert session.execute(sa.delete(table).where(table.c.id == b("which")), {"which": other}).rowcount == 1
        session.commit()
    events = stage.check(metadata)
    assert [event.operation for event in events] == ["create", "update", "update", "update", "update", "delete"]
    assert len({event.key for event in events}) == 1


def test_old_values_after_what_no_object_took_note_of(stage: Stage) -> None:
    """``post_update`` before a DELETE in the same flush, and a bulk method before a flush: the old values are those of the row."""
    stage.hook()
    with stage.session() as session:
        tag = Tag(id=1, name="a")
        session.add(tag)
        session.commit()
        assert tag.name == "a"
        tag.name = "b"
        session.bulk_save_objects([tag])
        session.commit()  # the object is changed still, and flushed once more
        savepoint = session.begin_nested()
        session.bulk_update_mappings(sa.inspect(Tag), [{"id": 1, "name": "c"}])
        savepoint.rollback()
        tag = session.get_one(Tag, 1)
        tag.name = "d"
        session.commit()
    assert befores(stage.check()) == [{}, {"name": "b"}, {"name": "b"}]


def test_old_values_of_a_row_that_post_update_has_changed(stage: Stage) -> None:
    """The DELETE of the same flush."""

    class Base(DeclarativeBase):
        pass

    class Person(Base):
        __tablename__ = "persons_with_balls"
        id: Mapped[int] = mapped_column(primary_key=True)
        favourite_id: Mapped[int | None] = mapped_column(sa.ForeignKey("balls.id", use_alter=True, name="favourite"))
        favourite: Mapped[Ball | None] = relationship(post_update=True, foreign_keys=favourite_id)

    class Ball(Base):
        __tablename__ = "balls"
        id: Mapped[int] = mapped_column(primary_key=True)
        owner_id: Mapped[int] = mapped_column(sa.ForeignKey("persons_with_balls.id"))
        owner: Mapped[Person] = relationship(foreign_keys=owner_id)

    Base.registry.configure()
    stage.create(Base.metadata)
    stage.hook()
    with stage.session() as session:
        person = Person(id=1)
        ball = Ball(id=2, owner=person)
        person.favourite = ball
        session.add_all([person, ball])
        session.commit()
        assert (person.favourite_id, ball.owner_id) == (2, 1)
        session.delete(ball)
        session.delete(person)
        session.commit()
    events = stage.check(Base.metadata)
    (removed,) = [event for event in events if event.operation == "delete" and event.entity == "persons_with_balls"]
    assert removed.before == {"id": 1, "favourite_id": None}


# Who executes it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["before", "after"])
def test_a_listener_that_executes_many_itself(stage: Stage, way: str) -> None:
    """If it comes first, it is an error where nothing tells the rows then, not a loss."""
    metadata, table = things()
    stage.create(metadata)

    def itself(cursor: Any, sql: str, parameters: Any, context: Any) -> bool:
        cursor.executemany(sql, parameters)
        return True

    if way == "after":
        stage.hook()
    sa.event.listen(stage.engine, "do_executemany", itself)
    if way == "before":
        stage.hook()
    update = table.update().where(table.c.id == b("which")).values(n=b("what"))
    sets = [{"which": 1, "what": "d"}, {"which": 2, "what": "e"}]
    with stage.engine.begin() as connection:
        connection.execute(table.insert(), [{"id": 1, "n": "a"}, {"id": 2, "n": "b"}, {"id": 3, "n": "b"}])
    for statement, given in [(update, sets), (table.delete().where(table.c.n == b("what")), [{"what": "d"}, {"what": "b"}])]:
        with stage.engine.connect() as connection:
            try:
                connection.execute(statement, given)
            except CaptureError as error:
                assert way == "before"
                assert "do_executemany" in str(error)  # noqa: PT017 - it depends on the driver
                with pytest.raises(CaptureError, match="no event"):
                    connection.commit()
            else:
                connection.commit()
    stage.check(metadata)


# Names and forms ----------------------------------------------------------------------------------------------------


def test_a_key_whose_label_is_too_long(stage: Stage) -> None:
    """The compiler shortens the name of its parameter."""

    class Own(DeclarativeBase):
        pass

    class Entry(Own):
        __tablename__ = "inventory_warehouse_stock_adjustment_history_entries"
        adjustment_id: Mapped[int] = mapped_column(primary_key=True)
        n: Mapped[str | None]

    stage.create(Own.metadata)
    stage.hook()
    with stage.session() as session:
        session.add_all([Entry(adjustment_id=number, n="a") for number in (1, 2, 3)])
        session.commit()
        entries = session.scalars(sa.select(Entry).order_by(Entry.adjustment_id)).all()
        entries[0].n = "b"
        session.flush()
        entries[0].n = entries[1].n = "c"
        session.flush()
        session.delete(entries[2])
        session.commit()
    assert [event.operation for event in stage.check(Own.metadata)] == ["create"] * 3 + ["update"] * 3 + ["delete"]


def test_tables_of_one_name_in_two_schemas(stage: Stage) -> None:
    """What rides along says of which it is."""
    if stage.engine.dialect.name == "sqlite":
        pytest.skip("SQLite's schemas are files")
    metadata = sa.MetaData()
    one, two = (
        sa.Table("t", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", sa.String(9)), schema=name)
        for name in ("One", "two")
    )
    with stage.engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema("One"))
        connection.execute(sa.schema.CreateSchema("two"))
    metadata.create_all(stage.engine)
    stage.hook(old_values="always")
    with stage.engine.begin() as connection:
        for table in (one, two):
            connection.execute(table.insert(), [{"id": 1, "n": str(table.schema)}, {"id": 2, "n": None}])
        connection.execute(one.update().where(one.c.id == two.c.id).values(n=two.c.n))
        assert connection.execute(one.update().where(one.c.id == two.c.id).values(n="x").returning(one.c.id)).all() == [(1,), (2,)]
        connection.execute(one.delete().where(one.c.id == two.c.id, two.c.id == 1))
    assert [(event.type, event.key) for event in stage.events()[4:]] == [
        ("One.t.update", "1"), ("One.t.update", "2"), ("One.t.update", "1"), ("One.t.update", "2"), ("One.t.delete", "1"),
    ]  # fmt: skip


def test_json_null_that_comes_back(stage: Stage) -> None:
    """Also where None would be NULL; and numbers with all of their digits."""
    metadata = sa.MetaData()
    table = sa.Table("docs", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("v", sa.JSON(none_as_null=True)))
    stage.create(metadata)
    stage.hook(old_values="always")
    with stage.engine.begin() as connection:
        connection.execute(table.insert().values([{"id": 1, "v": sa.JSON.NULL}, {"id": 2, "v": {}}, {"id": 3, "v": 0.1 + 0.2}]))
        connection.execute(table.update().where(table.c.id == b("which")).values(v=sa.JSON.NULL), [{"which": 2}, {"which": 3}])
        connection.execute(table.update().where(table.c.id < 2).values(v=sa.null()))
    stage.check(metadata)


def test_whole_numbers_beside_floats(stage: Stage) -> None:
    """SQLite returns 2.0 for a 2 beside a REAL."""
    metadata = sa.MetaData()
    table = sa.Table(
        "mixed",
        metadata,
        sa.Column("f", sa.Float, primary_key=True),
        sa.Column("k", sa.Integer, primary_key=True),
        sa.Column("n", sa.Integer),
    )
    stage.create(metadata)
    stage.hook()
    with stage.engine.begin() as connection:
        connection.execute(table.insert(), {"f": 2.0, "k": 2, "n": 3})
        connection.execute(table.update().where(table.c.f > 1).values(n=1))
        connection.execute(table.delete().where(table.c.f > 1))
    events = stage.check(metadata)
    assert {event.key for event in events} == {"[2.0,2]"}
    assert [type(value) for event in events for name, value in {**event.after, **event.before}.items() if name != "f"] == [int] * 5


# What fails ---------------------------------------------------------------------------------------------------------


def test_sqlite_that_rolls_back_by_itself(stage: Stage) -> None:
    """What waited to be written is undone with the rest."""
    if stage.engine.dialect.name != "sqlite":
        pytest.skip("SQLite's")
    metadata, table = things()
    unique = sa.Column("u", sa.Integer, unique=True, sqlite_on_conflict_unique="ROLLBACK")
    other = sa.Table("others", metadata, sa.Column("id", sa.Integer, primary_key=True), unique)
    stage.create(metadata)
    stage.hook()
    with stage.engine.begin() as connection:
        connection.execute(other.insert(), {"id": 1, "u": 5})
    with stage.engine.connect() as connection:
        connection.execute(table.insert(), {"id": 50, "n": "gone"})
        with pytest.raises(sa.exc.IntegrityError):
            connection.execute(other.insert(), {"id": 2, "u": 5})
        connection.execute(table.insert(), {"id": 51, "n": "stays"})
        connection.commit()
    assert [event.key for event in stage.check(metadata)] == ["1", "51"]


@pytest.mark.parametrize("way", ["table", "statement", "batches"])
def test_rows_that_sqlite_keeps_of_a_statement_that_failed(stage: Stage, way: str) -> None:
    """FAIL, and an earlier batch of many: of these rows nothing tells, so they cannot be committed; a savepoint undoes them."""
    if stage.engine.dialect.name != "sqlite":
        pytest.skip("SQLite's")
    metadata = sa.MetaData()
    unique = sa.Column("u", sa.Integer, unique=True, sqlite_on_conflict_unique="FAIL" if way == "table" else None)
    table = sa.Table("left_behind", metadata, sa.Column("id", sa.Integer, primary_key=True), unique)
    stage.create(metadata)
    stage.hook()
    many = [{"u": 1}, {"u": 2}, {"u": 3}, {"u": 1}]
    statement: Any = table.insert().return_defaults(sort_by_parameter_order=True)
    given: Any = many
    if way != "batches":
        statement, given = table.insert().values(many), {}
    if way == "statement":
        statement = statement.prefix_with("OR FAIL")
    options = {"insertmanyvalues_page_size": 2}
    with stage.engine.connect() as connection:
        with connection.begin_nested() as savepoint:
            with pytest.raises(sa.exc.IntegrityError):
                connection.execute(statement, given, execution_options=options)
            savepoint.rollback()
        connection.execute(table.insert(), {"id": 9, "u": 9})
        connection.commit()
        with pytest.raises(sa.exc.IntegrityError):
            connection.execute(statement, given, execution_options=options)
        with pytest.raises(CaptureError, match="roll it back"):
            connection.commit()
    assert [event.key for event in stage.check(metadata)] == ["9"]


def test_the_hooks_go_while_a_transaction_has_events(stage: Stage) -> None:
    """They are written with its COMMIT all the same."""
    metadata, table = things()
    stage.create(metadata)
    stage.hook()
    assert stage.broker is not None
    with stage.engine.connect() as connection, stage.engine.connect() as idle:
        connection.execute(table.insert(), [{"id": 1}, {"id": 2}])
        idle.execute(sa.select(table)).all()
        stage.broker.uninstall()
        connection.commit()
        connection.execute(table.insert(), [{"id": 3}])
        connection.rollback()
    assert [event.key for event in stage.check(metadata)] == ["1", "2"]


def test_rows_without_a_key_that_get_their_default(stage: Stage) -> None:
    """Which only the database knows."""
    metadata = sa.MetaData()
    parents = sa.Table("parents_set", metadata, sa.Column("id", sa.Integer, primary_key=True))
    refers = sa.Column("pid", sa.ForeignKey(parents.c.id, ondelete="SET DEFAULT"), server_default="9")
    children = sa.Table("children_set", metadata, refers, sa.Column("n", sa.String(9)))
    stage.create(metadata)
    stage.hook()
    with stage.engine.begin() as connection:
        connection.execute(parents.insert(), [{"id": 1}, {"id": 9}])
        connection.execute(children.insert(), [{"pid": 1, "n": "a"}])
        connection.execute(parents.delete().where(parents.c.id == 1))
    anew = next(event for event in stage.check(metadata)[::-1] if event.operation == "create")
    assert (anew.after, anew.payload["unknown"]) == ({"n": "a"}, ["pid"])


@pytest.mark.parametrize("verb", ["update", "delete"])
def test_by_key_with_rows_for_the_caller(stage: Stage, verb: str) -> None:
    """SQLite counts them when they are fetched."""
    metadata, table = things()
    stage.create(metadata)
    stage.hook()
    by_key = table.c.id == b("which")
    statement: Any = table.update().where(by_key) if verb == "update" else table.delete().where(by_key)
    with stage.engine.begin() as connection:
        connection.execute(table.insert(), [{"id": 1, "n": "a"}, {"id": 2, "n": "b"}])
        given = {"n": "c"} if verb == "update" else {}
        assert connection.execute(statement.returning(table.c.id), {"which": 1, **given}).all() == [(1,)]
        assert connection.execute(statement.returning(table.c.id), {"which": 9, **given}).all() == []
    assert [(event.operation, event.key) for event in stage.check(metadata)[2:]] == [(verb, "1")]


SECOND_FAILS: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "delete": (lambda table: table.delete().where(table.c.id == b("i")), [{"i": 1}, {"i": 2}]),
    "update": (lambda table: table.update().where(table.c.id == b("i")), [{"i": 1, "n": "x"}, {"i": 2, "n": "x"}]),
    "told": (lambda table: table.update().where(table.c.id == b("i")).values(n=b("x")), [{"i": 1, "x": "x"}, {"i": 2, "x": "x"}]),
}


@pytest.mark.parametrize("way", SECOND_FAILS)
def test_the_first_set_of_many_stays_when_the_second_fails(stage: Stage, way: str) -> None:
    """SQLite keeps it, and so does its event."""
    if stage.engine.dialect.name != "sqlite":
        pytest.skip("SQLite's")
    metadata = sa.MetaData()
    table = sa.Table("firsts", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", sa.String(9), unique=True))
    refers = sa.Table("refers", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("to", sa.ForeignKey(table.c.id)))
    stage.create(metadata)
    stage.hook()
    make, sets = SECOND_FAILS[way]
    with stage.engine.begin() as connection:
        connection.execute(table.insert(), [{"id": 1, "n": "a"}, {"id": 2, "n": "b"}])
        connection.execute(refers.insert(), {"id": 1, "to": 2})
        with pytest.raises(sa.exc.IntegrityError):
            connection.execute(make(table), sets)
    assert [(event.operation, event.key) for event in stage.check(metadata)[3:]] == [("delete" if way == "delete" else "update", "1")]


@pytest.mark.parametrize("sets", [
    [(1, 50, "1"), (50, 51, "2"), (51, 1, "4")],
    [(1, 50, "1"), (50, 51, "2"), (77, 78, "3"), (51, 1, "4")],
    [(77, 2, "b"), (1, 50, "4")],
])  # fmt: skip
def test_many_sets_that_move_keys_onto_each_other(stage: Stage, sets: list[tuple[int, int, str]]) -> None:
    """Each tells itself whether it has matched."""
    metadata, table = things()
    stage.create(metadata)
    stage.hook()
    with stage.engine.begin() as connection:
        connection.execute(table.insert(), [{"id": 1, "n": "a"}, {"id": 2, "n": "b"}])
        connection.execute(table.update().where(table.c.id == b("i")), [{"i": old, "id": new, "n": n} for old, new, n in sets])
    stage.check(metadata)


def test_the_hooks_go_before_a_savepoint_is_undone(stage: Stage) -> None:
    """So are the events of what came after it."""
    stage.hook()
    assert stage.broker is not None
    with stage.session() as session:
        session.add(Tag(id=1, name="a"))
        session.flush()
        nested = session.begin_nested()
        session.add_all([Tag(id=2, name="b"), Tag(id=3, name="c")])
        session.flush()
        stage.broker.uninstall()
        nested.rollback()
        session.commit()
    assert [event.key for event in stage.check()] == ["1"]


def test_the_rowcount_that_is_kept(stage: Stage) -> None:
    """``preserve_rowcount`` beside RETURNING: what the driver says before rows are fetched."""
    metadata, table = things()
    stage.create(metadata)
    by_key, given = table.c.id == b("which"), {"which": 1}
    statements: list[tuple[Any, dict[str, Any]]] = [
        (table.insert().values(id=1, n="a").returning(table.c.id), {}),
        (table.update().where(table.c.n == "a").values(n="b").returning(table.c.n), {}),
        (table.update().where(by_key).returning(table.c.n), {**given, "n": "c"}),
        (table.delete().where(by_key).returning(table.c.n), given),
    ]

    def told() -> list[Any]:
        with stage.engine.begin() as connection:
            results = [connection.execute(one, values, execution_options={"preserve_rowcount": True}) for one, values in statements]
            return [(result.rowcount, result.all(), result.rowcount) for result in results]

    plain = told()
    stage.hook()
    assert told() == plain
    assert [event.operation for event in stage.check(metadata)] == ["create", "update", "update", "delete"]


def test_the_rowcount_that_is_kept_of_many_inserts(stage: Stage) -> None:
    """Of which rows come back that nobody asked for: what the database sets, and what an upsert has done."""
    upsert = postgresql.insert if stage.engine.dialect.name == "postgresql" else sqlite.insert
    metadata = sa.MetaData()
    table = sa.Table("things", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", sa.String(9)), sa.Column("d", sa.Integer, server_default="4"))
    stage.create(metadata)
    statements = [
        (table.insert(), (1, 2, 3)),
        (upsert(table).on_conflict_do_nothing(), (3, 4, 5)),
        (upsert(table).on_conflict_do_update(index_elements=["id"], set_={"n": "c"}), (5, 6)),
    ]

    def told() -> list[int]:
        with stage.engine.begin() as connection:
            options = {"preserve_rowcount": True}
            sets = [(one, [{"id": n, "n": "a"} for n in numbers]) for one, numbers in statements]
            return [connection.execute(one, some, execution_options=options).rowcount for one, some in sets]

    plain = told()
    with stage.engine.begin() as connection:
        connection.execute(table.delete())
    stage.hook()
    assert told() == plain == [3, 2, 2]
    stage.check(metadata)


@pytest.mark.parametrize("listens", [False, True])
def test_what_an_error_shows(stage: Stage, listens: bool) -> None:
    """And what the application's own listeners are told: what the caller has written, of statements of many rows too."""
    metadata = sa.MetaData()
    columns = [sa.Column(f"some_column_with_a_long_name_{n}", sa.Integer) for n in range(9)]
    table = sa.Table(
        "things", metadata, sa.Column("id", sa.Integer, primary_key=True, autoincrement=False), sa.Column("part", sa.Integer, primary_key=True),
        *columns, sa.Column("d", sa.Integer, server_default="4"),
    )  # fmt: skip
    stage.create(metadata)
    some, all_of_them = {"id": 1, "part": 1}, {"id": 1, "part": 1, **{column.name: 1 for column in columns}}
    statements: list[tuple[Any, Any]] = [
        (table.insert().returning(table.c.id), [some, some]),
        (table.insert().returning(table.c.id), [all_of_them, all_of_them]),
        (table.insert(), [all_of_them, all_of_them]),
        (table.insert().values([all_of_them, all_of_them]), {}),
        (table.insert().values(d=sa.literal_column("nope")), some),
        (table.update().values(d=sa.literal_column("nope")), {}),
        (table.delete().where(sa.literal_column("nope") > 1), {}),
    ]
    told: list[Any] = []

    def shown() -> list[Any]:
        told.clear()
        found: list[Any] = []
        with stage.engine.connect() as connection:
            for one, values in statements:
                with pytest.raises(sa.exc.DBAPIError) as error:
                    connection.execute(one, values)
                found.append((error.value.statement, str(error.value).partition("[SQL: ")[2].partition("[parameters")[0]))
                connection.rollback()
        return [*found, *told]

    def listen(context: Any) -> None:
        told.append(context.statement)

    plain = shown()
    if listens:
        sa.event.listen(stage.engine, "handle_error", listen)
        plain = shown()
        sa.event.remove(stage.engine, "handle_error", listen)
    stage.hook()
    if listens:
        sa.event.listen(stage.engine, "handle_error", listen)
    try:
        assert shown() == plain
    finally:
        if listens:
            sa.event.remove(stage.engine, "handle_error", listen)

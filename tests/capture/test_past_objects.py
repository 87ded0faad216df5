"""Old values of rows that were written past the session's objects: what the row had, or nothing; never what it no longer had."""

from __future__ import annotations

import datetime as dt
import enum
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from sqla_events import EventFilter, install_crud_hooks
from sqla_events.capture import buffer, within
from tests.capture.conftest import Stage
from tests.capture.model import Tag

TAG = sa.inspect(Tag)
SYNC = {"synchronize_session": "auto"}
UNSYNC = {"synchronize_session": False}


def bulk(session: Session, name: str = "bulk") -> None:
    """No object takes note of it."""
    session.bulk_update_mappings(TAG, [{"id": 1, "name": name}])


def anew(session: Session) -> Tag:
    session.expire_all()
    return session.get_one(Tag, 1)


def set_based(session: Session) -> None:
    bulk(session)
    session.execute(sa.update(Tag).where(Tag.name == "bulk").values(name="core"))
    anew(session).name = "end"


def set_based_and_deleted(session: Session) -> None:
    bulk(session)
    session.execute(sa.update(Tag).where(Tag.name == "bulk").values(name="core"))
    session.delete(anew(session))


def row_switch(session: Session) -> None:
    session.delete(session.get_one(Tag, 1))
    new = Tag(id=1, name="switched")
    session.add(new)
    session.flush()
    session.execute(sa.update(Tag).where(Tag.name == "switched").values(name="core"))
    assert new.name == "core"
    new.name = "end"


def deleted_and_made_anew(session: Session) -> None:
    bulk(session)
    session.execute(sa.delete(Tag).where(Tag.name == "bulk"))
    session.expire_all()
    new = Tag(id=1, name="new")
    session.add(new)
    session.flush()
    new.name = "end"


def upsert(session: Session) -> None:
    bulk(session)
    insert: Any = sqlite.insert(Tag) if session.get_bind().dialect.name == "sqlite" else postgresql.insert(Tag)
    session.execute(insert.values(id=1, name="up").on_conflict_do_update(index_elements=["id"], set_={"name": "up"}))
    anew(session).name = "end"


def upsert_of_many(session: Session) -> None:
    """With a mapper's cache, as the unit of work."""
    tag = session.get_one(Tag, 1)
    assert tag.name == "a"
    insert: Any = sqlite.insert(Tag) if session.get_bind().dialect.name == "sqlite" else postgresql.insert(Tag)
    statement = insert.on_conflict_do_update(index_elements=["id"], set_={"name": insert.excluded.name})
    session.execute(statement, [{"id": 1, "name": "up"}, {"id": 2, "name": "two"}])
    tag.name = "end"


def key_that_moves_onto_one(session: Session) -> None:
    session.add(Tag(id=2, name="two"))
    session.flush()
    session.bulk_update_mappings(TAG, [{"id": 2, "name": "bulk"}])
    session.execute(sa.delete(Tag).where(Tag.name == "bulk"))
    tag = anew(session)
    tag.id = 2
    session.flush()
    tag.name = "end"


def key_that_takes_it_along(session: Session) -> None:
    tag = session.get_one(Tag, 1)
    assert tag.name == "a"
    bulk(session)
    tag.id = 2
    session.flush()
    tag.name = "end"


def savepoint(session: Session) -> None:
    tag = session.get_one(Tag, 1)
    assert tag.name == "a"
    bulk(session)
    nested = session.begin_nested()
    session.add(Tag(id=9, name="nine"))
    session.flush()
    nested.rollback()
    tag.name = "end"


def unsynchronized(session: Session) -> None:
    tag = session.get_one(Tag, 1)
    session.execute(sa.update(Tag).where(Tag.name == tag.name).values(name="core"), execution_options=UNSYNC)
    tag.name = "end"


def core(session: Session) -> None:
    tag = session.get_one(Tag, 1)
    assert tag.name == "a"
    session.execute(sa.update(Tag.__table__).where(Tag.id == 1).values(name="core"))
    tag.name = "end"
    session.flush()
    session.delete(tag)


def by_expression(session: Session) -> None:
    tag = session.get_one(Tag, 1)
    bulk(session)
    tag.name = sa.func.upper("x")  # type: ignore[assignment]
    session.flush()
    assert tag.name == "X"
    tag.name = "end"


def flushed_without_change(session: Session) -> None:
    """The object of a flush that had nothing to write is no sign that it takes note of what comes."""
    tag = session.get_one(Tag, 1)
    tag.name = "b"
    tag.name = "a"
    session.flush()
    bulk(session)
    tag.name = "end"
    session.flush()
    tag.name = "b"
    tag.name = "end"
    session.flush()
    bulk(session)
    session.delete(tag)


def without_compiled_cache(session: Session) -> None:
    """SQLAlchemy's documented way to switch it off: statements of the unit of work are told by a cache of the mapper's."""
    tag = session.get_one(Tag, 1)
    assert tag.name == "a"
    session.execute(sa.update(Tag.__table__).where(Tag.id == 1).values(name="core"), execution_options={"compiled_cache": None})
    tag.name = "end"


def by_another_table_of_that_name(session: Session) -> None:
    """As reflected, or declared once more elsewhere."""
    tag = session.get_one(Tag, 1)
    assert tag.name == "a"
    other = sa.Table("tags", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(50)))
    session.execute(sa.update(other).where(other.c.id == 1).values(name="core"))
    tag.name = "end"


def evaluated_otherwise(session: Session) -> None:
    """To Python no object has this key, to the database a row has."""
    tag = session.get_one(Tag, 1)
    assert tag.name == "a"
    session.execute(sa.update(Tag).where(Tag.id == sa.literal("1", sa.Integer)).values(name="core"))
    tag.name = "end"


def evaluated_otherwise_by_key(session: Session) -> None:
    """The same, of a statement that names the key by a parameter."""
    tag = session.get_one(Tag, 1)
    assert tag.name == "a"
    session.execute(sa.update(Tag).where(Tag.id == sa.bindparam("which")).values(name="core"), {"which": "1"})
    tag.name = "end"


def by_key_as_text(session: Session) -> None:
    """A bulk method that was given the key in another form than objects have it."""
    tag = session.get_one(Tag, 1)
    assert tag.name == "a"
    session.bulk_update_mappings(TAG, [{"id": "1", "name": "bulk"}])
    tag.name = "end"


def evaluated_and_deleted(session: Session) -> None:
    tag = session.get_one(Tag, 1)
    assert tag.name == "a"
    session.execute(sa.update(Tag).where(Tag.id == sa.literal("1", sa.Integer)).values(name="core"))
    session.delete(tag)


WAYS = [
    without_compiled_cache, by_another_table_of_that_name, evaluated_otherwise, evaluated_otherwise_by_key, by_key_as_text,
    evaluated_and_deleted,
    set_based, set_based_and_deleted, row_switch, deleted_and_made_anew, upsert, upsert_of_many, key_that_moves_onto_one, key_that_takes_it_along,
    savepoint, unsynchronized, core, by_expression, flushed_without_change,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_no_old_value_is_stale(stage: Stage, way: Callable[[Session], None]) -> None:
    """The events are checked against the rows that they change."""
    stage.hook()
    with stage.session() as session:
        session.add(Tag(id=1, name="a"))
        session.commit()
        way(session)
        session.commit()
    stage.check()


def test_more_rows_than_are_remembered(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the others nothing is told in this transaction; in the next one all is as ever."""
    monkeypatch.setattr(buffer, "MOST_POSTED", 2)
    stage.hook()
    with stage.session() as session:
        tags = [Tag(id=number, name="a") for number in (1, 2, 3)]
        session.add_all(tags)
        session.commit()
        assert [tag.name for tag in tags] == ["a"] * 3
        session.bulk_update_mappings(TAG, [{"id": number, "name": "b"} for number in (1, 2, 3)])
        for tag in tags:
            tag.name = "c"
        session.commit()
        for tag in tags:
            assert tag.name
            tag.name = "d"
        session.commit()
    olds = [event.before for event in stage.check() if event.operation == "update"]
    assert olds[3:] == [{"name": "b"}, {"name": "b"}, {}] + [{"name": "c"}] * 3


class Shade(enum.Enum):
    """A key of members."""

    LIGHT = 1
    DARK = 2


class Shouted(sa.types.TypeDecorator[str]):
    """Another value in the database than objects have."""

    impl = sa.String(20)
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else value.upper()

    def process_result_value(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else value.lower()


@pytest.mark.parametrize(("kind", "one", "two"), [
    (sa.Uuid(), uuid.UUID(int=1), uuid.UUID(int=2)),
    (sa.DateTime(), dt.datetime(2026, 1, 1), dt.datetime(2026, 1, 2)),
    (sa.Numeric(10, 2), Decimal("1.5"), Decimal(2)),
    (sa.Enum(Shade), Shade.LIGHT, Shade.DARK),
    (Shouted(), "one", "two"),
], ids=["uuid", "datetime", "numeric", "enum", "decorated"])  # fmt: skip
@pytest.mark.parametrize("last", ["update", "delete"])
def test_keys_of_every_kind(stage: Stage, kind: Any, one: Any, two: Any, last: str) -> None:
    """A statement costs no other row its old values, and of its own rows they are known."""
    metadata = sa.MetaData()
    key = sa.Column("id", kind, primary_key=True, autoincrement=False)  # SQLAlchemy 2.0 makes a SERIAL of a NUMERIC
    table = sa.Table("keyed", metadata, key, sa.Column("n", sa.Integer), sa.Column("x", sa.Integer))

    class Keyed:
        def __init__(self, **values: Any) -> None:
            for name, value in values.items():
                setattr(self, name, value)

    registry = sa.orm.registry(metadata=metadata)
    registry.map_imperatively(Keyed, table)
    stage.create(metadata)
    stage.hook()
    with stage.session() as session:
        session.add_all([Keyed(id=one, n=1, x=1), Keyed(id=two, n=2, x=1)])
        session.commit()
        found = session.scalars(sa.select(Keyed).order_by(table.c.n)).all()
        session.execute(sa.update(Keyed).where(table.c.n == sa.literal("2", sa.Integer)).values(x=2))
        for keyed in found:
            if last == "delete":
                session.delete(keyed)
            else:
                keyed.x = 3  # type: ignore[attr-defined]
        session.commit()
    last_two = [event for event in stage.check(metadata) if event.operation == last][-2:]
    assert sorted((event.before or {}).get("x", 0) for event in last_two) == [1, 2]
    registry.dispose()


@pytest.mark.parametrize("old_values", ["known", "always"])
def test_a_flush_of_more_objects_than_are_remembered_at_once(stage: Stage, monkeypatch: pytest.MonkeyPatch, old_values: str) -> None:
    """Those that turn out not to have changed are what is forgotten."""
    monkeypatch.setattr(buffer, "MOST_STATES", 3)
    stage.hook(old_values=old_values)
    with stage.session() as session:
        tags = [Tag(id=number, name="a") for number in range(1, 11)]
        session.add_all(tags)
        session.commit()
        for tag in tags:
            tag.name, tag.name = "b", tag.name
        session.flush()
        for tag in tags[2:]:
            tag.name = "c"
        session.flush()
        for tag in tags:
            session.delete(tag)
        session.commit()
    olds = [event.before for event in stage.check() if event.operation != "create"]
    assert olds == [{"name": "a"}] * 8 + [{"id": number, "name": "a" if number < 3 else "c"} for number in range(1, 11)]


def test_a_statement_of_many_rows_that_was_evaluated(stage: Stage) -> None:
    """On PostgreSQL it writes their events itself, and nobody has seen which rows it has changed."""
    which = sa.or_(*(Tag.id == sa.literal(str(number), sa.Integer) for number in range(1, 41)))
    statement = sa.update(Tag).where(which).values(name=Tag.name + "!")
    stage.hook()
    with stage.session() as session:
        session.add_all([Tag(id=number, name="a") for number in range(1, 41)])
        session.commit()
        for _ in range(3):
            tag = session.get_one(Tag, 2)
            assert tag.name is not None
            session.execute(statement)
            tag.name = "end"
            session.commit()
    stage.check()


@pytest.mark.parametrize(("where", "told"), [
    (lambda: Tag.id > 2, True),
    (lambda: sa.and_(Tag.id.in_([3, 4, 5]), Tag.name != "x"), True),
    (lambda: sa.or_(Tag.id == 3, sa.not_(Tag.id < 4), Tag.name.is_(None)), True),
    (lambda: Tag.name > "a", False),
    (lambda: Tag.id == sa.literal("3", sa.Integer), False),
    (lambda: Tag.id + 1 > 3, False),
], ids=["numbers", "lists", "or", "text in order", "text for numbers", "expression"])  # fmt: skip
def test_where_python_and_the_database_are_of_one_mind(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, where: Callable[[], Any], told: bool
) -> None:
    """A statement that writes its events itself costs other rows no old value, if it is sure which those are."""
    monkeypatch.setattr(within, "FEW", 0)
    engine = sa.create_engine(postgres_url)
    Tag.metadata.create_all(engine)
    broker = install_crud_hooks(engine)
    with Session(engine) as session:
        session.add_all([Tag(id=number, name="a") for number in range(1, 6)])
        session.commit()
        tag = session.get_one(Tag, 1)
        assert tag.name == "a"
        session.execute(sa.update(Tag).where(where()).values(name="b"), execution_options={"synchronize_session": "evaluate"})
        tag.name = "c"
        session.commit()
    last = broker.list(EventFilter(limit=100))[-1]
    broker.uninstall()
    engine.dispose()
    assert (last.key, last.before) == ("1", {"name": "a"} if told else {})


def test_what_the_session_takes_note_of_is_told(stage: Stage) -> None:
    """Synchronized statements cost no old value, nor what is written to other tables, nor what a savepoint has undone."""
    stage.hook()
    with stage.session() as session:
        tag = Tag(id=1, name="a")
        session.add(tag)
        session.commit()
        assert tag.name == "a"
        session.execute(sa.update(Tag).where(Tag.name == "a").values(name="b"), execution_options=SYNC)
        tag.name = "c"
        session.flush()
        nested = session.begin_nested()
        session.execute(sa.update(Tag).values(name="d"), execution_options=UNSYNC)
        nested.rollback()
        assert tag.name == "c"
        tag.name = "e"
        session.commit()
    assert [event.before for event in stage.check() if event.operation == "update"][1:] == [{"name": "b"}, {"name": "c"}]


@pytest.mark.parametrize("cascades", ["events", "named", "ignore"])
@pytest.mark.parametrize("last", ["update", "delete"])
def test_after_what_the_database_has_changed(stage: Stage, last: str, cascades: str) -> None:
    """ON DELETE SET NULL and ON UPDATE CASCADE, of which the children's objects know nothing."""
    metadata = sa.MetaData()
    parents = sa.Table("parents_past", metadata, sa.Column("id", sa.Integer, primary_key=True))
    refers = sa.ForeignKey(parents.c.id, ondelete="SET NULL", onupdate="CASCADE")
    children = sa.Table(
        "children_past", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", sa.Integer), sa.Column("parent_id", refers)
    )
    registry = sa.orm.registry(metadata=metadata)

    class Parent:
        pass

    class Child:
        pass

    registry.map_imperatively(Parent, parents)
    registry.map_imperatively(Child, children)
    stage.create(metadata)
    stage.hook(cascades=cascades)
    with stage.engine.begin() as connection:
        connection.execute(parents.insert(), [{"id": 1}, {"id": 2}, {"id": 3}])
        connection.execute(children.insert(), [{"id": 1, "n": 1, "parent_id": 1}, {"id": 2, "n": 1, "parent_id": 2}])
    with stage.session() as session:
        one, two = (session.get_one(Child, number) for number in (1, 2))
        session.delete(session.get_one(Parent, 1))
        session.get_one(Parent, 2).id = 20  # type: ignore[attr-defined]
        session.flush()
        for child in (one, two):
            assert child.parent_id in (1, 2)  # type: ignore[attr-defined]
            if last == "delete":
                session.delete(child)
            else:
                child.n, child.parent_id = 2, 3  # type: ignore[attr-defined]
        session.commit()
    found = stage.check(metadata) if cascades == "events" else stage.events()
    events = [event for event in found if event.entity == "children_past" and "cascaded_from" not in event.payload]
    olds = [event.before for event in events if event.operation == last]
    if cascades != "events":
        assert [{**old, "id": 1} for old in olds] == [{"id": 1}] * 2
        registry.dispose()
        return
    more = {"n": 1} if last == "update" else {"n": 1, "id": 1}
    assert [{**old, "id": 1} if "id" in old else old for old in olds] == [{**more, "parent_id": None}, {**more, "parent_id": 20}]
    registry.dispose()


@pytest.mark.parametrize("capture", [{"enable_update": False}, {"exclude": ["*.tags.update"]}])
def test_after_writes_of_which_no_event_is_wanted(stage: Stage, capture: dict[str, Any]) -> None:
    """They may be past objects all the same."""
    stage.hook(**capture)
    with stage.session() as session:
        session.add(Tag(id=1, name="a"))
        session.commit()
        tag = session.get_one(Tag, 1)
        session.execute(sa.update(Tag.__table__).values(name="core"))
        session.delete(tag)
        session.commit()
    assert [event.before for event in stage.events() if event.operation == "delete"] == [{"id": 1}]


def test_after_text(stage: Stage) -> None:
    """It says which table it writes, and nothing more."""
    stage.hook(on_gap="ignore")
    with stage.session() as session:
        session.add(Tag(id=1, name="a"))
        session.commit()
        tag = session.get_one(Tag, 1)
        assert tag.name == "a"
        session.execute(sa.text("UPDATE tags SET name = 'text'"))
        session.delete(tag)
        session.commit()
    assert [event.before for event in stage.events() if event.operation == "delete"] == [{"id": 1}]


def self_referring() -> tuple[sa.MetaData, Any]:
    """Rows that point to others by a column that is set by ``post_update``."""
    metadata = sa.MetaData()
    table = sa.Table(
        "pointing",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(20)),
        sa.Column("next_id", sa.ForeignKey("pointing.id")),
    )

    class Pointing:
        pass

    mapper = sa.orm.registry(metadata=metadata).map_imperatively(
        Pointing, table, properties={"next": sa.orm.relationship(Pointing, remote_side=table.c.id, post_update=True)}
    )
    mapper.registry.configure()
    return metadata, Pointing


def made(kind: Any, number: int, **values: Any) -> Any:
    one = kind()
    one.id, one.name = number, "a"
    for name, value in values.items():
        setattr(one, name, value)
    return one


def test_a_post_update_of_another_row(stage: Stage) -> None:
    """Costs no old value where a synchronized statement follows."""
    metadata, kind = self_referring()
    stage.create(metadata)
    stage.hook(cascades="ignore")
    with stage.session() as session:
        session.add_all([made(kind, number) for number in (1, 2, 3)])
        session.commit()
        _, two, three = session.scalars(sa.select(kind).order_by(kind.id)).all()
        session.add(made(kind, 4, next=two))
        session.flush()
        session.execute(sa.update(kind).where(kind.id == 1).values(name="b"))
        three.name = "c"
        session.flush()
        session.delete(three)
        session.commit()
    olds = [event.before for event in stage.check(metadata) if event.key == "3" and event.operation != "create"]
    assert olds == [{"name": "a"}, {"id": 3, "name": "c", "next_id": None}]


def test_a_delete_after_a_post_update_of_an_object_that_a_flush_had_left_alone(stage: Stage) -> None:
    """What the ``post_update`` has set is the old value."""
    metadata, kind = self_referring()
    stage.create(metadata)
    stage.hook()
    with stage.session() as session:
        one = made(kind, 1)
        session.add_all([one, made(kind, 2, next=one)])
        session.commit()
        two = session.get_one(kind, 2)
        assert two.next is one
        two.name = "b"
        two.name = "a"
        session.flush()
        session.delete(two)
        session.commit()
    (gone,) = [event for event in stage.check(metadata) if event.operation == "delete"]
    assert gone.before == {"id": 2, "name": "a", "next_id": None}

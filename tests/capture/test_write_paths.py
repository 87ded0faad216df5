"""Each write path of SQLAlchemy: applying its events to a copy of the tables yields the tables."""

from __future__ import annotations

import datetime as dt
import pickle
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, aliased

from tests.capture.conftest import Stage
from tests.capture.model import (
    Color,
    Dog,
    Item,
    Manager,
    Owner,
    Person,
    Pet,
    Point,
    Seat,
    Tag,
    item_tags,
    no_key,
)

Path = Callable[[Session], Any]
PATHS: list[Path] = []


def path(function: Path) -> Path:
    PATHS.append(function)
    return function


def full(**values: Any) -> Item:
    return Item(
        **{
            "label": "ünïcode ☃", "price": Decimal("19.90"), "ratio": 0.1, "made": dt.datetime(2026, 1, 2, 3, 4, 5, 678901), "day": dt.date(2026, 2, 3),
            "clock": dt.time(4, 5, 6, 789), "span": dt.timedelta(days=3, microseconds=5), "ref": uuid.UUID(int=7), "color": Color.RED, "blob": b"\0\xff",
            "doc": {"a": [1, None, {"b": "☃"}]}, "raw": [1, 2], "thing": {1, 2}, "loud": "quiet", "point": Point(1, 2),
        }
        | values
    )  # fmt: skip


@path
def insert_every_kind_of_column(s: Session) -> None:
    s.add_all([full(), Item(), Item(doc=None, raw=None), Item(raw=sa.JSON.NULL), full(color=Color.BLUE, label="")])


@path
def insert_with_expressions_and_defaults(s: Session) -> None:
    s.add_all([Item(count=sa.text("1 + 4")), Item(state="given"), Item(label=sa.func.lower("ABC"))])


@path
def update_some_columns(s: Session) -> None:
    one = full()
    s.add(one)
    s.flush()
    one.label, one.price, one.color, one.loud = "b", Decimal("2.5"), None, "x"
    s.flush()
    s.commit()
    one.count = 8
    one.doc["more"] = True
    one.point = Point(5, None)


@path
def update_with_expression(s: Session) -> None:
    one = Item(count=1)
    s.add(one)
    s.flush()
    one.count = Item.count + 41
    s.flush()
    assert one.count == 42


@path
def update_without_change_and_back(s: Session) -> None:
    one = Item(label="a")
    s.add(one)
    s.flush()
    one.label = "b"
    one.label = "a"
    s.flush()


@path
def many_updates_by_key_of_rows_that_still_match(s: Session) -> None:
    s.add_all([Item(id=n, count=n) for n in (1, 2, 3)])
    s.flush()
    sets = [{"id": 1, "count": 8}, {"id": 2, "count": 9}, {"id": 3, "count": 15}]
    s.execute(sa.update(Item).where(Item.count > 1).execution_options(synchronize_session=None), sets)


@path
def many_updates_at_once(s: Session) -> None:
    items = [Item(count=n) for n in range(20)]
    s.add_all(items)
    s.flush()
    for one in items:
        one.label = f"n{one.count}"
    s.flush()


@path
def delete_and_delete_many(s: Session) -> None:
    items = [full() for _ in range(5)]
    s.add_all(items)
    s.commit()
    s.delete(items[0])
    s.flush()
    for one in items[1:4]:
        s.delete(one)


@path
def association_rows(s: Session) -> None:
    tags = [Tag(name=n) for n in "abc"]
    one, two = Item(tags=tags[:2]), Item(tags=tags)
    s.add_all([one, two])
    s.flush()
    one.tags = [tags[2]]
    two.tags.pop()
    s.flush()
    s.delete(two)


@path
def cascade_orphan_and_post_update(s: Session) -> None:
    owner = Owner(pets=[Dog(name="a", tricks="sit"), Pet(kind="pet", name="b")])
    s.add(owner)
    s.flush()
    owner.favourite = owner.pets[0]
    s.flush()
    owner.pets[0].name = "renamed"
    owner.pets.pop()
    s.commit()
    owner.favourite = None
    s.delete(owner)


@path
def foreign_key_nulled(s: Session) -> None:
    parent = Item(children=[Item(label="x"), Item(label="y")])
    s.add(parent)
    s.commit()
    s.delete(parent)


@path
def joined_inheritance(s: Session) -> None:
    boss, person = Manager(name="a", level=1), Person(name="p")
    s.add_all([boss, person])
    s.flush()
    boss.level, boss.name = 2, "b"
    s.flush()
    s.delete(boss)
    s.add(Manager(name="c", level=3))


@path
def composite_key_and_key_change(s: Session) -> None:
    seat = Seat(row="A", number=1, guest="x")
    s.add_all([seat, Seat(row="B", number=2)])
    s.flush()
    seat.number = 99
    s.flush()
    seat.guest = "y"


@path
def row_switch(s: Session) -> None:
    seat = Seat(row="A", number=1, guest="x")
    s.add(seat)
    s.flush()
    s.delete(seat)
    s.add(Seat(row="A", number=1, guest="new"))


@path
def savepoints(s: Session) -> None:
    s.add(Item(label="kept"))
    with s.begin_nested():
        s.add(Item(label="inner kept"))
    nested = s.begin_nested()
    s.add(Item(label="lost"))
    s.flush()
    nested.rollback()
    with pytest.raises(sa.exc.IntegrityError), s.begin_nested():
        s.add_all([Seat(row="A", number=1), Seat(row="A", number=1)])
        s.expunge_all()
        s.execute(sa.insert(Seat), [{"row": "A", "number": 1}, {"row": "A", "number": 1}])
    s.add(Item(label="after"))


@path
def merge_and_pickle(s: Session) -> None:
    one = Item(label="a")
    s.add(one)
    s.commit()
    _ = one.label
    s.expunge(one)
    back = pickle.loads(pickle.dumps(one))
    back.label = "merged"
    s.merge(back)
    s.merge(Item(id=one.id + 100, label="new"))


@path
def legacy_bulk_methods(s: Session) -> None:
    s.bulk_save_objects([Item(label="a"), Item(label="b")])
    s.bulk_save_objects([Item(label="c")], return_defaults=True)
    s.bulk_insert_mappings(Item, [{"label": "d"}, {"label": "e", "count": 1}])
    ids = s.scalars(sa.select(Item.id).order_by(Item.id)).all()
    s.bulk_update_mappings(Item, [{"id": i, "label": "u"} for i in ids[:2]])


@path
def orm_insert(s: Session) -> None:
    s.execute(sa.insert(Item), [{"label": "a"}, {"label": "b"}])
    s.execute(sa.insert(Item).values(label="c"))
    s.execute(sa.insert(Item).values([{"label": "d"}, {"label": "e"}]))
    got = s.scalars(sa.insert(Item).returning(Item), [{"label": "f"}, {"label": "g"}]).all()
    assert {one.label for one in got} == {"f", "g"}
    assert s.execute(sa.insert(Item).values(label="h").returning(Item.label, Item.state)).all() == [("h", "new")]


@path
def orm_insert_from_select(s: Session) -> None:
    s.add_all([Item(label="a"), Item(label="b")])
    s.flush()
    s.execute(sa.insert(Tag).from_select(["name"], sa.select(Item.label)))


@path
def orm_update_and_delete(s: Session) -> None:
    s.add_all([Item(label=x, count=n) for n, x in enumerate("abcdef")])
    s.flush()
    for mode in ("auto", "evaluate", "fetch", False):
        done = s.execute(
            sa.update(Item).where(Item.count < 4).values(count=Item.count + 1),
            execution_options={"synchronize_session": mode},
        )
        assert done.rowcount >= 1
    assert s.execute(
        sa.update(Item).where(Item.label == "f").values(label="F").returning(Item.label, Item.touched)
    ).all() == [("F", 7)]
    assert s.execute(sa.delete(Item).where(Item.label.in_(["a", "b"]))).rowcount == 2
    assert s.scalars(sa.delete(Item).where(Item.label == "F").returning(Item.label)).all() == ["F"]
    assert s.execute(sa.update(Item).where(Item.label == "nobody").values(label="x")).rowcount == 0


@path
def orm_update_by_primary_key(s: Session) -> None:
    s.add_all([*(Item(label=x) for x in "abc"), Manager(name="d", level=1), Manager(name="e", level=2)])
    s.flush()
    ids = s.scalars(sa.select(Item.id)).all()
    s.execute(sa.update(Item), [{"id": i, "label": f"by key {i}"} for i in ids])
    managers = s.scalars(sa.select(Manager.id)).all()
    s.execute(sa.update(Manager), [{"id": i, "level": 9, "name": "x"} for i in managers])


@path
def query_update_and_delete(s: Session) -> None:
    s.add_all([Item(label=x) for x in "abc"])
    s.flush()
    assert s.query(Item).filter(Item.label > "a").update({Item.label: Item.label + "!"}) == 2
    assert s.query(Item).filter(Item.label == "a").delete() == 1


@path
def core_statements_in_the_session(s: Session) -> None:
    table = Item.__table__
    s.execute(table.insert(), [{"lbl": "a", "loud": "x"}, {"lbl": "b", "loud": "y"}])
    s.execute(
        table.update().where(table.c.lbl == sa.bindparam("which")).values(count=sa.bindparam("n")),
        [{"which": "a", "n": 5}, {"which": "b", "n": 6}],
    )
    s.execute(
        table.update().where(table.c.lbl == sa.bindparam("which")).values(count=sa.bindparam("n")),
        {"which": "a", "n": 55},
    )
    s.execute(table.delete().where(table.c.lbl == sa.bindparam("which")), [{"which": "a"}, {"which": "nobody"}])


@path
def lambda_and_from_statement(s: Session) -> None:
    label = "a"
    s.execute(sa.lambda_stmt(lambda: sa.insert(Item).values(label=label)))
    got = s.scalars(sa.select(Item).from_statement(sa.insert(Item).values(label="b").returning(Item))).one()
    assert got.label == "b"
    s.execute(sa.update(Item).where(lambda: Item.label == label).values(count=9))


@path
def aliased_target(s: Session) -> None:
    s.add_all([Tag(name="a"), Tag(name="b")])
    s.flush()
    if s.get_bind().dialect.name == "postgresql":
        other = aliased(Tag)
        s.execute(sa.delete(other).where(other.name == "a"))


@path
def update_from_another_table(s: Session) -> None:
    s.add_all([Item(label="a"), Item(label="b"), Tag(name="a")])
    s.flush()
    s.execute(
        sa.update(Item).where(Item.label == Tag.name).values(state=Tag.name),
        execution_options={"synchronize_session": False},
    )


@path
def upserts(s: Session) -> None:
    insert: Any = postgresql.insert if s.get_bind().dialect.name == "postgresql" else sqlite.insert
    s.add(Seat(row="A", number=1, guest="old"))
    s.flush()
    new = insert(Seat).values([{"row": "A", "number": 1, "guest": "up"}, {"row": "B", "number": 2, "guest": "in"}])
    s.execute(new.on_conflict_do_update(index_elements=["row", "number"], set_={"guest": new.excluded.guest}))
    s.execute(insert(Seat).values(row="A", number=1, guest="no").on_conflict_do_nothing())
    s.execute(
        insert(Seat).on_conflict_do_nothing(),
        [{"row": "A", "number": 1, "guest": "no"}, {"row": "C", "number": 3, "guest": "in"}],
    )


@path
def table_without_a_key(s: Session) -> None:
    s.execute(no_key.insert(), [{"a": 1, "b": "x"}, {"a": 2, "b": None}, {"a": 2, "b": None}])
    s.execute(no_key.delete().where(no_key.c.a == 1))


@path
def association_table_by_core(s: Session) -> None:
    s.add_all([Item(id=1), Tag(id=1, name="a"), Tag(id=2, name="b")])
    s.flush()
    s.execute(item_tags.insert(), [{"item_id": 1, "tag_id": 1}, {"item_id": 1, "tag_id": 2}])
    s.execute(item_tags.delete().where(item_tags.c.tag_id == 1))


@path
def versioned_rows(s: Session) -> None:
    pet = Pet(kind="pet", name="a")
    s.add(pet)
    s.commit()
    pet.name = "b"
    s.commit()
    pet.name = "c"
    s.flush()
    s.delete(pet)


@pytest.mark.parametrize("write", PATHS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("old_values", ["known", "always"])
def test_replaying_the_events_yields_the_tables(stage: Stage, write: Path, old_values: str) -> None:
    """The proof of completeness, one write path at a time."""
    stage.hook(old_values=old_values)
    with stage.session() as session:
        write(session)
        session.commit()
    stage.check()


def test_plain_connections_are_captured_too(stage: Stage) -> None:
    """Core statements on ``engine.begin()``, with no Session anywhere."""
    stage.hook()
    with stage.engine.begin() as connection:
        connection.execute(sa.insert(Tag), [{"name": "a"}, {"name": "b"}])
        connection.execute(sa.update(Tag).where(Tag.name == "a").values(name="c"))
        connection.execute(sa.delete(Tag).where(Tag.name == "b"))
    with stage.engine.connect() as connection:
        connection.execute(sa.insert(Tag), {"name": "never"})
        connection.rollback()
    assert [event.operation for event in stage.check()] == ["create", "create", "update", "delete"]


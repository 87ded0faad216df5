"""Rows that the database itself changes through foreign keys are events, and replaying them yields the tables."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, registry, relationship

from sqla_events import CaptureError, install_crud_hooks
from sqla_events.capture import cascades
from sqla_events.signals import Gap
from tests.capture.conftest import Stage

mapping = registry()
metadata = mapping.metadata

parents = sa.Table(
    "c_parents",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("code", sa.String(10), unique=True),
    sa.Column("kind", sa.String(10), server_default="plain"),
)
children = sa.Table(
    "c_children",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("parent_id", sa.ForeignKey("c_parents.id", ondelete="CASCADE", onupdate="CASCADE")),
    sa.Column("note", sa.String(10)),
)
grandchildren = sa.Table(
    "c_grandchildren",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("child_id", sa.ForeignKey("c_children.id", ondelete="CASCADE")),
)
orphans = sa.Table(
    "c_orphans",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("child_id", sa.ForeignKey("c_children.id", ondelete="SET NULL")),
    sa.Column("twice", sa.Integer, sa.Computed("child_id * 2", persisted=True)),
)
defaulted = sa.Table(
    "c_defaulted",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("code", sa.ForeignKey("c_parents.code", ondelete="SET DEFAULT", onupdate="CASCADE"), server_default="none"),
)
members = sa.Table(
    "c_members",
    metadata,
    sa.Column("parent_id", sa.ForeignKey("c_parents.id", ondelete="CASCADE", onupdate="CASCADE"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
)
marks = sa.Table(
    "c_marks",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("parent_id", sa.Integer),
    sa.Column("number", sa.Integer),
    sa.ForeignKeyConstraint(
        ["parent_id", "number"], ["c_members.parent_id", "c_members.number"], ondelete="CASCADE", onupdate="CASCADE"
    ),
)
pairs = sa.Table(
    "c_pairs",
    metadata,
    sa.Column("parent_id", sa.ForeignKey("c_parents.id", ondelete="CASCADE", onupdate="CASCADE")),
    sa.Column("label", sa.String(10)),
)
nodes = sa.Table(
    "c_nodes",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("above_id", sa.ForeignKey("c_nodes.id", ondelete="CASCADE")),
)


class Parent:
    pass


class Child:
    pass


mapping.map_imperatively(
    Parent, parents, properties={"children": relationship("Child", passive_deletes=True, cascade="all, delete-orphan")}
)
mapping.map_imperatively(Child, children)


@pytest.fixture
def cascading(stage: Stage) -> Iterator[Stage]:
    stage.create(metadata)
    stage.hook(include=["public.c_*"])
    with stage.engine.begin() as connection:
        fill(connection)
    yield stage
    metadata.drop_all(stage.engine)


def fill(connection: sa.Connection) -> None:
    connection.execute(
        parents.insert(), [{"id": 1, "code": "a"}, {"id": 2, "code": "b"}, {"id": 3, "code": "c"}, {"id": 4, "code": "none"}]
    )
    connection.execute(children.insert(), [{"id": n, "parent_id": n % 3 + 1, "note": "ü"} for n in range(1, 7)])
    connection.execute(grandchildren.insert(), [{"id": n, "child_id": n} for n in range(1, 7)])
    connection.execute(orphans.insert(), [{"id": n, "child_id": n} for n in range(1, 7)])
    connection.execute(defaulted.insert(), [{"id": 1, "code": "a"}, {"id": 2, "code": "b"}])
    connection.execute(members.insert(), [{"parent_id": n, "number": m} for n in (1, 2) for m in (1, 2)])
    connection.execute(marks.insert(), [{"id": 1, "parent_id": 1, "number": 2}, {"id": 2, "parent_id": 2, "number": 1}])
    connection.execute(pairs.insert(), [{"parent_id": n, "label": label} for n in (1, 1, 2) for label in ("x", "x", "y")])
    connection.execute(nodes.insert(), [{"id": n, "above_id": n // 2 or None} for n in range(1, 10)])


def by_core(session: Session) -> None:
    session.execute(parents.delete().where(parents.c.id == 1))


def many_by_key(session: Session) -> None:
    session.execute(parents.delete().where(parents.c.id == sa.bindparam("which")), [{"which": n} for n in (1, 2, 99)])


def many_by_another_column(session: Session) -> None:
    session.execute(parents.delete().where(parents.c.code == sa.bindparam("which")), [{"which": code} for code in "ab"])


def all_of_them(session: Session) -> None:
    session.execute(sa.delete(Parent).where(Parent.id < 4))


def returning(session: Session) -> None:
    assert session.execute(sa.delete(Parent).where(Parent.id == 2).returning(Parent.code)).all() == [("b",)]


def by_query(session: Session) -> None:
    session.query(Parent).filter(Parent.code == "a").delete()


def with_a_join(session: Session) -> None:
    session.execute(
        sa.delete(Parent).where(Parent.id == sa.select(members.c.parent_id).where(members.c.parent_id == 1).limit(1).scalar_subquery())
    )


def by_the_unit_of_work(session: Session) -> None:
    session.delete(session.get_one(Parent, 1))


def with_loaded_children(session: Session) -> None:
    parent = session.get_one(Parent, 1)
    assert len(parent.children) == 2
    session.delete(parent)


def a_tree(session: Session) -> None:
    session.execute(nodes.delete().where(nodes.c.id.in_([2, 4])))


def all_of_a_tree(session: Session) -> None:
    session.execute(nodes.delete())


def a_key(session: Session) -> None:
    session.execute(parents.update().where(parents.c.id == 1).values(id=10))


def a_key_in_parameters(session: Session) -> None:
    session.execute(
        parents.update().where(parents.c.id == sa.bindparam("old")).values(id=sa.bindparam("new")),
        [{"old": 1, "new": 10}, {"old": 2, "new": 20}],
    )


def a_key_by_the_unit_of_work(session: Session) -> None:
    session.get_one(Parent, 2).id = 20


def a_key_and_what_refers_to_another_column(session: Session) -> None:
    session.execute(parents.update().where(parents.c.code == "b").values(code="B", id=22))


def a_unique_column(session: Session) -> None:
    session.execute(parents.update().where(parents.c.id < 3).values(code=parents.c.code + "!"))


def nothing_that_is_referred_to(session: Session) -> None:
    session.execute(parents.update().values(kind="x"))


WRITES: list[Callable[[Session], Any]] = [
    by_core, many_by_key, many_by_another_column, all_of_them, returning, by_query, with_a_join, by_the_unit_of_work,
    with_loaded_children, a_tree, all_of_a_tree, a_key, a_key_in_parameters, a_key_by_the_unit_of_work,
    a_key_and_what_refers_to_another_column, a_unique_column, nothing_that_is_referred_to,
]  # fmt: skip


@pytest.mark.parametrize("portion", [1, 1000])
@pytest.mark.parametrize("write", WRITES, ids=lambda function: function.__name__)
def test_replaying_what_the_database_changed_itself(
    cascading: Stage, write: Callable[[Session], Any], portion: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the events can have changed the copy."""
    monkeypatch.setattr(cascades, "PORTION", portion)
    check_without_foreign_keys(cascading, write)


def check_without_foreign_keys(stage: Stage, write: Callable[[Session], Any]) -> None:
    with stage.session() as session:
        write(session)
        session.commit()
    loose = sa.MetaData()
    for table in metadata.sorted_tables:
        columns = [sa.Column(c.name, c.type, c.computed and sa.Computed(c.computed.sqltext), primary_key=c.primary_key) for c in table.c]
        sa.Table(table.name, loose, *columns)
    metadata.drop_all(stage.copy)
    loose.create_all(stage.copy)
    stage.check(loose)


@pytest.mark.parametrize("write", [many_by_key, all_of_them, with_loaded_children], ids=lambda function: function.__name__)
def test_replaying_into_tables_with_the_same_foreign_keys(cascading: Stage, write: Callable[[Session], Any]) -> None:
    """Children go before the row that they refer to, so that a copy without the actions would take it, too."""
    with cascading.session() as session:
        write(session)
        session.commit()
    cascading.check(metadata)


def test_what_an_event_says(cascading: Stage) -> None:
    """The row as it was, what was changed, and what the cause was; children before the parent."""
    with cascading.session() as session, session.begin():
        by_core(session)
    events = [event for event in cascading.events() if event.operation != "create"]
    assert events[-1].type == "public.c_parents.delete"
    assert "cascades" not in events[-1].payload
    rows = {(event.type, event.key): event for event in events[:-1]}
    assert {event.payload["cascaded_from"] for event in rows.values()} == {"public.c_parents.delete"}
    assert rows["public.c_children.delete", "3"].before == {"id": 3, "parent_id": 1, "note": "ü"}
    orphan = rows["public.c_orphans.update", "3"]
    assert (orphan.before, orphan.after) == ({"child_id": 3, "twice": 6}, {"child_id": None, "twice": None})
    assert rows["public.c_defaulted.update", "1"].after == {"code": "none"}
    assert sum(event.entity == "c_pairs" for event in events) == 6


def test_names_only_or_nothing(stage: Stage) -> None:
    """``capture.cascades``: the tables in the event of the deleted row; or no word."""
    stage.create(metadata)
    for mode, said in (("named", "CASCADE"), ("ignore", None)):
        stage.hook(include=["public.c_*"], cascades=mode)
        with stage.engine.begin() as connection:
            connection.execute(parents.insert(), {"id": 1})
            connection.execute(children.insert(), {"id": 1, "parent_id": 1})
            connection.execute(parents.delete())
        (deleted,) = [event for event in stage.events() if event.operation == "delete"]
        assert deleted.payload.get("cascades", {}).get("c_children") == said
        assert stage.broker is not None
        stage.broker.uninstall()
        with stage.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM events")


def test_tables_between_need_not_be_captured(stage: Stage) -> None:
    """Neither the one that is written, nor those between it and the captured one."""
    stage.create(metadata)
    stage.hook(include=["public.c_grandchildren"])
    with stage.engine.begin() as connection:
        fill(connection)
        connection.execute(parents.delete().where(parents.c.id == 1))
    deleted = [(event.type, event.key, event.payload.get("cascaded_from")) for event in stage.events() if event.operation == "delete"]
    assert deleted == [("public.c_grandchildren.delete", key, "public.c_parents.delete") for key in ("3", "6")]


def test_foreign_keys_that_are_not_enforced(sqlite_url: str) -> None:
    """SQLite does nothing without its PRAGMA, and then nothing is said."""
    engine = sa.create_engine(sqlite_url)
    metadata.create_all(engine)
    broker = install_crud_hooks(engine, {})
    with engine.begin() as connection:
        fill(connection)
        connection.execute(parents.delete().where(parents.c.id == 1))
        assert connection.scalar(sa.select(sa.func.count()).select_from(children)) == 6
    assert [event.type for event in broker.list() if event.operation != "create"] == ["public.c_parents.delete"]
    broker.uninstall()
    engine.dispose()


def test_what_is_not_referred_to_costs_no_select(cascading: Stage) -> None:
    """Inserts, updates of other columns, deletes from tables without such children."""
    statements: list[str] = []
    sa.event.listen(cascading.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    with cascading.engine.begin() as connection:
        connection.execute(parents.insert(), {"id": 9})
        connection.execute(parents.update().where(parents.c.id == sa.bindparam("which")).values(kind="x"), {"which": 9})
        connection.execute(grandchildren.delete())
    assert not [sql for sql in statements if sql.startswith("SELECT")]


def test_nobody_gets_in_between(postgres_url: str) -> None:
    """A child that another transaction adds to a row that is about to go either comes first and is seen, or waits and fails."""
    engine = sa.create_engine(postgres_url)
    metadata.create_all(engine)
    broker = install_crud_hooks(engine, {"capture": {"include": ["public.c_*"]}})
    with engine.begin() as connection:
        fill(connection)
    failed: list[Exception] = []

    def add() -> None:
        try:
            with engine.begin() as connection:
                connection.execute(children.insert(), {"id": 77, "parent_id": 1})
        except sa.exc.IntegrityError as error:
            failed.append(error)

    other = threading.Thread(target=add)

    def meanwhile(connection: sa.Connection, cursor: Any, sql: str, *_: Any) -> None:
        if sql.startswith("DELETE FROM c_parents"):  # it has looked, and has not deleted
            other.start()
            other.join(0.5)
            assert other.is_alive()

    with engine.begin() as connection:
        sa.event.listen(engine, "before_cursor_execute", meanwhile)
        connection.execute(parents.delete().where(parents.c.id == 1))
    other.join()
    assert len(failed) == 1
    assert "77" not in {event.key for event in broker.list() if event.entity == "c_children"}
    broker.uninstall()
    engine.dispose()


def test_a_row_that_appears_in_between_is_reported(postgres_url: str) -> None:
    """READ COMMITTED: the statement sees more rows than the look before it; never silently."""
    engine = sa.create_engine(postgres_url)
    metadata.create_all(engine)
    broker = install_crud_hooks(engine, {"capture": {"include": ["public.c_*"], "on_gap": "raise"}})
    facts: list[Any] = []
    broker.signals.subscribe(facts.append)
    with engine.begin() as connection:
        fill(connection)

    def meanwhile(connection: sa.Connection, cursor: Any, sql: str, *_: Any) -> None:
        if sql.startswith("DELETE FROM c_parents"):
            with engine.begin() as other:
                other.execute(parents.insert(), {"id": 50, "code": "late"})
                other.execute(children.insert(), {"id": 50, "parent_id": 50})

    with pytest.raises(CaptureError, match="appeared while its cascades were read"), engine.begin() as connection:
        sa.event.listen(engine, "before_cursor_execute", meanwhile)
        connection.execute(parents.delete().where(parents.c.code != "none"))
    assert [fact for fact in facts if isinstance(fact, Gap)]
    broker.uninstall()
    engine.dispose()


def test_several_keys_that_others_follow(cascading: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Where no row tells which it was before, that is reported; PostgreSQL 18 tells."""

    def shift(session: Session) -> None:
        session.execute(parents.update().where(parents.c.id < 3).values(id=parents.c.id + 100))

    with cascading.engine.connect() as connection:
        tells = connection.dialect.name == "postgresql" and (connection.dialect.server_version_info or (0,)) >= (18,)
    if tells:
        check_without_foreign_keys(cascading, shift)
    else:
        with cascading.session() as session, session.begin():
            shift(session)
    assert ("a change of several keys at once" in caplog.text) is not tells


@pytest.mark.parametrize("old_values", ["known", "always"])
def test_keys_that_many_sets_move(stage: Stage, old_values: str) -> None:
    """ON UPDATE CASCADE follows each of them."""
    metadata = sa.MetaData()
    parents = sa.Table("moved_parents", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(20)))
    follows = sa.ForeignKey(parents.c.id, onupdate="CASCADE")
    children = sa.Table("moved_children", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("parent_id", follows))
    stage.create(metadata)
    stage.hook(old_values=old_values)
    with stage.engine.begin() as connection:
        connection.execute(parents.insert(), [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}])
        connection.execute(children.insert(), [{"id": 1, "parent_id": 1}, {"id": 2, "parent_id": 2}])
    with stage.engine.begin() as connection:
        moves = parents.update().where(parents.c.name == sa.bindparam("which")).values(id=sa.bindparam("new"))
        for sets in ([{"which": "a", "new": 11}], [{"which": "b", "new": 12}, {"which": "none", "new": 13}]):
            connection.execute(moves, sets)
    stage.check(metadata)

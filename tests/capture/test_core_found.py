"""What SQLAlchemy's own tests of Core and of its dialects have found, once the hooks ran under them."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqla_events import CaptureError
from tests.capture.conftest import Stage
from tests.capture.model import Seat

on_21 = pytest.mark.skipif(sa.__version__.startswith("2.0."), reason="SQLAlchemy 2.1's")


# Several ON CONFLICT ------------------------------------------------------------------------------------------------


class Base(DeclarativeBase):
    pass


class Member(Base):
    __tablename__ = "found_members"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(sa.String(50), unique=True)
    name: Mapped[str] = mapped_column(sa.String(50))


def join(connection: sa.Connection, order: str) -> None:
    """One row that is new, one whose key is taken, one whose address is."""
    connection.execute(sa.insert(Member), [{"id": 1, "email": "a", "name": "old"}, {"id": 2, "email": "b", "name": "old"}])
    insert: Any = sqlite.insert(Member)
    update = {"index_elements": [Member.email], "set_": {"name": insert.excluded.name}}
    other = {"index_elements": [Member.id]}
    if order == "update first":
        insert = insert.on_conflict_do_update(**update).on_conflict_do_nothing(**other)
    elif order == "update last":
        insert = insert.on_conflict_do_nothing(**other).on_conflict_do_update(**update)
    else:
        insert = insert.on_conflict_do_update(**update).on_conflict_do_update(**other, set_={"name": insert.excluded.name})
    rows = [{"id": 3, "email": "c", "name": "new"}, {"id": 1, "email": "d", "name": "new"}, {"id": 9, "email": "b", "name": "new"}]
    for row in rows:
        connection.execute(insert, row)
    connection.execute(insert, rows)
    connection.execute(insert.values(rows))
    connection.execute(insert.values(rows).returning(Member.id)).all()


@on_21
@pytest.mark.parametrize("old_values", ["known", "always"])
@pytest.mark.parametrize("order", ["update first", "update last", "two updates"])
def test_replaying_several_conflict_clauses(stage: Stage, order: str, old_values: str) -> None:
    if stage.engine.dialect.name != "sqlite":
        pytest.skip("SQLite's")
    stage.create(Base.metadata)
    stage.hook(old_values=old_values)
    with stage.engine.begin() as connection:
        join(connection, order)
    told = stage.check(Base.metadata)[2:]
    if order != "two updates" and old_values == "always":
        assert [(event.operation, event.key, event.before) for event in told[:2]] == [
            ("create", "3", {}), ("update", "2", {"id": 2, "email": "b", "name": "old"}),
        ]  # fmt: skip
    else:
        assert all(event.payload["upsert"] for event in told)


# Parts of a column --------------------------------------------------------------------------------------------------


class PgBase(DeclarativeBase):
    pass


class Box(PgBase):
    __tablename__ = "found_boxes"
    id: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[list[int] | None] = mapped_column(postgresql.ARRAY(sa.Integer))
    grid: Mapped[list[list[int]] | None] = mapped_column(sa.ARRAY(sa.Integer, dimensions=2))
    data: Mapped[Any] = mapped_column(postgresql.JSONB, nullable=True)


def parts() -> list[tuple[dict[Any, Any], set[str]]]:
    """What is set, and which columns that changes."""
    table = sa.inspect(Box).local_table
    found: list[tuple[dict[Any, Any], set[str]]] = [
        ({table.c.n[2]: 7}, {"n"}),
        ({table.c.n[1:2]: [8, 9]}, {"n"}),
        ({Box.n[3]: table.c.id}, {"n"}),
        ({table.c.grid[1][2]: 5}, {"grid"}),
        ({sa.type_coerce(table.c.n, postgresql.ARRAY(sa.Integer))[1]: 6}, {"n"}),
        ({table.c.n[1]: 1, "data": {"all": 1}}, {"n", "data"}),
    ]
    if not sa.__version__.startswith("2.0."):
        found.append(({table.c.data["a"]["b"]: sa.literal(3, postgresql.JSONB)}, {"data"}))
    return found


@pytest.mark.parametrize("carry", [True, False])
def test_replaying_updates_of_parts_of_a_column(stage: Stage, carry: bool) -> None:
    """Of an array's elements and slices, and what stands under a key of JSON."""
    if stage.engine.dialect.name != "postgresql":
        pytest.skip("PostgreSQL's")
    stage.create(PgBase.metadata)
    stage.hook(carry=carry)
    table = sa.inspect(Box).local_table
    for values, keys in parts():
        with stage.session() as session:
            session.execute(sa.delete(Box))
            session.execute(sa.insert(Box), [{"id": n, "n": [1, 2, 3], "grid": [[1, 2], [3, 4]], "data": {"a": {"b": 1}}} for n in (1, 2)])
            session.commit()
            session.execute(sa.update(Box).values(values), execution_options={"synchronize_session": False})
            session.execute(sa.update(table).where(table.c.id == sa.bindparam("which")).values(values), [{"which": 1}, {"which": 2}])
            session.execute(sa.update(table).values(values).returning(table.c.id)).all()
            session.execute(sa.update(Box).where(Box.id == 1).values(values), execution_options={"synchronize_session": "fetch"})
            session.commit()
        updates = [event for event in stage.check(PgBase.metadata) if event.operation == "update"]
        assert set(updates[-1].after) == keys


# Others -------------------------------------------------------------------------------------------------------------


class One:
    def __init__(self, name: str) -> None:
        self.name = self.value = name

    def __repr__(self) -> str:
        return repr(self.name)  # a replay compares what is old with what the event says


class Likeness:
    """Makes enums as aenum does: with ``__members__``, without being one of Python's."""

    def __init__(self, *names: str) -> None:
        self.__members__ = {name: One(name) for name in names}
        vars(self).update(self.__members__)
        self.__name__ = "Likeness"


def test_arrays_of_an_enum_that_is_not_one_of_pythons(stage: Stage) -> None:
    if stage.engine.dialect.name != "postgresql":
        pytest.skip("PostgreSQL's")

    class Own(DeclarativeBase):
        pass

    kind: Any = Likeness("red", "green")
    columns = [sa.Column("id", sa.Integer, primary_key=True), sa.Column("colours", sa.ARRAY(sa.Enum(kind, name="found_colours", native_enum=False)))]
    table = sa.Table("found_likes", Own.metadata, *columns)
    Own.registry.map_imperatively(type("Like", (), {}), table)
    stage.create(Own.metadata)
    stage.hook()
    with stage.engine.begin() as connection:
        connection.execute(table.insert(), {"id": 1, "colours": [kind.red, kind.green, None]})
        connection.execute(table.update().values(colours=[kind.green]))
        connection.execute(table.delete())
    assert [(event.before.get("colours"), event.after.get("colours")) for event in stage.check(Own.metadata)] == [
        (None, ["red", "green", None]), (None, ["green"]), (["green"], None),
    ]  # fmt: skip


class Loud(sa.String):
    """What is read is not what is stored, although it is no TypeDecorator."""

    cache_ok = True

    def result_processor(self, dialect: Any, coltype: Any) -> Any:
        return lambda value: f"{value}!"


def test_what_is_given_is_stored_whatever_comes_back(stage: Stage) -> None:
    class Own(DeclarativeBase):
        pass

    class Word(Own):
        __tablename__ = "found_words"
        id: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str] = mapped_column(Loud(50))

    stage.create(Own.metadata)
    stage.hook()
    table = sa.inspect(Word).local_table
    with stage.engine.begin() as connection:
        connection.execute(table.insert().return_defaults(supplemental_cols=[table.c.text]), {"text": "a"})
        connection.execute(table.insert().return_defaults(supplemental_cols=[table.c.text], sort_by_parameter_order=True), [{"text": "b"}, {"text": "c"}])
    assert [event.after["text"] for event in stage.check(Own.metadata)] == ["a", "b", "c"]


def test_the_cursor_of_a_result_tells_of_the_callers_columns(stage: Stage) -> None:
    """What rides along is in nobody's ``cursor.description``."""
    stage.hook()
    with stage.engine.begin() as connection:
        result = connection.execute(sa.insert(Seat).values(row="A", number=1).returning(Seat.guest))
        assert [one[0] for one in result.cursor.description] == ["guest"]
        assert result.all() == [(None,)]
        result = connection.execute(sa.update(Seat).values(guest="x").returning(Seat.row, Seat.guest))
        assert [one[0] for one in result.cursor.description] == ["row", "guest"]
        assert result.all() == [("A", "x")]
    stage.check()


def test_a_table_that_is_made_with_its_rows_is_a_gap(stage: Stage) -> None:
    """CREATE TABLE AS is refused before it runs, where gaps are to raise."""

    class Own(DeclarativeBase):
        pass

    class Copied(Own):
        __tablename__ = "found_copies"
        id: Mapped[int] = mapped_column(primary_key=True)

    stage.hook(on_gap="raise")
    with stage.engine.begin() as connection, pytest.raises(CaptureError, match="CREATE TABLE AS writes to 'found_copies'"):
        connection.exec_driver_sql("CREATE TABLE found_copies AS SELECT 1 AS id")
    assert not sa.inspect(stage.engine).has_table(Copied.__tablename__)

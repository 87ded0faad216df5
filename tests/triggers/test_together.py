"""Hooks and triggers at once: each write is one event, whatever fails, cascades or is asynchronous."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqla_events import CaptureError, EventFilter, event_context, install_crud_hooks, triggers
from tests.capture.conftest import Stage
from tests.capture.model import Seat, Tag
from tests.capture.test_async import DRIVERS
from tests.capture.test_cascades import WRITES, fill, metadata
from tests.triggers.test_events import install


async def test_asynchronous_drivers(stage: Stage) -> None:
    """The look at a new connection, marks, guard and context go through their adapters."""
    install(stage, Tag.__table__)
    for driver in DRIVERS[stage.engine.dialect.name]:
        with stage.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM tags")
        with stage.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM events")
        engine = create_async_engine(stage.engine.url.set(drivername=driver))
        broker = install_crud_hooks(engine, {"capture": {"on_gap": "raise"}})
        async with AsyncSession(engine) as session:
            session.add(Tag(id=1, name="a"))
            await session.flush()
            with event_context(user_id=5):
                await session.execute(sa.text("UPDATE tags SET name = 'b' WHERE id = 1"))
            await session.execute(sa.update(Tag).values(name="c"))
            await session.commit()
        events = await broker.list(EventFilter())
        broker.uninstall()
        await engine.dispose()
        assert [(event.operation, event.after["name"], event.user_id) for event in events] == [
            ("create", "a", None), ("update", "b", 5), ("update", "c", None),
        ]  # fmt: skip


@pytest.mark.parametrize("write", [WRITES[3], WRITES[8], WRITES[9], WRITES[11]], ids=lambda function: function.__name__)
@pytest.mark.parametrize("which", ["all", "children"])
def test_cascades(stage: Stage, write: Any, which: str) -> None:
    """Whether the tables that a foreign key reaches have triggers or not."""
    stage.create(metadata)
    stage.hook(include=["public.c_*"])
    with stage.engine.begin() as connection:
        fill(connection)
    chosen = metadata.sorted_tables if which == "all" else [metadata.tables["c_children"], metadata.tables["c_nodes"]]
    install(stage, *chosen)
    with stage.session() as session:
        write(session)
        session.commit()
    stage.copy.dispose()
    loose = sa.MetaData()
    for table in metadata.sorted_tables:
        sa.Table(table.name, loose, *(sa.Column(c.name, c.type, c.computed and sa.Computed(c.computed.sqltext), primary_key=c.primary_key) for c in table.c))
    metadata.drop_all(stage.copy)
    loose.create_all(stage.copy)
    deleted = [(event.entity, event.key) for event in stage.check(loose) if event.operation == "delete" and event.entity != "c_pairs"]
    assert len(deleted) == len(set(deleted))


def test_a_statement_that_fails_leaves_nothing_to_the_next(stage: Stage) -> None:
    """Text after it is not taken for captured."""
    install(stage, Seat.__table__)
    stage.hook()
    with stage.engine.connect() as connection:
        connection.execute(sa.insert(Seat), {"row": "A", "number": 1})
        with pytest.raises(sa.exc.IntegrityError), connection.begin_nested():
            connection.execute(sa.insert(Seat), {"row": "A", "number": 1})
        connection.execute(sa.text("INSERT INTO seats (row, number) VALUES ('B', 2)"))
        connection.commit()
    assert [event.key for event in stage.check()] == ['["A",1]', '["B",2]']


def test_triggers_made_and_dropped_while_hooks_are_on(stage: Stage) -> None:
    """Through the hooked engine, in one transaction or rolled back: exact from the next write on."""
    stage.hook()
    with stage.engine.connect() as connection:
        connection.execute(sa.insert(Tag), {"id": 1, "name": "a"})
        triggers.create(connection, Tag.__table__)
        connection.execute(sa.insert(Tag), {"id": 2, "name": "a"})
        connection.execute(sa.text("INSERT INTO tags (id, name) VALUES (3, 'a')"))
        connection.commit()
        connection.execute(sa.update(Tag).values(name="b"))
        triggers.drop(connection, "tags")
        connection.execute(sa.delete(Tag).where(Tag.id == 1))
        connection.rollback()
        connection.execute(sa.delete(Tag).where(Tag.id == 2))
        triggers.drop(connection, "tags")
        connection.execute(sa.delete(Tag).where(Tag.id == 3))
        connection.commit()
        connection.execute(sa.insert(Tag), {"id": 4, "name": "a"})
        connection.commit()
    found = [(event.operation, event.key) for event in stage.check()]
    assert found == [("create", "1"), ("create", "2"), ("create", "3"), ("delete", "2"), ("delete", "3"), ("create", "4")]
    if stage.engine.dialect.name == "sqlite":
        assert "event_guard" not in sa.inspect(stage.engine).get_table_names()


def test_triggers_that_text_in_small_letters_takes_away(stage: Stage) -> None:
    """Text that writes is a gap again."""
    install(stage, Tag.__table__)
    stage.hook(on_gap="raise")
    with stage.engine.connect() as connection:
        connection.execute(sa.text("INSERT INTO TAGS (id, name) VALUES (1, 'a')"))
        drops = [f"drop trigger sqla_events_tags_{verb}" for verb in ("insert", "update", "delete")]
        for sql in drops if stage.engine.dialect.name == "sqlite" else ["alter table tags disable trigger user"]:
            connection.execute(sa.text(sql))
        with pytest.raises(CaptureError, match="tags"):
            connection.execute(sa.text("INSERT INTO tags (id, name) VALUES (2, 'a')"))
        connection.commit()
    assert [event.key for event in stage.check()] == ["1"]


def test_triggers_made_by_ddl_of_the_metadata(stage: Stage) -> None:
    """As after_create listeners execute it."""
    stage.hook()
    statements = triggers.sql(Tag.__table__, stage.engine.dialect)
    with stage.engine.begin() as connection:
        for statement in statements:
            connection.execute(sa.DDL(statement.replace("%", "%%")))
        connection.execute(sa.insert(Tag), {"id": 1, "name": "a"})
    with stage.engine.begin() as connection:
        connection.execute(sa.insert(Tag), {"id": 2, "name": "a"})
    assert [event.key for event in stage.check()] == ["1", "2"]


@pytest.mark.parametrize("dialect", ["postgresql"])
def test_others_commit_while_triggers_are_made(stage: Stage, dialect: str) -> None:
    """What they see of it is not the last word."""
    if stage.engine.dialect.name != dialect:
        pytest.skip("SQLite has one writer at a time")
    stage.hook()
    with stage.engine.connect() as connection, stage.engine.connect() as other:
        triggers.create(connection, Tag.__table__)
        for key in (1, 2):
            other.execute(sa.insert(Seat), {"row": "A", "number": key})
            other.commit()
        connection.commit()
        for key in (1, 2):
            other.execute(sa.insert(Tag), {"id": key, "name": "a"})
            other.commit()
    assert [event.key for event in stage.check() if event.entity == "tags"] == ["1", "2"]


def test_operations_that_are_not_captured_are_the_triggers(stage: Stage) -> None:
    """And tables that are excluded, too."""
    install(stage, Tag.__table__, Seat.__table__)
    stage.hook(enable_delete=False, exclude=["public.seats"])
    with stage.session() as session, session.begin():
        session.add_all([Tag(id=1, name="a"), Seat(row="A", number=1)])
        session.flush()
        session.execute(sa.delete(Tag))
    assert sorted((event.operation, event.entity) for event in stage.check()) == [("create", "seats"), ("create", "tags"), ("delete", "tags")]


def test_nothing_is_marked_without_triggers(stage: Stage) -> None:
    """Statements are as they were."""
    stage.hook()
    seen: list[str] = []
    sa.event.listen(stage.engine, "before_cursor_execute", lambda *given: seen.append(given[2]))
    with Session(stage.engine) as session, session.begin():
        session.add(Tag(id=1, name="a"))
    assert not [sql for sql in seen if "/*sqla_events" in sql or "guard" in sql]


def test_the_guard_is_empty_between_statements(stage: Stage) -> None:
    """Another program's write is never taken for captured."""
    install(stage, Tag.__table__)
    stage.hook()
    with event_context(user_id=3), stage.session() as session, session.begin():
        session.add(Tag(id=1, name="a"))
        session.flush()
        session.execute(sa.text("UPDATE tags SET name = 'b'"))
    if stage.engine.dialect.name == "sqlite":
        with stage.engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT * FROM event_guard").all() == [(None,) * 6]
    other = sa.create_engine(stage.engine.url)
    with other.begin() as connection:
        connection.exec_driver_sql("UPDATE tags SET name = 'c'")
    other.dispose()
    assert [(event.after["name"], event.user_id) for event in stage.check()] == [("a", 3), ("b", 3), ("c", None)]

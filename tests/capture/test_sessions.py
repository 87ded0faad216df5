"""Kinds of sessions, engines and connections; and what a program sees of the hooks: nothing."""

from __future__ import annotations

import itertools
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import StaticPool

from sqla_events import CaptureError, install_crud_hooks
from sqla_events.alembic import upgrade
from sqla_events.capture.buffer import held
from tests.capture.conftest import Stage
from tests.capture.model import Base, Item, Seat, Tag
from tests.capture.test_write_paths import PATHS

# The same with hooks and without ------------------------------------------------------------------------------------


class Watched(Session):
    """Writes down everything that its statements gave to their caller."""

    def _execute_internal(self, *given: Any, **how: Any) -> Any:
        result = super()._execute_internal(*given, **how)
        names = tuple(result.keys()) if getattr(result, "returns_rows", False) else ()
        self.log.append((type(result).__name__, getattr(result, "rowcount", None), names))
        return result


def _seen(engine: sa.Engine, write: Callable[[Session], Any], hooked: bool) -> list[Any]:
    broker = install_crud_hooks(engine, {"capture": {"old_values": "always"}}) if hooked else None
    with Watched(engine) as session:
        session.log = seen = []
        write(session)
        session.flush()
        for key, one in sorted(session.identity_map.items(), key=repr):
            state = sa.inspect(one)
            seen.append((key[:2], sorted((name, repr(value)) for name, value in state.dict.items() if name[0] != "_" and not hasattr(value, "__mapper__"))))
        session.rollback()
    if broker is not None:
        broker.uninstall()
    return [str(one).replace("0x", "") for one in seen]


def test_results_and_identity_map_are_the_same(stage: Stage) -> None:
    """Row counts, returned keys, loaded and expired attributes, values; on every write path."""
    for write in PATHS:
        found = []
        for hooked in (False, True):
            stage.empty()
            found.append([_without_addresses(line) for line in _seen(stage.engine, write, hooked)])
        assert found[0] == found[1], write.__name__


def _without_addresses(line: str) -> str:
    return " ".join(word.partition(" at ")[0] for word in line.split("object at"))


# Sessions -----------------------------------------------------------------------------------------------------------


def test_two_phase(stage: Stage) -> None:
    """Prepared, committed and rolled back; events are prepared with their rows."""
    if stage.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has no PREPARE TRANSACTION")
    stage.hook()
    with Session(stage.engine, twophase=True) as session:
        session.add(Tag(id=1, name="a"))
        session.prepare()
        session.commit()
        session.add(Tag(id=2, name="b"))
        session.prepare()
        session.rollback()
        session.add(Tag(id=3, name="c"))
        session.commit()
    assert [event.key for event in stage.check()] == ["1", "3"]


def test_several_binds(stage: Stage, tmp_path: Any) -> None:
    """Each engine's log has the events of its own tables, only where it is hooked."""
    stage.hook()
    other = sa.create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    Seat.__table__.create(other)
    with Session(stage.engine, binds={Seat: other}) as session, session.begin():
        session.add_all([Tag(id=1, name="a"), Seat(row="A", number=1)])
        session.flush()
        session.execute(sa.update(Seat).values(guest="x"))
        session.execute(sa.update(Tag).values(name="b"))
    assert [event.type for event in stage.check()] == ["public.tags.create", "public.tags.update"]
    upgrade(other)
    broker = install_crud_hooks(other, {})
    with Session(stage.engine, binds={Seat: other}) as session, session.begin():
        session.add_all([Tag(id=2, name="a"), Seat(row="B", number=1)])
    assert [event.key for event in broker.list()] == ['["B",1]']
    assert [event.key for event in stage.check()] == ["1", "1", "2"]
    broker.uninstall()
    other.dispose()


def test_shards(tmp_path: Any) -> None:
    """A ShardedSession: each row's event is in the log of its shard."""
    engines = {name: sa.create_engine(f"sqlite:///{tmp_path / name}.db") for name in ("odd", "even")}
    brokers = {}
    for name, engine in engines.items():
        upgrade(engine)
        Tag.metadata.create_all(engine)
        brokers[name] = install_crud_hooks(engine, {})
    session = ShardedSession(
        shards=engines,
        shard_chooser=lambda mapper, instance, clause=None: ("even", "odd")[instance.id % 2] if instance is not None else "even",
        identity_chooser=lambda mapper, key, **_: [("even", "odd")[key[0] % 2]],
        execute_chooser=lambda context: ["odd", "even"],
    )
    with session, session.begin():
        session.add_all([Tag(id=n, name="a") for n in range(4)])
        session.flush()
        session.execute(sa.update(Tag).where(Tag.id > 1).values(name="b"), execution_options={"synchronize_session": False})
    found = {name: sorted((event.operation, event.key) for event in broker.list()) for name, broker in brokers.items()}
    assert found == {
        "odd": [("create", "1"), ("create", "3"), ("update", "3")], "even": [("create", "0"), ("create", "2"), ("update", "2")],
    }  # fmt: skip
    for broker in brokers.values():
        broker.uninstall()
    for engine in engines.values():
        engine.dispose()


@pytest.mark.parametrize("where", ["engine", "connection", "statement"])
def test_schema_translate_map(postgres_url: str, where: str) -> None:
    """The schema in an event is that which the statement wrote, whoever said it."""
    engine = sa.create_engine(postgres_url)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema("tenant"))
        connection.exec_driver_sql("CREATE TABLE tenant.tags (LIKE public.tags INCLUDING ALL)")
    options = {"schema_translate_map": {None: "tenant"}}
    broker = install_crud_hooks(engine, {"capture": {"old_values": "always"}})
    translated = engine.execution_options(**options) if where == "engine" else engine
    how = {"execution_options": options} if where == "statement" else {}
    with translated.begin() as connection:
        session = Session(connection.execution_options(**options) if where == "connection" else connection)
        session.execute(sa.insert(Tag).values(id=1, name="a"), **how)
        session.execute(sa.update(Tag).values(name="b"), **{**how, "execution_options": {**how.get("execution_options", {}), "synchronize_session": False}})
        session.execute(sa.delete(Tag).where(Tag.id == 1), **{**how, "execution_options": {**how.get("execution_options", {}), "synchronize_session": False}})
        session.flush()
    assert [(event.type, event.before.get("name")) for event in broker.list()] == [
        ("tenant.tags.create", None), ("tenant.tags.update", "a"), ("tenant.tags.delete", "b"),
    ]  # fmt: skip
    broker.uninstall()
    engine.dispose()


def test_scoped_session_in_threads(stage: Stage) -> None:
    """Each thread's transaction has its own events, and loses its own."""
    stage.hook()
    sessions = scoped_session(sessionmaker(stage.engine))
    writing = threading.Lock() if stage.engine.dialect.name == "sqlite" else threading.Semaphore(4)

    def work(number: int) -> None:
        for step in range(4):
            with writing:
                sessions.add(Tag(id=10 * number + step, name=f"{number}"))
                sessions.flush()
                sessions.commit() if step % 2 else sessions.rollback()
        sessions.remove()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(event.key or 0) for event in stage.check()) == sorted(10 * n + step for n in range(6) for step in (1, 3))


def test_connections_that_share_one_driver_connection() -> None:
    """StaticPool: two Connections at once have a buffer each."""
    engine = sa.create_engine("sqlite://", poolclass=StaticPool)
    upgrade(engine)
    Base.metadata.create_all(engine)
    broker = install_crud_hooks(engine, {})
    with engine.connect() as one, engine.connect() as two:
        one.execute(sa.insert(Tag), {"id": 1, "name": "a"})
        two.execute(sa.insert(Tag), {"id": 2, "name": "b"})
        two.commit()
        one.commit()
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT key FROM events ORDER BY key").scalars().all() == ["1", "2"]
    broker.uninstall()
    engine.dispose()


# What goes wrong ----------------------------------------------------------------------------------------------------


def test_a_backend_that_is_killed_in_a_flush(postgres_url: str) -> None:
    """The session says what SQLAlchemy says; the next transaction, on another connection, has nothing of it."""
    engine = sa.create_engine(postgres_url)
    Base.metadata.create_all(engine)
    stage = Stage(engine, engine)
    broker = stage.hook()
    other = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT")

    def kill(mapper: Any, connection: sa.Connection, target: Any) -> None:
        if target.name == "killer":
            pid = connection.connection.driver_connection.info.backend_pid
            with other.connect() as second:
                assert second.scalar(sa.text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})

    sa.event.listen(Tag, "after_insert", kill)
    try:
        with Session(engine) as session:
            session.add(Tag(id=1, name="a"))
            session.flush()
            session.add(Tag(id=2, name="killer"))
            with pytest.raises((sa.exc.OperationalError, sa.exc.DBAPIError, CaptureError)):
                session.commit()
            session.rollback()
            session.add(Tag(id=3, name="b"))
            session.commit()
    finally:
        sa.event.remove(Tag, "after_insert", kill)
    assert [event.key for event in stage.events()] == ["3"]
    other.dispose()
    broker.uninstall()
    engine.dispose()


def test_detached_and_pickled_instances(stage: Stage) -> None:
    """What belonged to a session that is gone leaves nothing in the next one, and is captured when it comes back."""
    stage.hook()
    with stage.session() as session, session.begin():
        session.add(Item(id=1, label="a"))
    with stage.session() as session:
        item = session.get_one(Item, 1)
        item.label = "never written"
        session.expunge(item)
        session.commit()
    copy = pickle.loads(pickle.dumps(item))
    with stage.session() as session, session.begin():
        session.add(copy)
        copy.count = 9
    with stage.session() as session:
        session.delete(session.merge(item))
        session.rollback()
    events = stage.check()
    assert [event.operation for event in events] == ["create", "update"]
    assert (events[1].after["lbl"], events[1].after["count"]) == ("never written", 9)


def test_a_dead_transaction_leaves_nothing_to_the_next_user_of_its_connection(stage: Stage) -> None:
    """One connection in the pool, an error in the middle, no rollback by hand."""
    engine = sa.create_engine(stage.engine.url, pool_size=1, max_overflow=0)
    broker = install_crud_hooks(engine, {})
    with pytest.raises(sa.exc.IntegrityError), engine.connect() as connection:
        connection.execute(sa.insert(Seat), {"row": "A", "number": 1})
        connection.execute(sa.insert(Seat), {"row": "A", "number": 1})
    with engine.begin() as connection:
        connection.execute(sa.insert(Seat), {"row": "B", "number": 1})
    assert [event.key for event in broker.list()] == ['["B",1]']
    broker.uninstall()
    engine.dispose()


def test_context_of_a_statement_that_failed(stage: Stage) -> None:
    """A user's listener on the engine that raises, before and after the statement."""
    stage.hook()
    for name in ("before_cursor_execute", "after_cursor_execute", "before_execute", "after_execute"):

        def fail(connection: Any, *given: Any) -> None:
            if any("INSERT INTO seats" in str(one) for one in given[:2]):
                raise ZeroDivisionError

        sa.event.listen(stage.engine, name, fail)
        with stage.session() as session:
            with pytest.raises(ZeroDivisionError):
                session.execute(sa.insert(Seat).values(row="A", number=1))
            session.rollback()
        sa.event.remove(stage.engine, name, fail)
        with stage.session() as session, session.begin():
            session.execute(sa.insert(Tag).values(name=name))
    assert [event.after["name"] for event in stage.check()] == ["before_cursor_execute", "after_cursor_execute", "before_execute", "after_execute"]


def test_a_statement_that_is_executed_within_itself(stage: Stage) -> None:
    """A listener of the user's that runs, before a statement and after it, the same statement with other values."""
    stage.hook()
    statement = sa.insert(Tag)

    def more(connection: Any, cursor: Any, sql: str, parameters: Any, *_: Any) -> None:
        if "outer" in str(parameters):
            connection.execute(statement, {"name": f"inner {next(numbers)}"})

    numbers = itertools.count(1)
    for name in ("before_cursor_execute", "after_cursor_execute"):
        sa.event.listen(stage.engine, name, more)
    with stage.engine.begin() as connection:
        connection.execute(statement, {"name": "outer"})
    assert sorted(event.after["name"] for event in stage.check()) == ["inner 1", "inner 2", "outer"]


def test_a_connection_that_only_reads_keeps_nothing(stage: Stage) -> None:
    stage.hook()
    with stage.engine.connect() as connection:
        connection.execute(sa.select(Tag)).all()
        connection.commit()
        connection.execute(sa.select(Tag)).all()
        connection.rollback()
        assert held(connection) is None
        connection.execute(sa.insert(Tag).values(name="one"))
        assert held(connection) is not None
        connection.commit()
    assert len(stage.check()) == 1

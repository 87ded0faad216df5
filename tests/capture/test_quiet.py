"""Connections dispatch an engine's events when they are about to write, and nothing is lost by that: ``capture/quiet.py``."""

from __future__ import annotations

import gc
import sqlite3
from collections.abc import Callable
from contextlib import closing, nullcontext
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session

from sqla_events import Broker, CaptureError, Config, EventFilter, install_crud_hooks
from sqla_events.alembic import upgrade
from sqla_events.capture import quiet
from sqla_events.capture.buffer import buffer_of
from sqla_events.capture.listener import Listener
from sqla_events.schema import Tables
from sqla_events.signals import Fact, Published
from tests.capture.conftest import Stage
from tests.capture.model import Item, Tag, item_tags

NAMES = (
    "engine_connect", "begin", "commit", "rollback", "savepoint", "rollback_savepoint", "release_savepoint",
    "before_execute", "after_execute", "before_cursor_execute", "after_cursor_execute",
)  # fmt: skip

TAGS = Tag.__table__
assert isinstance(TAGS, sa.Table)


def listen(target: Any, *names: str) -> list[str]:
    """Names of the events that are dispatched, from now on."""
    seen: list[str] = []
    for name in names:
        sa.event.listen(target, name, partial(_note, seen, name))
    return seen


def _note(seen: list[str], name: str, *_: Any) -> None:
    seen.append(name)


def types(stage: Stage) -> list[str]:
    return [event.type.removeprefix("public.") for event in stage.check()]


def work(stage: Stage) -> None:
    """Some of everything: reads before writes, savepoints before and after the first write, rollbacks, text."""
    with stage.session() as session:
        session.scalars(sa.select(Tag)).all()
        with session.begin_nested() as savepoint:
            session.scalars(sa.select(Tag)).all()
            savepoint.rollback()
        with session.begin_nested():
            session.add(Tag(id=1, name="a"))
        with session.begin_nested() as savepoint:
            session.add(Tag(id=2, name="b"))
            session.flush()
            savepoint.rollback()
        session.execute(sa.insert(Tag), [{"id": 3, "name": "c"}, {"id": 4, "name": "d"}])
        session.commit()
        session.scalars(sa.select(Tag)).all()
        session.execute(sa.update(Tag).values(name="e").where(Tag.id > 2), execution_options={"synchronize_session": False})
        session.rollback()
        session.get_one(Tag, 3).name = "f"
        session.commit()
    with stage.engine.connect() as connection:
        connection.execute(sa.select(TAGS)).all()
        connection.commit()
        connection.execute(sa.delete(TAGS).where(TAGS.c.id == 4))
        connection.commit()
        connection.exec_driver_sql("SELECT 1").all()
        connection.rollback()


WORK = ["tags.create", "tags.create", "tags.create", "tags.update", "tags.delete"]


def test_who_only_reads_pays_nothing(stage: Stage) -> None:
    """Nor is anything dispatched before the first write."""
    stage.hook()
    with stage.engine.connect() as connection:
        connection.execute(sa.select(Item).join(item_tags)).all()
        connection.execute(sa.select(TAGS).with_for_update()).all()
        assert not connection._has_events
        connection.execute(TAGS.insert(), [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}])
        assert connection._has_events
        connection.commit()
    assert types(stage) == ["tags.create"] * 2


@pytest.mark.parametrize("names", [(), ("9.",)], ids=["quiet", "on another version"])
def test_all_is_captured(stage: Stage, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
    """Also where connections cannot be kept quiet."""
    if names:
        monkeypatch.setattr(quiet, "TESTED", names)
    stage.hook()
    assert ("_has_events" in stage.engine.__dict__) is bool(names)
    work(stage)
    assert types(stage) == WORK


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("of_class", [True, False], ids=["of all engines", "of this one"])
def test_listeners_of_the_application_are_told_everything(stage: Stage, first: bool, of_class: bool) -> None:
    """As without capture, wherever they listen and whenever they came."""
    plain = sa.create_engine(stage.engine.url)
    seen = listen(plain, *NAMES)
    work(stage_of(plain))
    expected, target = seen.copy(), Engine if of_class else stage.engine
    with stage.engine.begin() as connection:
        connection.execute(sa.delete(TAGS))
    told: list[str] = []
    listeners: list[tuple[str, Callable[..., None]]] = [(name, partial(_note, told, name)) for name in NAMES]
    if not first:
        stage.hook(carry=False)
    for name, listener in listeners:
        sa.event.listen(target, name, listener)
    if first:
        stage.hook(carry=False)
    told.clear()
    try:
        work(stage)
    finally:
        for name, listener in listeners:
            sa.event.remove(target, name, listener)
        if of_class:
            Engine._has_events = False
    assert [one for one in told if one != "after_execute"] == [one for one in expected if one != "after_execute"]
    assert told.count("after_execute") == expected.count("after_execute")
    plain.dispose()
    assert types(stage) == WORK


def stage_of(engine: Engine) -> Stage:
    return Stage(engine, engine)


def test_a_listener_of_one_connection(stage: Stage) -> None:
    """Is told of its SELECTs too, and of those of no other."""
    stage.hook()
    with stage.engine.connect() as connection, stage.engine.connect() as other:
        seen = listen(connection, "before_cursor_execute")
        connection.execute(sa.select(TAGS)).all()
        other.execute(sa.select(TAGS)).all()
        assert seen == ["before_cursor_execute"]
        connection.rollback()


def test_what_is_executed_once_is_told_without_events(stage: Stage) -> None:
    """By its context, and the COMMIT by the dialect. What is executed for several rows is dispatched, and what comes after it."""
    stage.hook()
    with quiet.unheard(stage.engine):
        seen = listen(stage.engine, "before_cursor_execute", "after_cursor_execute", "commit")
    update = sa.update(TAGS).values(name="b")
    with stage.engine.connect() as connection:
        result = connection.execute(TAGS.insert(), {"id": 1, "name": "a"})
        assert result.context.statement == str(result.context.compiled)
        assert result.context.parameters[0] in ({"id": 1, "name": "a"}, (1, "a"))
        connection.execute(update.where(TAGS.c.id == 1))
        connection.execute(update)
        connection.execute(sa.text("SELECT 1")).all()
        connection.exec_driver_sql("SELECT 1").all()
        connection.execute(sa.schema.CreateTable(sa.Table("made_here", sa.MetaData(), sa.Column("id", sa.Integer))))
        assert seen == []
        connection.execute(sa.delete(TAGS).where(TAGS.c.id == sa.bindparam("key")), [{"key": 1}, {"key": 2}])
        assert seen == ["before_cursor_execute", "after_cursor_execute"]
        connection.commit()
        assert seen.pop() == "commit"
    with stage.engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE made_here"))
    assert len(seen) == 2
    assert types(stage) == ["tags.create", "tags.update", "tags.update", "tags.delete"]


@pytest.mark.parametrize("fails", ["driver", "capture"])
def test_a_statement_that_fails_shows_what_the_caller_has_written(stage: Stage, fails: str) -> None:
    """To who handles the error, too; the Connection goes on."""
    stage.hook(max_payload_bytes=64)
    shown: list[tuple[str | None, str]] = []

    def note(told: Any) -> None:
        shown.append((told.statement, told.execution_context.statement))

    sa.event.listen(stage.engine, "handle_error", note)
    expected = sa.exc.IntegrityError if fails == "driver" else CaptureError
    with stage.engine.connect() as connection:
        connection.execute(TAGS.insert(), {"id": 1, "name": "a"})
        written = str(TAGS.insert().compile(stage.engine))
        with pytest.raises(expected), connection.begin_nested():
            connection.execute(TAGS.insert(), {"id": 1, "name": "a"} if fails == "driver" else {"id": 2, "name": "b" * 40})
        assert shown[0][1] == written
        assert str(shown[0][0]).startswith(written) or "sqla_events" in str(shown[0][0])
        connection.execute(TAGS.insert(), {"id": 3, "name": "c"})
        connection.commit()
    assert types(stage) == ["tags.create"] * 2


def test_who_begins_to_listen_in_the_midst(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is told of a statement that its context has told of already; it is captured once."""
    stage.hook()
    seen: list[str] = []
    before = Listener.before

    def midst(self: Listener, *given: Any) -> Any:
        if not seen:
            seen.extend(["listening"])
            sa.event.listen(stage.engine, "before_cursor_execute", partial(_note, seen, "before_cursor_execute"))
        return before(self, *given)

    monkeypatch.setattr(Listener, "before", midst)
    with stage.engine.begin() as connection:
        connection.execute(TAGS.insert(), {"id": 1, "name": "a"})
        connection.execute(TAGS.insert(), {"id": 2, "name": "a"})
    assert seen == ["listening", "before_cursor_execute", "before_cursor_execute"]
    assert types(stage) == ["tags.create"] * 2


def test_an_engine_that_is_hooked_before_it_connects(stage: Stage) -> None:
    """SQLAlchemy asks a new database for this and that; nothing of it is anybody's write."""
    engine = sa.create_engine(stage.engine.url)
    stage.hook()
    broker = Broker(Config(), engine).install()
    try:
        with engine.begin() as connection:
            connection.execute(TAGS.insert(), {"id": 1, "name": "a"})
    finally:
        broker.uninstall()
        engine.dispose()
    assert types(stage) == ["tags.create"]


@pytest.mark.parametrize("carry", [True, False])
def test_what_was_rolled_back_is_nobody_elses(stage: Stage, carry: bool) -> None:
    """Nobody tells of a ROLLBACK, whatever the same Connection does next."""
    stage.hook(carry=carry)
    other = sa.Table("other", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
    other.create(stage.engine)
    rows = [{"id": 7}, {"id": 8}]

    def nothing(connection: Connection) -> None:
        connection.execute(sa.select(TAGS)).all()

    following: list[Callable[[Connection], object]] = [
        nothing,
        lambda connection: connection.exec_driver_sql("SELECT 1").all(),
        lambda connection: connection.execute(other.insert(), rows),
        lambda connection: connection.execute(other.delete()),
        lambda connection: connection.begin_nested().commit(),
        lambda connection: connection.begin_nested().rollback(),
        lambda connection: connection.execute(TAGS.insert(), {"id": 2, "name": "b"}),
        lambda connection: connection.execute(TAGS.insert(), [{"id": 3, "name": "b"}, {"id": 4, "name": "b"}]),
    ]
    with stage.engine.connect() as connection:
        for follows in following:
            connection.execute(TAGS.insert(), {"id": 1, "name": "a"})
            connection.rollback()
            follows(connection)
            connection.commit()
        connection.execute(TAGS.insert(), {"id": 1, "name": "a"})
        connection.invalidate()
        connection.rollback()
        connection.execute(TAGS.delete().where(TAGS.c.id == 2))
        connection.commit()
    assert [(event.type, event.key) for event in stage.events() if event.entity == "tags"] == [
        *(("public.tags.create", key) for key in "234"),
        ("public.tags.delete", "2"),
    ]


def test_a_pool_that_commits_what_comes_back(stage: Stage) -> None:
    """After a ROLLBACK, too: it commits nothing of ours."""
    stage.hook()  # for its log
    engine = sa.create_engine(stage.engine.url, pool_reset_on_return="commit")
    broker = Broker(Config(), engine).install()
    try:
        for _ in range(2):
            with engine.connect() as connection:
                connection.execute(TAGS.insert(), {"id": 1, "name": "a"})
    finally:
        broker.uninstall()
        engine.dispose()
    assert types(stage) == []


@pytest.mark.parametrize("held", ["nothing", "the driver's connection"])
def test_what_is_dropped_is_not_committed_by_the_pool(stage: Stage, held: str, caplog: pytest.LogCaptureFixture) -> None:
    """A Connection, or a session, that nobody has closed: its events are gone with it."""
    stage.engine.dispose()
    engine = stage.engine = sa.create_engine(stage.engine.url, pool_reset_on_return="commit")
    stage.hook(carry=False)
    connection = engine.connect()
    connection.execute(TAGS.insert(), {"id": 1, "name": "a"})
    proxied = connection.connection if held != "nothing" else None
    del connection
    gc.collect()
    if proxied is not None:
        proxied.close()
        del proxied
    session = Session(engine)
    session.add(Tag(id=2, name="b"))
    session.flush()
    del session
    gc.collect()
    with engine.begin() as connection:
        assert connection.execute(sa.select(TAGS.c.id)).all() == []
        connection.execute(TAGS.insert(), {"id": 3, "name": "c"})
    assert [event.key for event in stage.check()] == ["3"]
    assert "dropped" in caplog.text
    engine.dispose()


def test_a_commit_that_fails_is_not_told(stage: Stage) -> None:
    """Neither is a rollback; and one that has gone well is told at once."""
    parents = sa.Table("heads_", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
    children = sa.Table(
        "tails_", parents.metadata, sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("parent", sa.ForeignKey("heads_.id", deferrable=True, initially="DEFERRED")),
    )  # fmt: skip
    if stage.engine.dialect.name == "sqlite":
        sa.event.listen(stage.engine, "connect", lambda raw, _: raw.execute("PRAGMA foreign_keys = ON"))
        stage.engine.dispose()
    parents.metadata.create_all(stage.engine)
    broker = stage.hook()
    told: list[Any] = []
    broker.signals.subscribe(told.append, Published)
    with stage.engine.connect() as connection:
        connection.execute(children.insert(), {"id": 1, "parent": 1})
        with pytest.raises(sa.exc.IntegrityError):
            connection.commit()
        connection.rollback()
        connection.execute(parents.insert(), {"id": 1})
        connection.rollback()
        assert told == []
        connection.execute(parents.insert(), {"id": 1})
        connection.execute(children.insert(), {"id": 1, "parent": 1})
        connection.commit()
        assert [fact.type for fact in told] == ["public.heads_.create", "public.tails_.create"]
    assert [event.type for event in stage.events()] == [fact.type for fact in told]


def test_who_begins_to_listen_to_commits_in_the_midst(stage: Stage) -> None:
    """Is told; and what commits is told once."""
    broker = stage.hook()
    told: list[Any] = []
    broker.signals.subscribe(told.append, Published)
    with stage.engine.connect() as connection:
        connection.execute(TAGS.insert(), {"id": 1, "name": "a"})
        seen = listen(stage.engine, "commit")
        connection.commit()
        assert len(told) == 1
    assert seen == ["commit"]
    assert types(stage) == ["tags.create"]


def test_engines_of_options(stage: Stage) -> None:
    """They share the dialect of the captured one, whichever was there first."""
    early = stage.engine.execution_options(early=True)
    stage.hook()
    for number, engine in enumerate((early, stage.engine, stage.engine.execution_options(late=True))):
        with engine.begin() as connection:
            connection.execute(sa.select(TAGS)).all()
            connection.execute(TAGS.insert(), {"id": number, "name": "a"})
    assert types(stage) == ["tags.create"] * 3


def test_what_was_remembered_for_nothing(stage: Stage) -> None:
    """A flush that finds nothing to write tells of no old values; its transaction ends without a word."""
    stage.hook(old_values="known")
    with stage.session() as session:
        session.add(Tag(id=1, name="a"))
        session.commit()
    with stage.engine.connect() as connection, Session(connection, expire_on_commit=False) as session:
        tag = session.get_one(Tag, 1)
        tag.name = "b"
        tag.name = "a"
        session.flush()
        assert buffer_of(connection).states
        session.commit()
        connection.commit()
        with stage.engine.begin() as other:
            other.execute(sa.update(TAGS).values(name="c").where(TAGS.c.id == 1))
        connection.execute(TAGS.update().where(TAGS.c.id == sa.bindparam("key")), {"key": 1, "name": "d"})
        connection.commit()
    (update, later) = [event.payload for event in stage.check()][1:]
    assert update["after"] == {"name": "c"}
    assert later["after"] == {"name": "d"}
    assert later.get("before", {}).get("name") in (None, "c")


def test_reads_that_are_captured(stage: Stage) -> None:
    """Their events commit although nothing is written."""
    with stage.session() as session:
        session.add(Tag(id=1, name="a"))
        session.commit()
    stage.hook(enable_read=True)
    with stage.session() as session:
        session.get_one(Tag, 1)
        session.commit()
    assert [event.type for event in stage.events()] == ["public.tags.read"]


def test_an_event_that_is_published_by_hand(stage: Stage) -> None:
    """On a connection that has written nothing else; who waits for commits is told."""
    broker = stage.hook()
    with stage.session() as session:
        session.scalars(sa.select(Tag)).all()
        broker.publish("a.b.c", {}, session=session)
        session.rollback()
        broker.publish("a.b.d", {}, session=session)
        session.commit()
    assert [event.type for event in stage.events()] == ["a.b.d"]


def test_an_event_that_cannot_be_made(stage: Stage) -> None:
    """The statement fails as it did; nothing of it commits."""
    stage.hook(max_payload_bytes=64)
    with stage.engine.connect() as connection:
        connection.execute(TAGS.insert(), {"id": 1, "name": "a"})
        with pytest.raises(CaptureError, match="max_payload_bytes"):
            connection.execute(TAGS.insert(), {"id": 2, "name": "b" * 40})
        with pytest.raises(CaptureError, match="cannot be committed"):
            connection.commit()
    assert types(stage) == []


def test_what_is_hooked_in_comes_off_again(stage: Stage) -> None:
    """But what somebody else has put on top stays."""
    dialect = stage.engine.dialect
    plain = dialect.execution_ctx_cls
    stage.hook().uninstall()
    assert dialect.execution_ctx_cls is plain
    broker = stage.hook()
    dialect.execution_ctx_cls = other = type("Other", (dialect.execution_ctx_cls,), {})
    broker.uninstall()
    assert dialect.execution_ctx_cls is other
    with stage.engine.begin() as connection:
        connection.execute(TAGS.insert(), {"id": 1, "name": "a"})
    assert stage.events() == []
    stage.hook()
    with stage.engine.begin() as connection:
        connection.execute(TAGS.insert(), {"id": 2, "name": "a"})
    assert [event.key for event in stage.events()] == ["2"]


@pytest.mark.parametrize("last", [Connection.commit, Connection.rollback])
def test_a_connection_that_is_awake_dispatches(stage: Stage, last: Callable[[Connection], None]) -> None:
    """What all of this stands on: SQLAlchemy asks the Connection before each event, and the context of each statement."""
    seen: list[str] = []
    with quiet.quietly(stage.engine):
        for name in ("before_cursor_execute", "after_cursor_execute", "commit", "rollback"):
            sa.event.listen(stage.engine, name, partial(_note, seen, name))
    returning = stage.engine.dialect.insert_executemany_returning
    with stage.engine.connect() as connection:
        connection.execute(sa.select(TAGS)).all()
        assert seen == []
        buffer = buffer_of(connection)
        buffer.executed = lambda *_: seen.append("executed")
        buffer.plans.append(None)
        connection.execute(TAGS.insert(), {"id": 1, "name": "a"})
        connection.execute(TAGS.insert(), [{"id": 2, "name": "a"}, {"id": 3, "name": "a"}])
        if returning:
            connection.execute(TAGS.insert().returning(TAGS.c.id), [{"id": 4, "name": "a"}, {"id": 5, "name": "a"}]).all()
        connection.execute(sa.text("SELECT 1")).all()
        last(connection)
    each = ["before_cursor_execute", "after_cursor_execute", "executed"]
    assert seen == [*each * (4 if returning else 3), last.__name__]


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_engines_that_share_a_dialect_each_captured_in_its_own_way(stage: Stage, order: str) -> None:
    """Whichever came first, and when one of them is not captured any more."""
    engines = {name: stage.engine.execution_options(name=name) for name in order}
    brokers = {name: install_crud_hooks(engines[name], {"instance_id": name, "capture": {"carry": False}}) for name in order}
    try:
        for name in "aba":
            with engines[name].begin() as connection:
                connection.execute(sa.insert(Tag), {"name": name})
        brokers[order[1]].uninstall()
        for name in "ab":
            with Session(engines[name]) as session:
                session.execute(sa.select(Tag)).all()
                session.scalars(sa.select(Tag).order_by(Tag.id).limit(1)).one().name = f"by {name}"
                session.commit()
        events = brokers[order[0]].list(EventFilter(limit=100))
    finally:
        for broker in brokers.values():
            broker.uninstall()
    assert [event.instance_id for event in events] == ["a", "b", "a", order[0]]
    assert events[-1].payload["before"] == {"name": "a" if order == "ab" else "by a"}


def test_two_brokers_of_one_dialect_go_one_after_the_other(stage: Stage) -> None:
    """Each takes off what is its own."""
    engines = [stage.engine.execution_options(number=number) for number in range(2)]
    first, second = (Broker(Config(), engine).install() for engine in engines)
    plain = stage.engine.dialect.execution_ctx_cls
    first.uninstall()
    assert stage.engine.dialect.execution_ctx_cls is plain
    counted: list[Fact] = []
    second.signals.subscribe(counted.append)
    with engines[1].begin() as connection:
        connection.execute(TAGS.insert(), {"id": 1, "name": "a"})
    assert len(counted) == 1
    second.uninstall()
    assert stage.engine.dialect.execution_ctx_cls is not plain


@pytest.mark.parametrize("name", ["before_cursor_execute", "after_cursor_execute"])
def test_a_rollback_as_text_that_a_listener_disturbs(stage: Stage, name: str) -> None:
    """Nobody knows whether it has run: the transaction does not commit. Before it, SQLAlchemy 2.0 tells nobody of the error, and
    nothing has been rolled back.
    """
    told = name != "before_cursor_execute" or not sa.__version__.startswith("2.0.")

    def fail(*given: Any) -> None:
        if "ROLLBACK" in str(given[2]):
            raise ZeroDivisionError

    sa.event.listen(stage.engine, name, fail)
    stage.hook()
    with stage.engine.connect() as connection:
        connection.execute(TAGS.insert(), [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}])
        with pytest.raises(ZeroDivisionError):
            connection.exec_driver_sql("ROLLBACK")
        with pytest.raises(CaptureError, match="cannot be committed") if told else nullcontext():
            connection.commit()
    assert types(stage) == ([] if told else ["tags.create"] * 2)


def test_a_statement_that_was_prepared_before_the_hooks_came(stage: Stage) -> None:
    """Is seen as a whole or not at all; or its transaction does not commit."""
    values = sa.Table("slow", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("x", sa.Integer, default=lambda: hook()))
    values.create(stage.engine)

    def hook() -> int:
        stage.hook(carry=False)
        return 1

    with stage.engine.connect() as connection:
        connection.execute(values.insert(), {"id": 1})
        connection.commit()
        assert connection.execute(values.select()).all() == [(1, 1)]
    assert stage.events() == []
    assert stage.broker is not None
    stage.broker.uninstall()
    seen = listen(stage.engine, "before_cursor_execute")  # all is dispatched
    with stage.engine.connect() as connection:
        connection.execute(values.insert(), {"id": 2})
        with pytest.raises(CaptureError, match="cannot be committed"):
            connection.commit()
    assert seen


@pytest.mark.parametrize("begin", [Engine.begin, Engine.connect])
def test_a_class_of_contexts_that_comes_later(stage: Stage, begin: Callable[[Engine], Any]) -> None:
    """Does not switch capture off: the transaction that begins with it is refused, as it may have begun with a write."""
    plain = stage.engine.dialect.execution_ctx_cls
    stage.hook()
    stage.engine.dialect.execution_ctx_cls = type("Other", (plain,), {})
    with pytest.raises(CaptureError, match="execution_ctx_cls"), begin(stage.engine) as connection:
        connection.execute(TAGS.insert(), {"id": 1, "name": "a"})
        connection.commit()
    with stage.engine.connect() as connection:
        connection.execute(TAGS.insert(), {"id": 2, "name": "a"})
        connection.commit()
        connection.execute(TAGS.insert(), {"id": 3, "name": "a"})
        ours = stage.engine.dialect.execution_ctx_cls
        stage.engine.dialect.execution_ctx_cls = type("Other", (plain,), {})
        connection.execute(TAGS.insert(), {"id": 4, "name": "a"})
        with pytest.raises(CaptureError, match="execution_ctx_cls"):
            connection.commit()
    stage.engine.dialect.execution_ctx_cls = ours
    assert types(stage) == ["tags.create"]


@pytest.mark.parametrize("where", ["dialect", "class"])
def test_a_way_to_commit_that_comes_later(stage: Stage, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Is called, and takes no event with it."""
    dialect = stage.engine.dialect
    plain = type(dialect).do_commit
    stage.hook()
    called: list[Any] = []

    def commit(*given: Any) -> None:
        called.append(given)
        plain(dialect, given[-1])

    monkeypatch.setattr(dialect if where == "dialect" else type(dialect), "do_commit", commit)
    for key in (1, 2):
        with stage.engine.begin() as connection:
            connection.execute(TAGS.insert(), {"id": key, "name": "a"})
    assert len(called) == 2
    assert types(stage) == ["tags.create"] * 2


@pytest.mark.parametrize("who", ["listener", "dialect"])
def test_a_commit_that_is_disturbed(stage: Stage, who: str) -> None:
    """SQLAlchemy sends no ROLLBACK then: the driver's transaction goes on, and what it has written commits with what comes next."""
    dialect = stage.engine.dialect
    disturbs = [True]

    def disturb(*given: Any) -> None:
        if disturbs:
            disturbs.clear()
            raise ZeroDivisionError

    if who == "listener":
        sa.event.listen(stage.engine, "commit", disturb)
    broker = stage.hook(carry=False)
    told: list[Any] = []
    broker.signals.subscribe(told.append, Published)
    ours = dialect.do_commit
    if who == "dialect":
        dialect.do_commit = lambda proxied: (disturb(), ours(proxied))  # type: ignore[method-assign]
    with stage.engine.connect() as connection:
        connection.execute(TAGS.insert(), {"id": 1, "name": "a"})
        with pytest.raises(ZeroDivisionError):
            connection.commit()
        connection.rollback()
        connection.execute(TAGS.insert(), {"id": 2, "name": "a"})
        connection.commit()
    assert len(stage.check()) == sum(fact.count for fact in told) == 2
    dialect.do_commit = ours  # type: ignore[method-assign]


def test_connections_that_share_a_driver_connection(tmp_path: Any) -> None:
    """Share its transaction: what one of them has lost, none commits; each is told."""
    engine = sa.create_engine("sqlite://", poolclass=sa.pool.SingletonThreadPool)
    events = Tables().events
    upgrade(f"sqlite:///{tmp_path}/log.db")
    with engine.connect() as connection, closing(sqlite3.connect(tmp_path / "log.db")) as log:
        log.backup(connection.connection.driver_connection)  # type: ignore[arg-type]
    TAGS.create(engine)
    broker = Broker(Config.load({"capture": {"max_payload_bytes": 64}}), engine).install()
    told: list[Any] = []
    broker.signals.subscribe(told.append, Published)
    try:
        with engine.connect() as one, engine.connect() as other:
            one.execute(TAGS.insert(), {"id": 1, "name": "a"})
            other.execute(TAGS.insert(), {"id": 2, "name": "a"})
            other.commit()
            one.commit()
            assert len(told) == 2
            one.execute(TAGS.insert(), {"id": 3, "name": "a"})
            with pytest.raises(CaptureError, match="max_payload_bytes"):
                one.execute(TAGS.insert(), {"id": 4, "name": "b" * 40})
            other.execute(TAGS.insert(), {"id": 5, "name": "a"})
            with pytest.raises(CaptureError, match="cannot be committed"):
                one.commit()
            other.commit()
        with engine.connect() as connection:
            assert connection.scalars(sa.select(events.c.key)).all() == ["1", "2"]
            assert connection.scalars(sa.select(TAGS.c.id)).all() == [1, 2]
    finally:
        broker.uninstall()
        engine.dispose()


def test_a_commit_for_which_sqlite_is_locked(tmp_path: Any) -> None:
    """The driver's transaction goes on; all of it is told when it commits."""
    engine = sa.create_engine(f"sqlite:///{tmp_path}/locked.db", connect_args={"timeout": 0})
    upgrade(engine.url.render_as_string(hide_password=False))
    TAGS.create(engine)
    broker = install_crud_hooks(engine, {})
    told: list[Any] = []
    broker.signals.subscribe(told.append, Published)
    try:
        with engine.connect() as connection, engine.connect() as reader:
            connection.execute(TAGS.insert(), {"id": 1, "name": "a"})
            reads = reader.exec_driver_sql("SELECT * FROM tags, sqlite_master")
            reader.exec_driver_sql("BEGIN")
            reader.exec_driver_sql("SELECT * FROM tags").all()
            with pytest.raises(sa.exc.OperationalError, match="locked"):
                connection.commit()
            assert told == []
            reads.close()
            reader.rollback()
            connection.rollback()
            connection.execute(TAGS.insert(), {"id": 2, "name": "a"})
            connection.commit()
        assert len(broker.list(EventFilter(limit=10))) == len(told) == 2
    finally:
        broker.uninstall()
        engine.dispose()


def test_a_rollback_outside_of_a_transaction(stage: Stage) -> None:
    """As SQLAlchemy makes one after an error that has ended it: it passes, also before the first look for triggers."""
    listen(stage.engine, "rollback")
    stage.hook()
    with stage.engine.connect() as connection:
        connection._rollback_impl()
        connection._commit_impl()
        connection.execute(TAGS.insert(), {"id": 1, "name": "a"})
        connection.commit()
    assert types(stage) == ["tags.create"]


def test_a_listener_of_commits_that_writes(stage: Stage) -> None:
    """Whether it came before the hooks or after them: it is an event, and told."""
    stage.hook()
    stage.broker.uninstall() if stage.broker else None

    def write(key: int, connection: Connection) -> None:
        connection.execute(TAGS.insert(), {"id": key, "name": "a"})

    sa.event.listen(stage.engine, "commit", partial(write, 2))
    broker = stage.hook()
    sa.event.listen(stage.engine, "commit", partial(write, 3))
    told: list[Any] = []
    broker.signals.subscribe(told.append, Published)
    with stage.engine.begin() as connection:
        connection.execute(TAGS.insert(), {"id": 1, "name": "a"})
    assert sum(fact.count for fact in told) == len(stage.check()) == 3


@pytest.mark.parametrize("element", [sa.select(sa.text("1; DELETE FROM tags")), sa.DDL("SELECT 1; DELETE FROM tags")])
def test_a_select_that_is_none(stage: Stage, element: Any) -> None:
    """Is reported as a gap."""
    stage.hook(on_gap="raise")
    with stage.engine.connect() as connection, pytest.raises(CaptureError, match="tags"):
        connection.execute(element)


def test_a_savepoint_that_is_not_there(stage: Stage) -> None:
    """A ROLLBACK TO that fails rolls back no events."""
    stage.hook()
    with stage.engine.connect() as connection:
        connection.execute(TAGS.insert(), {"id": 1, "name": "a"})
        with pytest.raises(sa.exc.DatabaseError):
            connection.exec_driver_sql("ROLLBACK TO SAVEPOINT nosuch")
        connection.commit()
    assert types(stage) == (["tags.create"] if stage.engine.dialect.name == "sqlite" else [])


@pytest.mark.parametrize("last", [Connection.commit, Connection.rollback])
def test_a_write_behind_with(stage: Stage, last: Callable[[Connection], None]) -> None:
    """As the first of a transaction: before it, SQLite's driver begins none."""
    stage.hook()
    with stage.engine.begin() as connection:
        connection.execute(TAGS.insert(), {"id": 1, "name": "a"})
    chosen = sa.select(TAGS.c.id).cte("chosen")
    with stage.engine.connect() as connection:
        connection.execute(TAGS.update().values(name="b").where(TAGS.c.id.in_(sa.select(chosen.c.id))))
        last(connection)
    assert types(stage) == (["tags.create", "tags.update"] if last is Connection.commit else ["tags.create"])

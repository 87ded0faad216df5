"""PostgreSQL: statements of one row that take their event along write what a statement of its own would have written."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from functools import partial
from random import Random as Shuffled
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.orm.exc import StaleDataError

from sqla_events import CaptureError, Event, event_context, install_crud_hooks
from sqla_events.capture.frame import ROWS
from sqla_events.capture.make import Maker
from tests.capture.conftest import Stage
from tests.capture.test_within import same
from tests.integration.shop import eventually

STRANGE = 'Straße: 100% "{o\'clock}" */ --$1'


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "rows"
    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str | None] = mapped_column("lbl%", sa.String(50))
    price: Mapped[Decimal | None] = mapped_column(sa.Numeric(10, 2))
    doc: Mapped[Any] = mapped_column(sa.JSON, nullable=True)
    raw: Mapped[Any] = mapped_column(sa.JSON(none_as_null=True), nullable=True)
    blob: Mapped[bytes | None]
    hidden: Mapped[str | None] = mapped_column(info={"sqla_events": "exclude"})
    secret: Mapped[str | None] = mapped_column(info={"sqla_events": "redact"})
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012


class Odd(Base):
    __tablename__ = STRANGE
    a: Mapped[str] = mapped_column("ключ %s:x", primary_key=True)
    b: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    c: Mapped[str | None] = mapped_column("it's {0}")


class Told(Base):
    """The database says more than the key."""

    __tablename__ = "told"
    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(server_default="new")
    changed: Mapped[str | None] = mapped_column(onupdate=sa.text("'now'"))
    n: Mapped[int | None]


class Hidden(Base):
    """Nobody sees the key."""

    __tablename__ = "hidden"
    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(start=7), primary_key=True, info={"sqla_events": "exclude"})
    n: Mapped[int | None]


class Empty(Base):
    __tablename__ = "empty"
    id: Mapped[int] = mapped_column(primary_key=True)


class Random(Base):
    """A key that the database makes, and that is no number."""

    __tablename__ = "random"
    id: Mapped[str] = mapped_column(primary_key=True, server_default=sa.text("'k' || nextval('rows_id_seq')"))


no_key = sa.Table("no_key", Base.metadata, sa.Column("n", sa.Integer))


def row(**values: Any) -> Row:
    return Row(label="ü\x01\n'%s", price=Decimal("1.10"), doc={"a": [1.5, None]}, blob=b"\0\xff", hidden="h", secret="s", **values)


def insert(session: Session) -> Any:
    session.add(one := row())
    session.flush()
    return one.id, one.version


def insert_with_key(session: Session) -> Any:
    session.add(row(id=5))
    session.flush()


def change(session: Session) -> Any:
    one = session.get_one(Row, 1)
    one.label, one.price, one.doc, one.secret = None, Decimal("2.00"), None, "t"
    session.flush()
    one.hidden, one.raw = "i", [1]
    session.flush()
    return one.version


def change_key(session: Session) -> Any:
    session.get_one(Odd, ("a%", 1)).b = 9
    session.flush()


def remove(session: Session) -> Any:
    session.delete(session.get_one(Row, 1))
    session.flush()


def remove_unseen(session: Session) -> Any:
    return session.execute(sa.delete(Row).where(Row.id == sa.bindparam("key")), {"key": 2}).rowcount


def composite(session: Session) -> Any:
    session.add(Odd(a="%s", b=2, c="{x}"))
    session.flush()
    session.get_one(Odd, ("a%", 1)).c = "$1"
    session.flush()
    session.delete(session.get_one(Odd, ("a%", 1)))
    session.flush()


def core(session: Session) -> Any:
    made = session.execute(sa.insert(Row.__table__), {"lbl%": "x", "version": 1}).inserted_primary_key
    statement = sa.update(Row.__table__).where(Row.__table__.c.id == sa.bindparam("key"))
    counts = [session.execute(statement, {"key": key, "secret": "x"}).rowcount for key in (1, 99)]
    count = session.execute(no_key.insert(), {"n": 1}).rowcount
    found = session.execute(sa.insert(Row.__table__).returning(Row.__table__.c.id), {"version": 1}).one()
    return made, counts, count, found, found._fields


def raw_sql(session: Session) -> Any:
    with_comment = sa.insert(no_key).prefix_with("/* -- */")
    return session.execute(with_comment, {"n": 2}).rowcount


def key_of_the_database(session: Session) -> Any:
    session.add(one := Hidden(n=1))
    session.flush()
    return one.id


def nothing_but_a_key(session: Session) -> Any:
    session.add(one := Empty())
    session.flush()
    return one.id


WRITES: list[Callable[[Session], Any]] = [
    insert, insert_with_key, change, change_key, remove, remove_unseen, composite, core, raw_sql, key_of_the_database,
    nothing_but_a_key,
]  # fmt: skip


def told(session: Session) -> Any:
    session.add(one := Told(n=1))
    session.flush()
    one.n = 2
    session.flush()
    return one.state, one.changed


def random_key(session: Session) -> Any:
    session.add(one := Random())
    session.flush()
    return one.id


def none_for_a_key(session: Session) -> Any:
    return session.execute(sa.insert(Row.__table__), {"id": None, "version": 1}).inserted_primary_key


def returning(session: Session) -> Any:
    """A key that is given, and rows that are the caller's."""
    found = session.execute(sa.insert(Row.__table__).returning(Row.__table__.c.version), {"id": 70, "version": 1}).one()
    changed = sa.update(Row.__table__).where(Row.__table__.c.id == sa.bindparam("key")).returning(Row.__table__.c.version)
    return found, session.execute(changed, {"key": 70, "secret": "x"}).all()


APART: list[Callable[[Session], Any]] = [told, random_key, returning]
"""Whose rows the parameters do not tell."""

_RAW = "SELECT key, payload::text, types::text, metadata::text, user_id, session_id, type, schema, entity, operation, source, schema_version FROM events ORDER BY seq"


class Run:
    """What a write has left behind."""

    def __init__(self, connection: sa.Connection, engine: Any, write: Callable[[Session], Any], **capture: Any) -> None:
        for name in ("rows_id_seq", "hidden_id_seq", "told_id_seq", "empty_id_seq"):
            connection.exec_driver_sql(f"SELECT setval('{name}', 100)")
        broker, seen = install_crud_hooks(engine, {"capture": capture}), []
        listener = lambda *given: seen.append(given[2])  # noqa: E731
        sa.event.listen(connection.engine, "before_cursor_execute", listener)
        try:
            with event_context(user_id=7, session_id="s", it="100%"), Session(connection) as session:
                self.result = write(session)
                broker._capture.drain(connection)
            self.events = [dict(one) for one in connection.exec_driver_sql(_RAW).mappings()]
            self.carried = sum(ROWS in sql for sql in seen)
        finally:
            connection.rollback()
            sa.event.remove(connection.engine, "before_cursor_execute", listener)
            broker.uninstall()


@pytest.fixture
def url(postgres_url: str) -> Iterator[sa.URL]:
    engine = sa.create_engine(postgres_url)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all([row(id=1), row(id=2), Odd(a="a%", b=1, c="c")])
        session.execute(sa.text("SELECT setval('rows_id_seq', 100)"))
    yield engine.url
    engine.dispose()


def both(connection: sa.Connection, engine: Any, write: Callable[[Session], Any], **capture: Any) -> Run:
    """The same events and the same result with and without."""
    apart = Run(connection, engine, write, carry=False, **capture)
    run = Run(connection, engine, write, **capture)
    assert apart.carried == 0
    assert run.result == apart.result
    same(run.events, apart.events)
    return run


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+psycopg_async", "postgresql+asyncpg"])
@pytest.mark.parametrize("old_values", ["known", "never"])
def test_the_same_events(url: sa.URL, driver: str, old_values: str) -> None:
    """Every kind of write, on every driver; and none of them has had a statement of its own for its event."""
    found = {}

    def run(connection: sa.Connection, engine: Any) -> None:
        for write in (*WRITES, *APART):
            found[write] = both(connection, engine, write, old_values=old_values)

    if driver.endswith("psycopg"):
        sync_engine = sa.create_engine(url)
        with sync_engine.connect() as connection:
            run(connection, sync_engine)
        sync_engine.dispose()
    else:
        asyncio.run(_asynchronously(url.set(drivername=driver), run))
    assert all(found[write].events for write in found)
    assert {write.__name__: found[write].carried for write in WRITES} == {
        write.__name__: len(found[write].events) for write in WRITES  # core: one has matched nothing, one has rows that are the caller's
    }
    assert [found[write].carried for write in APART] == [0, 0, 0]


async def _asynchronously(url: sa.URL, run: Callable[[sa.Connection, Any], None]) -> None:
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        await connection.run_sync(run, engine)
    await engine.dispose()


def test_what_the_database_makes_stands_where_it_belongs(url: sa.URL) -> None:
    """In key and payload, and nowhere else."""
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        (event,) = Run(connection, engine, insert).events
        assert (event["key"], event["payload"].count("101")) == ("101", 2)
        (event,) = Run(connection, engine, key_of_the_database).events
        assert (event["key"], "101" in event["payload"]) == ("101", False)
        with pytest.raises(sa.exc.IntegrityError) as caught:
            Run(connection, engine, none_for_a_key)
        assert ROWS not in str(caught.value)
    engine.dispose()


@pytest.fixture
def stage_of(url: sa.URL) -> Iterator[Callable[..., Stage]]:
    engine = sa.create_engine(url)
    stage = Stage(engine, engine)

    def made(**capture: Any) -> Stage:
        stage.hook(**capture)
        return stage

    yield made
    assert stage.broker is not None
    stage.broker.uninstall()
    engine.dispose()


def keys(stage: Stage) -> list[tuple[str, str | None]]:
    return [(event.operation or "", event.key) for event in stage.events()]


def test_a_row_that_is_gone(stage_of: Callable[..., Stage]) -> None:
    """No event, and the unit of work notices as ever."""
    stage = stage_of()
    with stage.session() as session:
        one = session.get_one(Row, 1)
        with stage.engine.begin() as other:
            other.exec_driver_sql("DELETE FROM rows WHERE id = 1")
        one.label = "x"
        with pytest.raises(StaleDataError, match="0 were matched"):
            session.commit()
    assert keys(stage) == []


def test_order_with_events_that_wait(stage_of: Callable[..., Stage]) -> None:
    """Many at once wait for the COMMIT; what comes after them waits too; a savepoint lets them go."""
    stage = stage_of()
    with stage.session() as session, session.begin():
        session.add(row(id=9))
        session.flush()
        session.add_all([row(id=10), row(id=11)])
        session.flush()
        session.get_one(Row, 10).label = "x"
        session.flush()
        with session.begin_nested():
            session.delete(session.get_one(Row, 10))
        session.begin_nested()
        session.delete(session.get_one(Row, 11))
        session.flush()
        session.get_nested_transaction().rollback()  # type: ignore[union-attr]
        session.delete(session.get_one(Row, 9))
    assert keys(stage) == [("create", "9"), ("create", "10"), ("create", "11"), ("update", "10"), ("delete", "10"), ("delete", "9")]


def test_the_error_of_the_statement_is_the_callers(stage_of: Callable[..., Stage]) -> None:
    """It shows what he has written, and nothing is captured."""
    stage, seen = stage_of(), []
    sa.event.listen(stage.engine, "handle_error", lambda context: seen.append((context.statement, context.parameters)))
    with stage.session() as session:
        session.add(row(id=1))
        with pytest.raises(sa.exc.IntegrityError) as caught:
            session.commit()
    assert seen == [(caught.value.statement, caught.value.params)]
    assert str(caught.value.statement).startswith("INSERT INTO rows")
    assert len(caught.value.params) == len(Row.__table__.columns)
    assert keys(stage) == []


def test_the_error_of_a_listener(stage_of: Callable[..., Stage]) -> None:
    """After the statement, and caught: the event is in the log as the row is in the table."""

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    stage = stage_of()
    for name in ("after_cursor_execute", "after_execute"):
        for first in (True, False):
            with stage.engine.begin() as connection:
                sa.event.listen(stage.engine, name, fail, insert=first)
                with pytest.raises(ZeroDivisionError):
                    connection.execute(no_key.insert(), {"n": 1})
                sa.event.remove(stage.engine, name, fail)
    assert len(keys(stage)) == 4


def test_tables_that_cannot_be_written_in_a_with(stage_of: Callable[..., Stage]) -> None:
    """One with a rule from the start; one that gets its rule later fails once, as it can."""
    stage = stage_of()
    rule = "CREATE RULE r AS ON INSERT TO {} WHERE new.n = 8 DO ALSO SELECT 1"
    with stage.engine.begin() as connection:
        connection.exec_driver_sql(rule.format("hidden"))
    with stage.session() as session, session.begin():
        session.add(Hidden(n=1))
    with stage.engine.begin() as connection:
        connection.execute(no_key.insert(), {"n": 1})
    with stage.engine.begin() as connection:
        connection.exec_driver_sql(rule.format("no_key"))
    with pytest.raises(sa.exc.NotSupportedError) as caught, stage.engine.begin() as connection:
        connection.execute(no_key.insert(), {"n": 2})
    assert ROWS not in str(caught.value.statement)
    with stage.engine.begin() as connection:
        connection.execute(no_key.insert(), {"n": 3})
    assert [event.payload["after"]["n"] for event in stage.events()] == [1, 1, 3]


def test_a_log_that_refuses(stage_of: Callable[..., Stage]) -> None:
    """From the start, and from later on."""
    stage = stage_of()
    with stage.engine.begin() as connection:
        connection.execute(no_key.insert(), {"n": 1})
    with stage.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE events RENAME TO gone")
    for number in range(2):
        with pytest.raises(CaptureError, match="sqla-events migrate"), stage.engine.begin() as connection:
            connection.execute(no_key.insert(), {"n": number})


def test_payloads_that_fail(stage_of: Callable[..., Stage]) -> None:
    """Nothing is left behind."""
    stage = stage_of(max_payload_bytes=100)
    with stage.session() as session:
        session.add(row())
        with pytest.raises(CaptureError, match="max_payload_bytes"):
            session.flush()
        session.rollback()
        session.add(Hidden(n=1))
        session.commit()
    assert len(keys(stage)) == 1


@pytest.mark.parametrize("on_too_large", ["error", "truncate"])
def test_a_payload_that_is_just_small_enough(stage_of: Callable[..., Stage], on_too_large: str) -> None:
    """What stands in for a key is longer than the key."""
    stage = stage_of(max_payload_bytes=64, on_too_large=on_too_large)
    with stage.session() as session, session.begin():
        session.add(empty := Empty())
        session.flush()
        key = empty.id
        session.add(Hidden(n=12345))
    assert [event.payload.get("after") for event in stage.events()] == [{"id": key}, {"n": 12345}]


def test_what_no_event_can_be_made_of_is_the_databases_to_refuse(stage_of: Callable[..., Stage]) -> None:
    """With its own error; and where it writes nothing, there is none."""
    stage = stage_of(max_payload_bytes=100)
    statement = sa.update(Row.__table__).where(Row.__table__.c.id == sa.bindparam("key"))
    with stage.engine.connect() as connection:
        assert connection.execute(statement, {"key": 99, "hidden": "x", "lbl%": "x" * 50, "blob": b"x" * 50}).rowcount == 0
        for write, given in ((no_key.insert(), {"n": object()}), (statement, {"key": 1, "version": object()})):
            with pytest.raises(sa.exc.ProgrammingError, match="cannot adapt"):
                connection.execute(write, given)
        with pytest.raises(CaptureError, match="max_payload_bytes"):
            connection.execute(statement, {"key": 1, "lbl%": "x" * 50, "blob": b"x" * 50})


def test_old_values_of_what_no_event_could_be_made_of_at_first(stage_of: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not lost on the way."""
    stage = stage_of()
    make, failed = Maker.event, []

    def fails_once(maker: Maker, connection: sa.Connection, plan: Any, row: Any) -> Any:
        if not failed:
            failed.append(plan)
            raise CaptureError("not yet")
        return make(maker, connection, plan, row)

    with stage.session() as session, session.begin():
        session.add(one := Hidden(n=1))
        session.flush()
        assert stage.broker is not None
        monkeypatch.setattr(stage.broker._capture._listener._carrier, "_event", partial(fails_once, stage.broker._capture._maker))
        one.n = 2
    assert [event.payload.get("before") for event in stage.events()] == [None, {"n": 1}]


def test_a_key_that_is_no_number_in_the_database(stage_of: Callable[..., Stage]) -> None:
    """From the start, or from now on: an event of it all the same."""
    stage = stage_of()
    text = "ALTER TABLE {0} ALTER id DROP DEFAULT, ALTER id TYPE text; ALTER TABLE {0} ALTER id SET DEFAULT 'k'"
    with stage.engine.begin() as connection:
        connection.exec_driver_sql(text.format("empty"))
        connection.execute(sa.insert(Empty.__table__))
    with stage.engine.begin() as connection:
        connection.execute(sa.insert(Row.__table__), {"version": 1})
        connection.exec_driver_sql(text.format("rows"))
        connection.execute(sa.insert(Row.__table__), {"version": 1})
    found = [(event.entity, event.key, event.payload["key"]) for event in stage.events()]
    assert found[0] == ("empty", "k", {"id": "k"})
    assert found[-1] == ("rows", "k", {"id": "k"})


def test_a_log_that_takes_its_rows_elsewhere(stage_of: Callable[..., Stage]) -> None:
    """A trigger before each of them, or a rule: their number is not that of the rows that were written."""
    stage = stage_of()
    with stage.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE other (LIKE events INCLUDING DEFAULTS); CREATE FUNCTION move() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN INSERT INTO other SELECT new.*; RETURN NULL; END'; "
            "CREATE TRIGGER move BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION move()"
        )
    with stage.session() as session, session.begin():
        session.get_one(Row, 1).secret = "x"
    with stage.engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT type, key FROM other").all() == [("public.rows.update", "1")]


def test_a_log_with_policies_that_refuses(stage_of: Callable[..., Stage]) -> None:
    """Row level security has words of its own."""
    stage = stage_of()
    with stage.engine.connect() as connection:
        connection.exec_driver_sql(
            "ALTER TABLE events ENABLE ROW LEVEL SECURITY; CREATE ROLE writer; GRANT ALL ON ALL TABLES IN SCHEMA public TO writer; "
            "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO writer; SET ROLE writer"
        )
        with pytest.raises(CaptureError, match="row-level security"):
            connection.execute(no_key.insert(), {"n": 1})


def test_another_listener_may_write_into_the_sql(stage_of: Callable[..., Stage]) -> None:
    """A comment at the end, before ours comes and after it."""
    stage = stage_of()
    for first in (True, False):
        comment = lambda c, cursor, sql, *_: (sql + " -- it's %%s", _[0])  # noqa: E731
        sa.event.listen(stage.engine, "before_cursor_execute", comment, retval=True, insert=first)
        with stage.session() as session, session.begin():
            session.add(row())
        sa.event.remove(stage.engine, "before_cursor_execute", comment)
    assert [operation for operation, _ in keys(stage)] == ["create"] * 2


def test_another_listener_may_write_rows(stage_of: Callable[..., Stage]) -> None:
    """Before the statement, when it is known already that it takes its event along: of many, whose events would wait."""
    stage = stage_of()
    statement = sa.update(Row.__table__).where(Row.__table__.c.id == sa.bindparam("key"))

    def write(connection: sa.Connection, cursor: Any, sql: str, given: Any, context: Any, many: bool) -> None:
        if ROWS in sql:
            connection.execute(statement, [{"key": 1, "lbl%": "first"}, {"key": 2, "lbl%": "first"}])

    sa.event.listen(stage.engine, "before_cursor_execute", write)
    with stage.engine.begin() as connection:
        connection.execute(statement, {"key": 1, "lbl%": "then"})
        found = connection.scalar(sa.select(Row.label).where(Row.id == 1))
    told = [event.payload["after"]["lbl%"] for event in stage.events() if event.key == "1"]
    assert (told, found) == (["first", "then"], "then")


def test_a_statement_that_is_in_a_with_already(url: sa.URL) -> None:
    """Data is changed at the top of a WITH only."""
    wrap = lambda c, cursor, sql, given, *_: (f"WITH mine AS ({sql} RETURNING 1) SELECT * FROM mine", given)  # noqa: E731
    engine = sa.create_engine(url)
    sa.event.listen(engine, "before_cursor_execute", wrap, retval=True)
    broker = install_crud_hooks(engine)
    with engine.begin() as connection:
        connection.execute(no_key.insert(), {"n": 1})
    sa.event.remove(engine, "before_cursor_execute", wrap)
    assert len(broker.list()) == 1
    broker.uninstall()
    engine.dispose()


def test_order_while_transactions_stay_open(url: sa.URL) -> None:
    """Numbers are taken long before the COMMIT then: each row's events come to a reader once, and in its order."""
    engine = sa.create_engine(url, pool_size=10)
    broker = install_crud_hooks(engine)
    versions: dict[int, list[int]] = {}

    @broker.subscribe("public.rows.update")
    def note(event: Event) -> None:
        versions.setdefault(event.payload["key"]["id"], []).append(event.payload["after"]["version"])

    def change_some(seed: int) -> None:
        random = Shuffled(seed)
        for _ in range(40):
            with Session(engine) as session, suppress(ZeroDivisionError), session.begin():
                for key in sorted(random.sample(range(10, 20), 2)):
                    session.get_one(Row, key, with_for_update=True).price = Decimal(random.randrange(10**6)) / 100
                    session.flush()
                    time.sleep(random.random() / 100)
                if random.random() < 0.2:
                    raise ZeroDivisionError

    with Session(engine) as session, session.begin():
        session.add_all([row(id=key) for key in range(10, 20)])
    broker.start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(change_some, range(8)))
    with engine.connect() as connection:
        expected = {key: list(range(2, version + 1)) for key, version in connection.execute(sa.select(Row.id, Row.version).where(Row.id >= 10))}
    eventually(lambda: versions == {key: numbers for key, numbers in expected.items() if numbers})
    broker.stop()
    broker.uninstall()
    engine.dispose()


def test_in_a_pipeline(stage_of: Callable[..., Stage]) -> None:
    """psycopg does not know the number of rows then."""
    stage = stage_of()
    with stage.engine.begin() as connection:
        driver: Any = connection.connection.driver_connection
        with driver.pipeline():
            connection.execute(no_key.insert(), {"n": 1})
            connection.execute(no_key.insert(), {"n": 2})
    assert len(keys(stage)) == 2


def test_a_schema_that_nobody_may_look_into(stage_of: Callable[..., Stage]) -> None:
    """The error is the statement's own, and says what is missing."""
    stage = stage_of()
    closed = sa.Table("closed", sa.MetaData(), sa.Column("n", sa.Integer), schema="shut")
    with stage.engine.begin() as connection:
        for sql in ("CREATE SCHEMA shut", "CREATE TABLE shut.closed (n int)", "DROP ROLE IF EXISTS shut_out", "CREATE ROLE shut_out"):
            connection.exec_driver_sql(sql)
    with pytest.raises(sa.exc.ProgrammingError, match="permission denied for schema shut"), stage.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL ROLE shut_out")
        connection.execute(closed.insert(), {"n": 1})

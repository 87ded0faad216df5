"""PostgreSQL: set-based statements that write their events themselves write those that Python would have written."""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from functools import partial
from typing import Any, ClassVar

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from sqla_events import CaptureError, event_context, install_crud_hooks, triggers
from sqla_events.capture import within as within_module
from sqla_events.capture.frame import ROWS
from sqla_events.capture.within import Writer
from tests.capture.conftest import Stage
from tests.capture.model import Base, Color, Item, Parent, Pet, Seat, Tag, no_key
from tests.capture.test_write_paths import full

STRANGE = 'Straße: 100% "{o\'clock}" */ --$1'

Write = Callable[[sa.Connection], Any]


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few rows, too."""
    monkeypatch.setattr(within_module, "FEW", 0)


class Lower(enum.Enum):
    red = "r"
    blue = "b%'"


metadata = sa.MetaData()
kinds = sa.Table(
    "kinds", metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("small", sa.SmallInteger),
    sa.Column("large", sa.BigInteger),
    sa.Column("word", sa.CHAR(5)),
    sa.Column("words", sa.Text),
    sa.Column("choice", sa.Enum("a", "b", name="choice")),
    sa.Column("color", sa.Enum(Lower, values_callable=lambda kind: [member.value for member in kind], name="lower_color")),
    sa.Column("name", sa.Enum(Color, native_enum=False)),
    sa.Column("yes", sa.Boolean),
    sa.Column("price", sa.Numeric),
    sa.Column("ratio", sa.Float),
    sa.Column("double", sa.Double),
    sa.Column("single", sa.REAL),
    sa.Column("day", sa.Date),
    sa.Column("clock", sa.Time),
    sa.Column("made", sa.DateTime),
    sa.Column("at", sa.DateTime(timezone=True)),
    sa.Column("naive", sa.DateTime),
    sa.Column("span", sa.Interval),
    sa.Column("ref", sa.Uuid),
    sa.Column("text_ref", sa.Uuid(as_uuid=False)),
    sa.Column("blob", sa.LargeBinary),
    sa.Column("doc", postgresql.JSONB),
    sa.Column("raw", sa.JSON(none_as_null=True)),
    sa.Column("secret", sa.JSON, info={"sqla_events": "redact"}),
    sa.Column("gone", sa.Text, info={"sqla_events": "exclude"}),
    sa.Column("b%s:c~/*", sa.Text, key="other"),
    sa.Column("double_id", sa.Integer, sa.Computed("id * 2", persisted=True)),
)  # fmt: skip
odd = sa.Table(
    "odd", metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("numbers", postgresql.ARRAY(sa.Integer)),
    sa.Column("prices", postgresql.ARRAY(sa.Numeric)),
    sa.Column("span", postgresql.INT4RANGE),
    sa.Column("host", postgresql.INET),
    sa.Column("net", postgresql.CIDR),
    sa.Column("guess", sa.Numeric(asdecimal=False)),
)  # fmt: skip
strange = sa.Table(
    STRANGE, metadata,
    sa.Column("ключ", sa.Integer, primary_key=True),
    sa.Column("b%s:c", sa.String, primary_key=True),
    sa.Column("it's {0}", sa.String),
)  # fmt: skip
days = sa.Table("days", metadata, sa.Column("day", sa.Date, primary_key=True))
stamps = sa.Table("stamps", metadata, sa.Column("at", sa.Numeric(12, 9), primary_key=True, autoincrement=False), sa.Column("n", sa.Integer))
letters = sa.Table("letters", metadata, sa.Column("a", sa.Text, primary_key=True), sa.Column("b", sa.Text, primary_key=True))

LETTERS = "".join(map(chr, range(1, 128))) + "\x80\xa0é\u2028\ufeff\uffff😀"

ROWS_OF_KINDS = """
(1, -5, 9223372036854775807, 'ab', '{letters}', 'a', 'r', 'RED', true, 1.10, 2.0, 1e16, 0.1, '2026-01-02', '03:04:05.5', '2026-01-02 03:04:05',
 '2026-07-02 03:04:05.000001+02', now(), '1 day 2.5 seconds', '00000000-0000-4000-8000-000000000001', '00000000-0000-4000-8000-000000000001',
 '\\x00ff', '{{"a": [1.50, null, "é\\u0001"]}}', ' {{"b" : 1e2}}', '{{}}', 'x', 'y'),
(2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
 NULL),
(3, 0, -1, '', '', 'b', 'b%''', 'BLUE', false, 'NaN', 'NaN', '-Infinity', 'Infinity', '0001-01-01', '00:00', '0001-01-01', '1800-01-01 00:00+00',
 '1970-01-01 00:00+00', '-1 year -2 mons 3 days -04:05:06.7', '00000000-0000-4000-8000-000000000001', NULL, '', 'null', ' null ', 'null', NULL, ''),
(4, 1, 1, 'abcde', 'z', 'a', 'r', 'RED', true, 0.0000000100, '-0', 1e-7, 123456.7, '9999-12-31', '23:59:59.999999', '9999-12-31 23:59:59.999999',
 '2026-01-01 00:00+00', NULL, '0', NULL, NULL, NULL, '{huge}', '[1e400, -1E-400, "\\ud83d\\ude00", "\\uD83D\\uDE00"]', '"null"', NULL, NULL),
(5, 1, 1, 'a', 'z', 'a', 'r', 'RED', true, 100000000000000000000.000, 123456789012345680000, 0.1, 1e6, '2026-01-01', '01:00', '2026-01-01',
 '2026-01-01 00:00+00', NULL, '25:00:00', NULL, NULL, NULL, '"a"', '1', 'true', NULL, NULL),
(6, 1, 1, 'a', 'z', 'a', 'r', 'RED', true, 0.00000000, 1.5, -2, 1.5, NULL, NULL, NULL, NULL, NULL, '-0.000001 seconds', NULL, NULL, NULL, '1', '2', '3',
 NULL, NULL)
""".format(letters=LETTERS.replace("'", "''").replace("\\", "\\"), huge="[" + "1" * 310 + ".5]")


def fill(connection: sa.Connection) -> None:
    raw = connection.execution_options(no_parameters=True)
    raw.exec_driver_sql(_insert())
    raw.exec_driver_sql(
        "INSERT INTO odd VALUES (1, '{1,NULL}', '{1.10,2}', '[1,5)', '10.0.0.1/8', '10.0.0.0/8', 1.5), (2, '{}', NULL, 'empty', '::ffff:1.2.3.4', NULL, 'NaN')"
    )
    connection.execute(strange.insert(), [{"ключ": 1, "b%s:c": "k'%", "it's {0}": "{1} %(a)s"}, {"ключ": 2, "b%s:c": '"\\', "it's {0}": None}])
    connection.execute(days.insert(), [{"day": dt.date(2026, 1, 1)}, {"day": dt.date(2026, 1, 3)}])
    connection.execute(stamps.insert(), [{"at": at, "n": 1} for at in (Decimal("0.0000001"), Decimal(0), Decimal("1.5"), Decimal("-0.00000012"))])
    connection.execute(letters.insert(), [{"a": LETTERS, "b": "\x01\x7f"}, {"a": "true", "b": "null"}])


def _insert() -> str:
    columns = ", ".join('"' + column.name.replace('"', '""') + '"' for column in kinds.columns if column.name != "double_id")
    return f"INSERT INTO kinds ({columns}) VALUES {ROWS_OF_KINDS}"


def _copy(table: sa.Table) -> Any:
    """All rows once more, under other keys."""
    columns = [column for column in table.columns if column.computed is None]
    return table.insert().from_select(columns, sa.select(*(column + 100 if column.name == "id" else column for column in columns)))


STATEMENTS: dict[str, Write] = {
    "update": lambda c: c.execute(kinds.update().values(words="new", small=kinds.c.small + 1, price=kinds.c.price, doc=kinds.c.doc, raw=kinds.c.raw)),
    "update_all": lambda c: c.execute(kinds.update().values({column: column for column in kinds.columns if column.name not in ("id", "double_id")})),
    "update_of_nothing": lambda c: c.execute(kinds.update().where(kinds.c.id > 99).values(words="new")),
    "update_key": lambda c: c.execute(letters.update().values(b=letters.c.b + "x")),
    "update_moving_in_doubt": lambda c: c.execute(days.update().values(day=days.c.day + 1)),
    "update_decimal_moving": lambda c: c.execute(stamps.update().values(at=stamps.c.at + 1)),
    "update_aliased": lambda c: c.execute(sa.update(a := kinds.alias("a%b")).where(a.c.id < 3).values(other="%")),
    "update_from": lambda c: c.execute(kinds.update().where(kinds.c.id == odd.c.id).values(words=sa.cast(odd.c.net, sa.Text))),
    "update_excluded": lambda c: c.execute(kinds.update().values(gone="1", secret={"a": 1})),
    "update_decimal_key": lambda c: c.execute(stamps.update().values(n=2)),
    "update_odd": lambda c: c.execute(odd.update().values(numbers=[3], host=odd.c.host)),
    "update_strange": lambda c: c.execute(strange.update().values({"it's {0}": "{2} %s"})),
    "delete": lambda c: c.execute(kinds.delete()),
    "delete_some": lambda c: c.execute(kinds.delete().where(kinds.c.id.in_([1, 2, 9]))),
    "delete_using": lambda c: c.execute(kinds.delete().where(kinds.c.id == odd.c.id)),
    "delete_odd": lambda c: c.execute(odd.delete()),
    "delete_strange": lambda c: c.execute(strange.delete()),
    "delete_letters": lambda c: c.execute(letters.delete()),
    "from_select": lambda c: c.execute(_copy(kinds).inline()),
    "from_select_odd": lambda c: c.execute(_copy(odd).inline()),
    "multi_values": lambda c: c.execute(letters.insert().values([{"a": "1%", "b": "{x}"}, {"a": "2", "b": "y"}])),
    "do_nothing": lambda c: c.execute(
        postgresql.insert(letters).values([{"a": "true", "b": "null"}, {"a": "2", "b": "y"}]).on_conflict_do_nothing()
    ),
    "orm_update": lambda c: Session(c).execute(sa.update(Item).values(label="b", ratio=Item.ratio * 2)),
    "orm_delete": lambda c: Session(c).execute(sa.delete(Item).where(Item.id > 1), execution_options={"synchronize_session": False}),
    "orm_subclass": lambda c: Session(c).execute(sa.update(Pet).values(name="x")),
    "composite_key": lambda c: Session(c).execute(sa.update(Seat).values(guest="\x01\n")),
    "no_key": lambda c: c.execute(no_key.update().values(b=no_key.c.b + "%")),
    "no_key_delete": lambda c: c.execute(no_key.delete()),
}  # fmt: skip

_RAW = "SELECT source, type, schema, entity, operation, key, payload::text, types::text, metadata::text, user_id, session_id, instance_id, schema_version FROM events ORDER BY seq"


def raw_events(connection: sa.Connection) -> list[dict[str, Any]]:
    """As they stand in the log; JSON by value."""
    found = []
    for row in connection.exec_driver_sql(_RAW).mappings():
        one = dict(row)
        for name in ("payload", "types", "metadata"):
            one[name] = None if one[name] is None else msgspec.json.decode(one[name])
        found.append(one)
    return found


Outcome = tuple[list[dict[str, Any]], bool, int]
"""Events; whether the statement wrote them itself; how many rows it says that it has written."""


ABOUT = {"user_id": 7, "session_id": "s", "day": dt.date(2026, 1, 1), "it": "100%"}


def outcome(
    connection: sa.Connection, engine: Any, write: Write, zone: str = "UTC", about: dict[str, Any] = ABOUT, **capture: Any
) -> Outcome:
    broker, seen = install_crud_hooks(engine, {"capture": capture}), []
    listener = lambda *given: seen.append(given[2])  # noqa: E731
    sa.event.listen(connection.engine, "before_cursor_execute", listener)
    try:
        with event_context(**about):
            connection.exec_driver_sql(f"SET LOCAL TimeZone = '{zone}'")
            rows = write(connection.execution_options(preserve_rowcount=True)).rowcount
            broker._capture.drain(connection)
            return raw_events(connection), any(ROWS in sql for sql in seen), rows
    finally:
        connection.rollback()
        sa.event.remove(connection.engine, "before_cursor_execute", listener)
        broker.uninstall()


def same(by_itself: list[dict[str, Any]], by_python: list[dict[str, Any]]) -> None:
    for mine, theirs in zip(in_order(by_itself), in_order(by_python), strict=True):
        assert differing(mine, theirs) == []


class Bench:
    """A statement, run in both ways from the same rows."""

    def __init__(self, url: str) -> None:
        self.engine = sa.create_engine(url)
        metadata.create_all(self.engine)
        Base.metadata.create_all(self.engine)
        with self.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE kinds ALTER COLUMN naive TYPE timestamptz")
            fill(connection)
            with Session(connection) as session:
                session.add_all([full(id=1), Item(id=2), Item(id=3, doc=None, raw=None), Item(id=4, raw=sa.JSON.NULL)])
                session.add_all([Seat(row="Ä", number=1), Seat(row='"\\', number=2, guest="\x01\n"), Pet(id=1, kind="pet", name="p")])
                session.flush()
            connection.execute(no_key.insert(), [{"a": 1, "b": "x"}, {"a": 2, "b": None}])

    @property
    def tells_old(self) -> bool:
        return (self.engine.dialect.server_version_info or ()) >= (18,)

    def both(self, write: Write, monkeypatch: pytest.MonkeyPatch, **capture: Any) -> tuple[list[dict[str, Any]], bool]:
        """The events, which are the same in both ways, and whether the statement wrote them itself."""
        by_python, _, rows = self.run(write, monkeypatch, python=True, **capture)
        by_itself, within, same_rows = self.run(write, monkeypatch, **capture)
        assert rows == same_rows
        same(by_itself, by_python)
        return by_itself, within

    def run(self, write: Write, monkeypatch: pytest.MonkeyPatch, *, python: bool = False, **options: Any) -> Outcome:
        with monkeypatch.context() as patch:
            if python:
                patch.setattr(Writer, "may", lambda *_: False)
            with self.engine.connect() as connection:
                return outcome(connection, self.engine, write, **options)


def differing(one: Any, other: Any, where: str = "") -> list[Any]:
    if isinstance(one, dict) and isinstance(other, dict):
        return [found for name in one.keys() | other.keys() for found in differing(one.get(name, ...), other.get(name, ...), f"{where}/{name}")]
    return [] if repr(one) == repr(other) else [(where, one, other)]


def in_order(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By key: of one statement, rows that are in doubt come last."""
    return sorted(events, key=lambda one: repr((one["key"], one["payload"])))


@pytest.fixture
def bench(postgres_url: str) -> Iterator[Bench]:
    made = Bench(postgres_url)
    yield made
    made.engine.dispose()


@pytest.mark.parametrize("old_values", ["known", "always", "never"])
def test_the_same_events_as_by_python(bench: Bench, monkeypatch: pytest.MonkeyPatch, old_values: str) -> None:
    """Each statement in both ways, over every kind of column; and which of them are left to Python."""
    left, expected = set(), {"update_odd", "delete_odd", "from_select_odd", "update_moving_in_doubt"}
    if old_values == "never":
        expected.remove("delete_odd")  # whose key is all that they say
    if not bench.tells_old:
        expected |= {"update_key", "no_key"}
        if old_values == "always":
            expected |= {name for name in STATEMENTS if "update" in name} | {"composite_key", "orm_subclass"}
    for name, write in STATEMENTS.items():
        events, within = bench.both(write, monkeypatch, old_values=old_values)
        assert events or name == "update_of_nothing", name
        if not within:
            left.add(name)
    assert left == expected


def test_without_context(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody, and no metadata; with codes in the sidecar and without any."""
    for name in ("update", "update_strange", "update_decimal_key", "delete"):
        events, within = bench.both(STATEMENTS[name], monkeypatch, about={})
        assert within
        assert {(one["metadata"], one["user_id"], one["session_id"]) for one in events} == {(None, None, None)}


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Asia/Kolkata", "America/St_Johns", "<+03>-03", "utc"])
def test_time_zones(bench: Bench, monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    """psycopg's times are in the session's zone, with seconds in its offset long ago; or in UTC where Python has no such zone."""
    _, within = bench.both(STATEMENTS["update_all"], monkeypatch, zone=zone)
    assert within == (zone != "<+03>-03")


@pytest.mark.parametrize("limit", [64, 130, 200, 590, 600, 650, 2000])
def test_payloads_that_are_too_large(bench: Bench, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Truncated to the same, from the same length on."""
    for name in ("update", "update_all", "delete", "update_strange", "delete_letters", "from_select", "orm_delete"):
        _, within = bench.both(STATEMENTS[name], monkeypatch, max_payload_bytes=limit, on_too_large="truncate")
        assert within


def test_a_payload_that_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same error as ever, and nothing is written when the transaction is rolled back, as it has to be."""
    for python in (True, False):
        with pytest.raises(CaptureError, match=r"an event of letters has a payload of \d+ bytes, and max_payload_bytes is 100"):
            bench.run(STATEMENTS["delete_letters"], monkeypatch, python=python, max_payload_bytes=100)
    with bench.engine.connect() as connection:
        assert raw_events(connection) == []


@pytest.mark.parametrize("driver", ["postgresql+asyncpg", "postgresql+psycopg", "postgresql+psycopg?"])
def test_asynchronous_drivers_and_positional_parameters(bench: Bench, monkeypatch: pytest.MonkeyPatch, driver: str) -> None:
    """Every statement once more; what they bind stands beside what we bind, where places have names or numbers."""
    by_driver: dict[str, Any] = {"paramstyle": "format"} if driver.endswith("?") else {}
    engine = create_async_engine(bench.engine.url.set(drivername=driver.rstrip("?")), **by_driver)

    async def run() -> None:
        async with engine.connect() as connection:
            for write in STATEMENTS.values():
                run_it = partial(outcome, engine=engine, write=write)
                by_itself, within, rows = await connection.run_sync(run_it)
                with monkeypatch.context() as patch:
                    patch.setattr(Writer, "may", lambda *_: False)
                    by_python, _, same_rows = await connection.run_sync(run_it)
                same(by_itself, by_python)
                assert rows == same_rows
                assert not (within and by_driver)
        await engine.dispose()

    asyncio.run(run())


def test_values_that_python_does_not_have(bench: Bench) -> None:
    """Infinite times are none of Python's on psycopg, and its greatest and least on asyncpg; only rows with them come back."""
    with bench.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE kinds SET made = 'infinity', at = '-infinity', day = 'infinity' WHERE id = 1")
    update = kinds.update().values(made=kinds.c.made, at=kinds.c.at, day=kinds.c.day)
    engine = create_async_engine(bench.engine.url.set(drivername="postgresql+asyncpg"))

    async def run() -> Outcome:
        async with engine.connect() as connection:
            found = await connection.run_sync(lambda sync: outcome(sync, engine, lambda c: c.execute(update)))
        await engine.dispose()
        return found

    events, within, rows = asyncio.run(run())
    assert (within, rows, events[-1]["key"]) == (True, 6, "1")
    assert events[-1]["payload"]["after"]["made"] == "9999-12-31T23:59:59.999999"
    with pytest.raises(sa.exc.DataError, match="date too large"), bench.engine.connect() as connection:
        outcome(connection, bench.engine, lambda c: c.execute(update))


# Beside other writes ------------------------------------------------------------------------------------------------


@pytest.fixture
def stage(postgres_url: str) -> Iterator[Stage]:
    engine = sa.create_engine(postgres_url)
    Base.metadata.create_all(engine)
    made = Stage(engine, engine)
    yield made
    assert made.broker is not None
    made.broker.uninstall()
    engine.dispose()


def told(stage: Stage) -> list[tuple[str, str, Any]]:
    return [(event.operation, event.key, (event.after or {}).get("name")) for event in stage.events()]


def test_order_counts_and_savepoints(stage: Stage) -> None:
    """After what came before it, before what comes after it; undone with its savepoint; counted for those who wait."""
    stage.hook()
    heard: list[Any] = []
    capture = stage.broker._capture
    committing = capture._committing
    capture._committing = lambda written: heard.append(dict(written.counts)) or committing(written)
    with stage.session() as session, session.begin():
        session.add_all([Tag(id=1, name="a"), Tag(id=2, name="a")])
        session.flush()
        session.execute(sa.update(Tag).values(name="b"))
        session.add(Tag(id=3, name="c"))
        session.flush()
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            session.execute(sa.update(Tag).values(name="lost"))
            raise ZeroDivisionError
        with session.begin_nested():
            session.execute(sa.delete(Tag).where(Tag.id == 1))
    assert told(stage) == [
        ("create", "1", "a"), ("create", "2", "a"), ("update", "1", "b"), ("update", "2", "b"), ("create", "3", "c"), ("delete", "1", None),
    ]  # fmt: skip
    assert heard == [{"public.tags.create": 3, "public.tags.update": 2, "public.tags.delete": 1}]


def test_a_statement_that_fails(stage: Stage) -> None:
    """Its error shows what the caller wrote; after its savepoint everything goes on."""
    stage.hook()
    with stage.session() as session, session.begin():
        session.add(Tag(id=1, name="a"))
        with pytest.raises(sa.exc.DataError) as caught, session.begin_nested():
            session.execute(sa.update(Tag).where(Tag.id == 1).values(name=sa.cast(1 / (Tag.id - 1), sa.String)))
        session.execute(sa.update(Tag).values(name="b"))
    assert "sqla_events" not in str(caught.value)
    assert caught.value.statement.startswith("UPDATE tags")
    assert told(stage) == [("create", "1", "a"), ("update", "1", "b")]


def test_a_log_that_refuses(stage: Stage) -> None:
    """The error that everybody else gets whose events cannot be written."""
    stage.hook()
    with stage.engine.connect() as connection:
        connection.execute(sa.update(Tag).values(name="b"))
        connection.rollback()
        connection.exec_driver_sql("DROP VIEW event_status; ALTER TABLE events RENAME TO other")
        with pytest.raises(CaptureError, match="sqla-events migrate"):
            connection.execute(sa.update(Tag).values(name="b"))
        connection.rollback()


def test_schemas_are_translated(stage: Stage) -> None:
    """What is known of a table in one schema is not taken for that in another."""
    stage.hook()
    with stage.engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA other; CREATE TABLE other.tags (id int PRIMARY KEY, name int)")
        connection.exec_driver_sql("INSERT INTO other.tags VALUES (1, 2); INSERT INTO tags VALUES (1, 'x')")
    for schema in (None, "other", None):
        with stage.engine.connect().execution_options(schema_translate_map={None: schema}) as connection:
            connection.execute(sa.update(Tag).values(name=Tag.name))
            connection.commit()
    assert [(event.type, event.after) for event in stage.events()] == [
        ("public.tags.update", {"name": "x"}), ("other.tags.update", {"name": 2}), ("public.tags.update", {"name": "x"}),
    ]  # fmt: skip


def test_tables_that_cannot_be_written_in_a_with(stage: Stage) -> None:
    """Tables with rules, temporary tables, and another type than the Table says: as ever."""
    stage.hook()
    own = sa.MetaData()
    tables = [sa.Table(name, own, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String)) for name in ("ruled", "passing", "typed", "seen")]
    seen: list[str] = []
    sa.event.listen(stage.engine, "before_cursor_execute", lambda *given: seen.append(given[2]))
    with stage.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE ruled (id int PRIMARY KEY, name text); CREATE RULE also AS ON UPDATE TO ruled DO ALSO NOTIFY x")
        connection.exec_driver_sql("CREATE TEMP TABLE passing (id int PRIMARY KEY, name text); CREATE TABLE typed (id int PRIMARY KEY, name uuid)")
        connection.exec_driver_sql("CREATE TABLE base (id int PRIMARY KEY, name text); CREATE VIEW seen AS SELECT * FROM base")
        ref = uuid.uuid4()
        for name in ("passing", "typed", "base"):
            connection.exec_driver_sql(f"INSERT INTO {name} VALUES (1, '{ref}')")
        for table in tables[1:]:
            connection.execute(table.update().values(name=table.c.name))
    assert not [sql for sql in seen if ROWS in sql]
    assert [event.after["name"] for event in stage.events()] == [str(ref), ref, str(ref)]


def test_a_type_that_changes_under_a_running_process(stage: Stage) -> None:
    """What was known of it is not: Python says it, or the statement fails once and then Python says it."""
    stage.hook()
    own = sa.MetaData()
    moments = sa.Table("moments", own, sa.Column("id", sa.Integer, primary_key=True), sa.Column("at", sa.DateTime), sa.Column("price", sa.Numeric), sa.Column("long", sa.Interval))
    own.create_all(stage.engine)
    change = moments.update().values(at=moments.c.at, price=moments.c.price, long=moments.c.long)
    with stage.engine.begin() as connection:
        connection.execute(moments.insert(), {"id": 1, "at": dt.datetime(2026, 1, 1), "price": 1, "long": dt.timedelta(1)})
        connection.execute(change)
    with stage.engine.begin() as connection:
        connection.exec_driver_sql("SET TimeZone = 'UTC'; ALTER TABLE moments ALTER at TYPE timestamptz")
        connection.execute(change)
        connection.exec_driver_sql("ALTER TABLE moments ALTER price TYPE float")
        connection.execute(change)
        connection.exec_driver_sql("ALTER TABLE moments ALTER long TYPE text")
        with pytest.raises(sa.exc.ProgrammingError), connection.begin_nested():
            connection.execute(change)
        connection.execute(change)
    ats = [event.after["at"].isoformat() for event in stage.events()]
    assert ats == ["2026-01-01T00:00:00"] * 2 + ["2026-01-01T00:00:00+00:00"] * 3


def test_what_is_left_to_python(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that the caller wants, many sets, upserts, CTEs, what foreign keys reach, as many parameters as there can be."""
    stage.hook()
    seen: list[str] = []
    sa.event.listen(stage.engine, "before_cursor_execute", lambda *given: seen.append(given[2]))
    with stage.session() as session, session.begin():
        session.execute(sa.insert(Tag), [{"id": n, "name": "a"} for n in (1, 2)])
        assert session.scalars(sa.update(Tag).values(name="b").returning(Tag.id)).all() == [1, 2]
        session.execute(sa.update(Tag).values(name="c"), execution_options={"synchronize_session": "fetch"})
        session.connection().execute(sa.update(Tag).where(Tag.id == sa.bindparam("n")).values(name="d"), [{"n": 1}, {"n": 2}])
        session.execute(postgresql.insert(Tag).values(id=1, name="e").on_conflict_do_update(index_elements=["id"], set_={"name": "f"}))
        chosen = sa.select(Tag.id).cte("chosen")
        session.execute(sa.update(Tag).where(Tag.id.in_(sa.select(chosen.c.id))).values(name="g"), execution_options={"synchronize_session": False})
        session.execute(sa.delete(Parent))
        monkeypatch.setattr(within_module, "MOST_PARAMETERS", 6)
        session.execute(sa.insert(Seat).values([{"row": "A", "number": number} for number in range(3)]))
    assert not [sql for sql in seen if ROWS in sql]
    assert [event.operation for event in stage.events()] == ["create"] * 2 + ["update"] * 9 + ["create"] * 3


class Level:
    """What SQLAlchemy takes for an enumeration: it has ``__members__``."""

    __members__: ClassVar[dict[str, Level]] = {}

    def __init__(self, name: str) -> None:
        self.name = name
        self.__members__[name] = self


LOW, HIGH = Level("low"), Level("high")


def test_an_enumeration_that_is_none_of_python_s(stage: Stage) -> None:
    """Its events are made in Python."""
    levels = sa.Table("levels", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("level", sa.Enum(Level)))
    stage.create(levels.metadata)
    stage.hook()
    with stage.session() as session, session.begin():
        session.execute(levels.insert().values([{"id": 1, "level": LOW}, {"id": 2, "level": LOW}]))
        assert session.execute(levels.update().values(level=HIGH)).rowcount == 2
    assert [event.after["level"] for event in stage.events()] == [LOW, LOW, HIGH, HIGH]


def test_mode_sync_waits_for_ids(postgres_url: str) -> None:
    """Which only Python has."""
    engine = sa.create_engine(postgres_url)
    Base.metadata.create_all(engine)
    broker = install_crud_hooks(engine, {"mode": "sync"})
    handled: list[str] = []
    broker.subscribe("public.tags.*")(lambda event: handled.append(event.operation))
    broker.start()
    with Session(engine) as session, session.begin():
        session.add(Tag(id=1, name="a"))
        session.flush()
        session.execute(sa.update(Tag).values(name="b"))
    assert handled == ["create", "update"]
    broker.stop()
    broker.uninstall()
    engine.dispose()


def test_triggers_leave_it_to_the_statement(stage: Stage) -> None:
    """It carries the mark."""
    with stage.engine.begin() as connection:
        triggers.create(connection, Tag.__table__)
    stage.hook()
    with stage.session() as session, session.begin():
        session.add(Tag(id=1, name="a"))
        session.flush()
        session.execute(sa.update(Tag).values(name="b"))
        session.execute(sa.text("UPDATE tags SET name = 'c'"))
        session.execute(sa.update(Tag).values(name="d"))
    assert told(stage) == [("create", "1", "a"), ("update", "1", "b"), ("update", "1", "c"), ("update", "1", "d")]


def test_few_rows_go_the_other_way(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement that wrote few rows is Python's until it writes many, for each statement on its own."""
    monkeypatch.setattr(within_module, "FEW", 3)
    stage.hook()
    seen: list[bool] = []
    sa.event.listen(stage.engine, "before_cursor_execute", lambda *given: seen.append(ROWS in given[2]) if "UPDATE" in given[2] else None)
    with stage.engine.begin() as connection:
        connection.execute(sa.insert(Tag), [{"id": n, "name": "a"} for n in range(5)])
        for number in (5, 2, 2, 0, 4, 5):
            assert connection.execute(sa.update(Tag).where(Tag.id < number).values(name="b")).rowcount == number
        connection.execute(sa.update(Tag).values(name="c"))
    assert seen == [True, True, False, False, False, True, True]
    assert sum(event.operation == "update" for event in stage.events()) == 23


def test_the_same_statement_again(stage: Stage) -> None:
    """Prepared by the driver, cached by SQLAlchemy, with and without hooks, with another context and a list of another length."""
    stage.hook()
    with stage.session() as session, session.begin():
        session.add_all([Tag(id=n, name="a") for n in range(10)])
    for number in range(8):
        if number == 6:
            stage.broker.uninstall()
        with event_context(user_id=number), stage.session() as session, session.begin():
            session.execute(sa.update(Tag).where(Tag.id.in_(range(number))).values(name=str(number)))
    updates = [event for event in stage.events() if event.operation == "update"]
    assert [(event.key, event.user_id) for event in updates] == [(str(key), number) for number in range(6) for key in range(number)]


def test_the_order_of_a_row_under_contention(stage: Stage) -> None:
    """Who waits for a row writes its event after the one it waited for, with what that one left."""
    stage.hook()
    counts = sa.Table("counts", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", sa.Integer))
    with stage.engine.begin() as connection:
        counts.create(connection)
        connection.execute(counts.insert(), [{"id": number, "n": 0} for number in range(5)])

    def change(_: int) -> None:
        for number in range(25):
            with stage.engine.begin() as connection:
                connection.execute(counts.update().where(counts.c.id == number % 5).values(n=counts.c.n + 1))
                connection.execute(counts.update().where(counts.c.id >= 4).values(n=counts.c.n + 1))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(change, range(4)))
    for number in range(5):
        mine = [event.after["n"] for event in stage.events("public.counts.update") if event.key == str(number)]
        assert mine == list(range(1, len(mine) + 1))
    assert len(stage.events("public.counts.update")) == 200

"""A machine that drives random sessions on random models through every write path, and compares a replay with the tables.

``make capture-machine EXAMPLES=1000`` runs it for longer, with other examples each time.
"""

from __future__ import annotations

import asyncio
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqla_events import CaptureError, Config, EventError, EventFilter, install_crud_hooks, triggers
from sqla_events.broker import Broker
from sqla_events.capture.make import Maker
from sqla_events.testing import apply, differences
from tests.capture.machine import Shape, key_value, model, pick, shapes

LONG = "EXAMPLES" in os.environ
EXAMPLES = int(os.environ.get("EXAMPLES", "0"))
PHASES = (Phase.generate, Phase.shrink) if LONG else (Phase.generate,)
STEPS = 40 if LONG else 25

numbers = st.integers(0, 7)
labels = st.sampled_from(["a", "b", "ünï☃", "", None])

SEEN: Counter[str] = Counter()


class Machine(RuleBasedStateMachine):
    """One session on one model; its events are applied to a copy at each commit."""

    url: ClassVar[str]
    copy_url: ClassVar[str]
    copy_schema: ClassVar[str | None] = None
    asynchronous: ClassVar[str | None] = None
    old_values: ClassVar[str] = "known"

    @initialize(shape=shapes, with_triggers=st.booleans())
    def begin(self, shape: Shape, with_triggers: bool) -> None:
        self.shape, self.model, self.with_triggers = shape, model(shape), with_triggers
        self.plain = sa.create_engine(self.url)
        self.copy = sa.create_engine(self.copy_url, execution_options={"schema_translate_map": {None: self.copy_schema}})
        for engine in (self.plain, self.copy):
            if engine.dialect.name == "sqlite":
                sa.event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous = OFF"))
        self.loose = sa.MetaData()
        for table in self.model.metadata.sorted_tables:
            columns = (sa.Column(c.name, c.type, c.computed and sa.Computed(c.computed.sqltext), primary_key=c.primary_key) for c in table.c)
            sa.Table(table.name, self.loose, *columns)
        self.model.metadata.create_all(self.plain)
        self.loose.create_all(self.copy)
        with self.plain.begin() as connection:
            self.after = connection.scalar(sa.text("SELECT coalesce(max(seq), 0) FROM events"))
            if with_triggers:
                for table in self.model.metadata.sorted_tables:
                    triggers.create(connection, table)
        self.reader = Broker(Config.load({}), self.plain)
        self._connect()
        self.steps, self.sound = 0, True
        for n in range(4):
            self.add(n, "ab"[n % 2], special=n == 3)
            self.add_leaf(n, 0)
            self.tag(n, 5 * n)

    def _connect(self) -> None:
        url = sa.make_url(self.url).set(drivername=self.asynchronous) if self.asynchronous else self.url
        self.engine = create_async_engine(url) if self.asynchronous else sa.create_engine(url)
        sync = getattr(self.engine, "sync_engine", self.engine)
        if sync.dialect.name == "sqlite":
            _plain_transactions(sync)
        capture = {"old_values": self.old_values, "on_gap": "raise"}
        self.broker = install_crud_hooks(self.engine, {"capture": capture})
        self.runner = asyncio.Runner() if self.asynchronous else None
        self.session = AsyncSession(self.engine) if self.asynchronous else Session(self.engine)

    def teardown(self) -> None:
        if not hasattr(self, "session"):
            return
        try:
            if self.sound:
                self.do(lambda s: s.commit())
                self.check()
        finally:
            self._close()
            self._drop()

    def _close(self) -> None:
        self.broker.uninstall()
        if self.runner is None:
            self.session.close()
            self.engine.dispose()
        else:
            self.runner.run(self.session.close())
            self.runner.run(self.engine.dispose())
            self.runner.close()

    def _drop(self) -> None:
        with self.plain.begin() as connection:
            if self.with_triggers:
                for table in self.model.metadata.sorted_tables:
                    triggers.drop(connection, table)
            self.model.metadata.drop_all(connection)
        self.loose.drop_all(self.copy)
        self.plain.dispose()
        self.copy.dispose()

    # How -------------------------------------------------------------------------------------------------------------

    def do(self, write: Callable[[Session], Any]) -> None:
        """One step; what SQLAlchemy or the database refuses is rolled back, and the session goes on."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sa.exc.SAWarning)
            try:
                self._run(write)
                self.steps += 1
                SEEN["steps"] += 1
            except (sa.exc.SQLAlchemyError, AssertionError) as error:
                SEEN[f"refused: {type(error).__name__}"] += 1
                self._run(lambda s: s.rollback())
            except CaptureError as error:  # the one gap that there is, reported
                if "a change of several keys at once" not in str(error):
                    raise
                self._run(lambda s: s.rollback())

    def _run(self, write: Callable[[Session], Any]) -> Any:
        return write(self.session) if self.runner is None else self.runner.run(self.session.run_sync(write))

    def with_one(self, entity: Any, number: int, write: Callable[[Session, Any], Any]) -> None:
        def step(session: Session) -> None:
            found = pick(session, entity, number)
            if found is not None:
                write(session, found)

        self.do(step)

    def check(self) -> None:
        events = self.reader.list(EventFilter(after=self.after, limit=1_000_000))
        SEEN["events"] += len(events)
        SEEN["commits"] += 1
        self.sound = False
        with self.plain.connect() as source, self.copy.begin() as copy:
            apply(copy, self.loose, events)
            found = differences(source, copy, self.loose)
            SEEN["rows compared"] += sum(source.scalar(sa.select(sa.func.count()).select_from(table)) for table in self.loose.sorted_tables)
        SEEN["differences"] += len(found)
        assert found == []
        self.sound = True
        self.after = max([self.after, *(event.seq for event in events)])

    # Transactions ------------------------------------------------------------------------------------------------------

    @rule()
    def commit(self) -> None:
        self.do(lambda s: s.commit())
        self.check()

    @rule()
    def rollback(self) -> None:
        self.do(lambda s: s.rollback())

    @rule()
    def flush(self) -> None:
        self.do(lambda s: s.flush())

    @rule()
    def expire(self) -> None:
        self.do(lambda s: s.expire_all())

    @rule(keep=st.booleans(), n=numbers, label=labels)
    def savepoint(self, keep: bool, n: int, label: str | None) -> None:
        def step(s: Session) -> None:
            nested = s.begin_nested()
            node = pick(s, self.model.Node, n)
            if node is not None:
                node.label = label
            s.add(self.model.Tag(name="nested"))
            s.flush()
            with s.begin_nested():
                s.execute(sa.update(self.model.Leaf).values(note=label))
            nested.commit() if keep else nested.rollback()

        self.do(step)

    @rule()
    def fails_in_a_savepoint(self) -> None:
        def step(s: Session) -> None:
            try:
                with s.begin_nested():
                    s.execute(self.model.tags.insert(), [{"id": 500, "name": "twice"}, {"id": 500, "name": "twice"}])
            except sa.exc.IntegrityError:
                SEEN["savepoints that failed"] += 1

        self.do(step)

    @rule(n=numbers)
    def a_listener_fails(self, n: int) -> None:
        def fail(*_: Any) -> None:
            raise sa.exc.InvalidRequestError("a listener of the user's")

        def step(s: Session) -> None:
            sa.event.listen(self.model.Tag, "after_insert", fail)
            try:
                s.add(self.model.Tag(name="never"))
                s.flush()
            finally:
                sa.event.remove(self.model.Tag, "after_insert", fail)

        self.do(step)

    # Unit of work --------------------------------------------------------------------------------------------------------

    @rule(n=numbers, label=labels, special=st.booleans())
    def add(self, n: int, label: str | None, special: bool) -> None:
        entity = self.model.Special if special else self.model.Node
        values = {"id": n} if special and self.shape.inheritance in {"none", "concrete"} else key_value(self.shape, n)
        self.do(lambda s: s.add(_made(entity, label=label, **values)))

    @rule(n=numbers, label=labels)
    def add_with_an_expression(self, n: int, label: str | None) -> None:
        self.do(lambda s: s.add(_made(self.model.Node, amount=sa.text("1 + 4"), label=label, price=Decimal("1.5"), **key_value(self.shape, n))))

    @rule(n=numbers, label=labels, amount=numbers)
    def change(self, n: int, label: str | None, amount: int) -> None:
        self.with_one(self.model.Node, n, lambda s, one: _set(one, label=label, amount=amount, loud=label))

    @rule(n=numbers)
    def change_by_an_expression(self, n: int) -> None:
        self.with_one(self.model.Node, n, lambda s, one: _set(one, amount=self.model.nodes.c.amount + 1))

    @rule(n=numbers, amount=numbers)
    def change_in_place(self, n: int, amount: int) -> None:
        self.with_one(self.model.Node, n, lambda s, one: one.doc.update(more=amount) if one.doc else _set(one, doc={"x": [amount, None]}))

    @rule(n=numbers, m=numbers)
    def change_the_key(self, n: int, m: int) -> None:
        self.with_one(self.model.Node, n, lambda s, one: _set(one, **key_value(self.shape, m)))

    @rule(n=numbers)
    def delete(self, n: int) -> None:
        self.with_one(self.model.Node, n, lambda s, one: s.delete(one))

    @rule(n=numbers)
    def row_switch(self, n: int) -> None:
        def switch(s: Session, one: Any) -> None:
            key = {name: getattr(one, name) for name in key_value(self.shape, 0)}
            s.delete(one)
            s.add(_made(self.model.Node, label="switched", **key))

        self.with_one(self.model.Node, n, switch)

    @rule(n=numbers, label=labels)
    def merge(self, n: int, label: str | None) -> None:
        self.do(lambda s: s.merge(_made(self.model.Node, label=label, **key_value(self.shape, n))))

    @rule(n=numbers, m=numbers)
    def add_leaf(self, n: int, m: int) -> None:
        def step(s: Session, one: Any) -> None:
            one.leaves.append(_made(self.model.Leaf, note="leaf"))
            s.flush()
            one.leaves[-1].above_id = getattr(pick(s, self.model.Leaf, m), "id", None)

        self.with_one(self.model.Node, n, step)

    @rule(n=numbers)
    def remove_leaf(self, n: int) -> None:
        self.with_one(self.model.Node, n, lambda s, one: one.leaves.pop() if one.leaves else None)

    @rule(n=numbers, m=numbers)
    def move_leaf(self, n: int, m: int) -> None:
        self.with_one(self.model.Leaf, n, lambda s, one: _set(one, node=pick(s, self.model.Node, m)))

    @rule(n=numbers, m=numbers)
    def tag(self, n: int, m: int) -> None:
        def step(s: Session, one: Any) -> None:
            found = pick(s, self.model.Tag, m) or self.model.Tag()
            one.tags.remove(found) if found in one.tags else one.tags.append(found)

        self.with_one(self.model.Node, n, step)

    @rule(n=numbers)
    def delete_tag(self, n: int) -> None:
        self.with_one(self.model.Tag, n, lambda s, one: s.delete(one))

    # Bulk ----------------------------------------------------------------------------------------------------------------

    @rule(n=numbers, label=labels, how=st.sampled_from(["objects", "mappings", "insert", "returning", "one", "values"]))
    def insert_in_bulk(self, n: int, label: str | None, how: str) -> None:
        rows = [{"label": label, "amount": m, **key_value(self.shape, n + 10 * m)} for m in (1, 2, 3)]
        entity = self.model.Node
        ways: dict[str, Callable[[Session], Any]] = {
            "objects": lambda s: s.bulk_save_objects([_made(entity, **row) for row in rows]),
            "mappings": lambda s: s.bulk_insert_mappings(entity, rows),
            "insert": lambda s: s.execute(sa.insert(entity), rows),
            "returning": lambda s: s.scalars(sa.insert(entity).returning(entity), rows).all(),
            "one": lambda s: s.execute(sa.insert(entity).values(rows[0])),
            "values": lambda s: s.execute(sa.insert(self.model.tags).values([{"name": "x"}, {"name": "y"}])),
        }
        self.do(lambda s: None if self.shape.version and how != "objects" else ways[how](s))

    @rule(how=st.sampled_from(["mappings", "update", "leaves"]), label=labels)
    def update_in_bulk(self, how: str, label: str | None) -> None:
        def step(s: Session) -> None:
            names = list(key_value(self.shape, 0))
            keys = s.execute(sa.select(*(self.model.nodes.c[name] for name in names))).mappings().all()
            rows = [{**key, "label": label} for key in keys]
            if how == "leaves":
                ids = s.scalars(sa.select(self.model.leaves.c.id)).all()
                if ids:
                    s.execute(sa.update(self.model.Leaf), [{"id": one, "note": label} for one in ids])
            elif rows and not self.shape.version:
                s.bulk_update_mappings(self.model.Node, rows) if how == "mappings" else s.execute(sa.update(self.model.Node), rows)

        self.do(step)

    @rule(amount=numbers, mode=st.sampled_from(["auto", "evaluate", "fetch", False]), returning=st.booleans())
    def update_where(self, amount: int, mode: Any, returning: bool) -> None:
        node = self.model.Node
        statement = sa.update(node).where(node.amount >= amount).values(amount=node.amount + 1)
        statement = statement.returning(node.label) if returning else statement
        self.do(lambda s: s.execute(statement, execution_options={"synchronize_session": mode}).close())

    @rule(amount=numbers, mode=st.sampled_from(["auto", "evaluate", "fetch", False]), returning=st.booleans())
    def delete_where(self, amount: int, mode: Any, returning: bool) -> None:
        node = self.model.Node
        statement = sa.delete(node).where(node.amount == amount)
        statement = statement.returning(node.label) if returning else statement
        self.do(lambda s: s.execute(statement, execution_options={"synchronize_session": mode}).close())

    @rule(label=labels)
    def by_query(self, label: str | None) -> None:
        def step(s: Session) -> None:
            s.query(self.model.Leaf).filter(self.model.Leaf.note == "leaf").update({"note": label})
            s.query(self.model.Tag).filter(self.model.Tag.id > 5).delete()

        self.do(step)

    @rule(n=numbers, m=numbers)
    def core_with_many_sets(self, n: int, m: int) -> None:
        nodes, leaves = self.model.nodes, self.model.leaves

        def step(s: Session) -> None:
            where = nodes.c.amount == sa.bindparam("which")
            s.execute(nodes.update().where(where).values(lbl=sa.bindparam("new")), [{"which": n, "new": "n"}, {"which": m, "new": "m"}])
            s.execute(leaves.delete().where(leaves.c.id == sa.bindparam("which")), [{"which": n}, {"which": 900}])
            s.execute(nodes.delete().where(where), [{"which": n}, {"which": m}])

        self.do(step)

    @rule(n=numbers, m=numbers)
    def core_key_change(self, n: int, m: int) -> None:
        old, new = key_value(self.shape, n), key_value(self.shape, m)
        where = [self.model.nodes.c[name] == value for name, value in old.items()]
        self.do(lambda s: s.execute(self.model.nodes.update().where(*where).values(new)))

    @rule()
    def from_select(self) -> None:
        self.do(lambda s: s.execute(sa.insert(self.model.tags).from_select(["name"], sa.select(self.model.leaves.c.note))))

    @rule(n=numbers, m=numbers, nothing=st.booleans(), returning=st.booleans())
    def upsert(self, n: int, m: int, nothing: bool, returning: bool) -> None:
        tags = self.model.tags

        def step(s: Session) -> None:
            make: Any = postgresql.insert if s.get_bind().dialect.name == "postgresql" else sqlite.insert
            insert = make(tags).values([{"id": n, "name": "up"}, {"id": n + m + 1, "name": "up"}])
            done = insert.on_conflict_do_nothing() if nothing else insert.on_conflict_do_update(index_elements=["id"], set_={"name": insert.excluded.name})
            s.execute(done.returning(tags.c.id) if returning else done).close()

        self.do(step)

    @rule(n=numbers)
    def links_by_core(self, n: int) -> None:
        def step(s: Session) -> None:
            links = self.model.links
            s.execute(links.update().where(links.c.tag_id == n).values(tag_id=n + 1))
            s.execute(links.delete().where(links.c.tag_id == n))

        self.do(lambda s: step(s) if self.shape.tags == "keyed" else None)

    @rule(n=numbers, label=labels)
    def lambdas_and_statements_inside(self, n: int, label: str | None) -> None:
        leaf, tag = self.model.Leaf, self.model.Tag

        def step(s: Session) -> None:
            s.execute(sa.update(leaf).where(lambda: leaf.note == label).values(note="λ"))
            s.scalars(sa.select(tag).from_statement(sa.insert(tag).values(name=label).returning(tag))).all()

        self.do(step)

    @rule(n=numbers)
    def text(self, n: int) -> None:
        def step(s: Session) -> None:
            s.execute(sa.text("UPDATE leaves SET note = 'text' WHERE id > :n"), {"n": n})
            s.execute(sa.text("DELETE FROM tags WHERE id = :n"), {"n": n})
            s.execute(sa.text("INSERT INTO tags (name) VALUES ('text')"))

        if self.with_triggers:
            self.do(step)

    @invariant()
    def is_kept_now_and_then(self) -> None:
        """Whatever the machine likes: an error must not undo everything that came before it."""
        if getattr(self, "steps", 0) >= 5:
            self.commit()
            self.steps = 0


def _made(entity: Any, **values: Any) -> Any:
    made = entity()
    return _set(made, **values)


def _set(one: Any, **values: Any) -> Any:
    for name, value in values.items():
        setattr(one, name, value)
    return one


def _plain_transactions(engine: sa.Engine) -> None:
    """Foreign keys, and BEGIN where SQLAlchemy begins, as its documentation says for savepoints on SQLite."""

    @sa.event.listens_for(engine, "connect")
    def connect(raw: Any, _: Any) -> None:
        raw.isolation_level = None
        cursor = raw.cursor()
        for pragma in ("foreign_keys = ON", "synchronous = OFF"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")


def run(url: str, copy_url: str, examples: int, **how: Any) -> None:
    machine = type("Machine", (Machine,), {"url": url, "copy_url": copy_url, **how})
    profile = settings(
        max_examples=EXAMPLES or examples, stateful_step_count=STEPS, deadline=None, derandomize=not LONG, database=None,
        phases=PHASES, suppress_health_check=list(HealthCheck), print_blob=True, report_multiple_bugs=False,
    )  # fmt: skip
    run_state_machine_as_test(machine, settings=profile)


@pytest.fixture(autouse=True, scope="module")
def table_of_what_was_seen() -> Iterator[None]:
    """Printed by ``make capture-machine`` (-s)."""
    yield
    sys.stdout.write("\n" + "\n".join(f"{name:40} {count:>10,}" for name, count in sorted(SEEN.items())) + "\n")


SQLITE = [(None, "known"), (None, "always"), ("sqlite+aiosqlite", "known")]
POSTGRESQL = [(None, "known"), (None, "always"), ("postgresql+asyncpg", "known"), ("postgresql+psycopg", "always")]


@pytest.mark.timeout(0)
@pytest.mark.parametrize(("driver", "old_values"), SQLITE)
def test_sqlite(sqlite_url: str, tmp_path: Path, driver: str | None, old_values: str) -> None:
    """Replay equivalence at each commit."""
    run(sqlite_url, f"sqlite:///{tmp_path / 'copy.db'}", 8, asynchronous=driver, old_values=old_values)


@pytest.mark.timeout(0)
@pytest.mark.parametrize(("driver", "old_values"), POSTGRESQL)
def test_postgresql(postgres_url: str, driver: str | None, old_values: str) -> None:
    """The same there, into a schema of its own."""
    engine = sa.create_engine(postgres_url)
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema("copy"))
    engine.dispose()
    run(postgres_url, postgres_url, 3, copy_schema="copy", asynchronous=driver, old_values=old_values)


def lose(monkeypatch: pytest.MonkeyPatch, table: str, verb: str, column: str | None) -> None:
    """Have capture forget one kind of event, or one column of it."""
    events, event = Maker.events, Maker.event

    def kept(plan: Any, row: Any) -> bool:
        if plan.table.name != table:
            return True
        if column is not None:
            (row.after or {}).pop(column, None)
        return column is not None or (row.verb or plan.verb) != verb

    def some(self: Maker, connection: Any, plan: Any, rows: Any) -> list[Any]:
        return events(self, connection, plan, [row for row in rows if kept(plan, row)])

    def one(self: Maker, connection: Any, plan: Any, row: Any) -> Any:
        return event(self, connection, plan, row) if kept(plan, row) else None

    monkeypatch.setattr(Maker, "events", some)
    monkeypatch.setattr(Maker, "event", one)


@pytest.mark.timeout(0)
@pytest.mark.parametrize("lost", [("leaves", "update", None), ("links", "create", None), ("nodes", "create", "state"), ("apart", "create", None)])
def test_it_notices_what_is_lost(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: tuple[str, str, str | None]) -> None:
    """What is proved above can be proved wrong."""
    before = SEEN.copy()
    lose(monkeypatch, *lost)
    with pytest.raises((AssertionError, EventError), match=r"only in the|matches 0 rows"):
        run(sqlite_url, f"sqlite:///{tmp_path / 'copy.db'}", 8)
    SEEN.clear()
    SEEN.update(before)

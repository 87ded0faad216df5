"""The ways of keeping events of what a session writes, each in a process and on a database of its own.

``none``               nothing but the application's changes
``hand_written``       what a careful team writes: after ``session.flush()`` one Core ``insert()`` of one row per change
                       into the same events table, payload by ``json.dumps``
``capture``            ours
``statement_triggers`` PL/pgSQL triggers FOR EACH STATEMENT with transition tables, into the same events table
``row_triggers``       the same FOR EACH ROW
``postgresql_audit``   PostgreSQL-Audit, as its documentation sets it up (statement triggers, JSONB)
``continuum``          SQLAlchemy-Continuum, as its documentation sets it up

Started by capture.py, which tells it what to run, a line at a time, and reads the seconds that it took.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import statistics
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Session

from benchmarks import model
from sqla_events import install_crud_hooks
from sqla_events.alembic import upgrade
from sqla_events.schema import Tables

EVENTS = Tables().events
COLUMNS = tuple(model.values(0))
PORTION = 10_000


class Way:
    """The application without events."""

    item: Any = model.Item
    metadata = model.Base.metadata
    kept = ""
    """The table of its events."""

    def prepare(self, engine: sa.Engine) -> None:
        """Make the tables, and what else the way needs in the database."""
        self.metadata.create_all(engine)

    def install(self, engine: Any) -> None:
        """Hook in."""

    def change(self, session: Session, operation: str, rows: int) -> list[Any]:
        """Make the changes of one transaction, flush them, return the rows."""
        if operation == "insert":
            items = [self.item(**model.values(number)) for number in range(rows)]
            session.add_all(items)
        else:
            items = list(session.scalars(sa.select(self.item).order_by(self.item.id).limit(rows)))
            for one in items:
                if operation == "update":
                    one.quantity += 1
                    one.note = f"changed {one.quantity}"
                else:
                    session.delete(one)
        session.flush()
        return items

    def work(self, session: Session, operation: str, rows: int) -> None:
        """One transaction."""
        if operation in ("insert", "update", "delete"):
            self.change(session, operation, rows)
        else:
            getattr(self, operation)(session, rows)

    def set_insert(self, session: Session, rows: int) -> None:
        """Many rows in one bulk statement."""
        session.execute(sa.insert(self.item), [model.values(number) for number in range(rows)])

    def set_update(self, session: Session, rows: int) -> None:
        """One statement changes them all."""
        statement = sa.update(self.item).values(quantity=self.item.quantity + 1, note="changed")
        session.execute(statement, execution_options={"synchronize_session": False})

    def set_delete(self, session: Session, rows: int) -> None:
        """One statement removes them all."""
        session.execute(sa.delete(self.item), execution_options={"synchronize_session": False})

    def portions(self, session: Session, rows: int) -> None:
        """One transaction of very many rows, a portion at a time, as an import does it."""
        for start in range(0, rows, PORTION):
            session.execute(sa.insert(self.item), [model.values(number) for number in range(start, start + PORTION)])


class HandWritten(Way):
    """The events of a flush in one Core statement."""

    kept = "events"

    def prepare(self, engine: sa.Engine) -> None:
        upgrade(engine.url.render_as_string(hide_password=False))
        super().prepare(engine)

    def change(self, session: Session, operation: str, rows: int) -> list[Any]:
        verb = {"insert": "create"}.get(operation, operation)
        items = super().change(session, operation, rows)
        session.execute(sa.insert(EVENTS), [_event(one, verb) for one in items])
        return items


def _event(one: Any, verb: str) -> dict[str, Any]:
    if verb == "update":
        body = {
            "key": {"id": one.id},
            "before": {"quantity": one.quantity - 1, "note": None},
            "after": {"quantity": one.quantity, "note": one.note},
        }
    else:
        values = {name: getattr(one, name) for name in COLUMNS}
        body = {"key": {"id": one.id}, ("after" if verb == "create" else "before"): values}
    return {
        "id": uuid.uuid4(),
        "source": "database",
        "type": f"public.items.{verb}",
        "schema": "public",
        "entity": "items",
        "operation": verb,
        "key": str(one.id),
        "payload": json.dumps(body, default=str),
        "instance_id": "bench",
    }


class Captured(HandWritten):
    """Our hooks."""

    change = Way.change

    def install(self, engine: Any) -> None:
        install_crud_hooks(engine, provider="memory")


class Triggers(HandWritten):
    """PL/pgSQL that writes the same events."""

    change = Way.change
    by_row = False

    def prepare(self, engine: sa.Engine) -> None:
        super().prepare(engine)
        with engine.begin() as connection:
            for statement in _triggers(self.by_row):
                connection.exec_driver_sql(statement)


class RowTriggers(Triggers):
    """The same for each row."""

    by_row = True


def _triggers(by_row: bool) -> list[str]:
    statements = []
    for operation, verb in (("INSERT", "create"), ("UPDATE", "update"), ("DELETE", "delete")):
        row = "o" if verb == "delete" else "n"
        changed = ", ".join(f"'{name}', {{}}.{name}" for name in ("quantity", "note"))
        body = {
            "create": "'after', to_jsonb(n)",
            "delete": "'before', to_jsonb(o)",
            "update": f"'before', jsonb_build_object({changed.format(*'oo')}), 'after', jsonb_build_object({changed.format(*'nn')})",
        }[verb]
        select = (
            f"SELECT gen_random_uuid(), 'database', 'public.items.{verb}', 'public', 'items', '{verb}', {row}.id::text, "
            f"jsonb_build_object('key', jsonb_build_object('id', {row}.id), {body})::json, 'trigger'"
        )
        tables = {"create": "n", "delete": "o", "update": "n JOIN o USING (id)"}[verb]
        insert = f"INSERT INTO events (id, source, type, schema, entity, operation, key, payload, instance_id) {select}"
        if by_row:
            insert = insert.replace("(n)", "(NEW)").replace("(o)", "(OLD)").replace(" n.", " NEW.").replace(" o.", " OLD.")
        else:
            insert += f" FROM {tables}"
        statements.append(
            f"CREATE FUNCTION tell_{verb}() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN {insert}; RETURN NULL; END $f$"
        )
        seen = {"create": "NEW TABLE AS n", "delete": "OLD TABLE AS o", "update": "OLD TABLE AS o NEW TABLE AS n"}[verb]
        each = "FOR EACH ROW" if by_row else f"REFERENCING {seen} FOR EACH STATEMENT"
        statements.append(f"CREATE TRIGGER tell AFTER {operation} ON items {each} EXECUTE FUNCTION tell_{verb}()".replace("tell ", f"tell_{verb} ", 1))
    return statements


class Audit(Way):
    """PostgreSQL-Audit."""

    kept = "activity"

    def __init__(self) -> None:
        from postgresql_audit import versioning_manager

        class Base(DeclarativeBase):
            pass

        versioning_manager.init(Base)
        self.item = model.versioned(Base)
        self.metadata = Base.metadata
        sa.orm.configure_mappers()

    def prepare(self, engine: sa.Engine) -> None:
        """Its own tables first: its trigger is made with the function that they bring."""
        items = self.item.__table__
        self.metadata.create_all(engine, tables=[table for table in self.metadata.sorted_tables if table is not items])
        super().prepare(engine)


class Continuum(Way):
    """SQLAlchemy-Continuum."""

    kept = "items_version"

    def __init__(self) -> None:
        from sqlalchemy_continuum import make_versioned

        class Base(DeclarativeBase):
            pass

        make_versioned(user_cls=None)
        self.item = model.versioned(Base)
        self.metadata = Base.metadata
        sa.orm.configure_mappers()


WAYS: dict[str, type[Way]] = {
    "none": Way,
    "hand_written": HandWritten,
    "capture": Captured,
    "statement_triggers": Triggers,
    "row_triggers": RowTriggers,
    "postgresql_audit": Audit,
    "continuum": Continuum,
}


def unsynced(engine: sa.Engine) -> None:
    """A COMMIT that does not wait for the disk: it takes the same time in every way, and hides what differs."""
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        else:
            connection.exec_driver_sql(f"ALTER DATABASE {engine.url.database} SET synchronous_commit = off")


def _relax(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA synchronous = NORMAL")


def runner(way: Way, url: str) -> Callable[[str, int], float]:
    """What runs one transaction and returns its seconds."""
    if not sa.make_url(url).get_dialect().is_async:
        engine = sa.create_engine(url)
        if engine.dialect.name == "sqlite":
            sa.event.listen(engine, "connect", _relax)
        way.install(engine)

        def run(operation: str, rows: int) -> float:
            started = time.perf_counter()
            with Session(engine) as session, session.begin():
                way.work(session, operation, rows)
            return time.perf_counter() - started

        return run
    async_engine, loop = create_async_engine(url), asyncio.new_event_loop()
    way.install(async_engine)

    async def transaction(operation: str, rows: int) -> float:
        started = time.perf_counter()
        async with AsyncSession(async_engine) as session, session.begin():
            await session.run_sync(way.work, operation, rows)
        return time.perf_counter() - started

    return lambda operation, rows: loop.run_until_complete(transaction(operation, rows))


def count(engine: sa.Engine, way: Way) -> int:
    """How many events it has kept."""
    with engine.connect() as connection:
        return int(connection.exec_driver_sql(f"SELECT count(*) FROM {way.kept}").scalar_one()) if way.kept else 0


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(name: str, url: str, sync_url: str) -> None:
    """Obey the lines on standard input: operations, a number of rows, and how often over. Answer: the median seconds of each operation
    (or the count), and the peak memory.
    """
    way = WAYS[name]()
    engine = sa.create_engine(sync_url)
    way.prepare(engine)
    unsynced(engine)
    run = runner(way, url)
    gc.freeze()  # or each collection below looks through all of SQLAlchemy
    print("ready", flush=True)
    for line in sys.stdin:
        operations, rows, times = line.split()
        gc.collect()
        if operations == "count":
            print(count(engine, way), peak(), flush=True)
            continue
        turns = [[run(operation, int(rows)) for operation in operations.split(",")] for _ in range(int(times))]
        print(*map(statistics.median, zip(*turns, strict=True)), peak(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

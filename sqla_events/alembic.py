"""The event tables by Alembic: on their own, or within an application's own history.

On their own: :func:`upgrade` (the command ``sqla-events migrate URL``) runs the migrations that ship with the library
and keeps their version in a table of its own, so the application's ``alembic_version`` is never touched.

In an application's history, importing this module adds three operations, which work online and as a script::

    import sqla_events.alembic

    def upgrade():
        op.create_event_tables()  # events="events", schema=None
        op.partition_event_tables()  # if you want range partitions; PostgreSQL only

    def downgrade():
        op.drop_event_tables()

``alembic revision --autogenerate`` proposes to drop none of it: see autogenerate.py.

Two more make and drop the triggers that capture what SQLAlchemy does not see (triggers/__init__.py)::

    op.create_event_trigger("users")
    op.drop_event_trigger("users")
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.operations import MigrateOperation, Operations
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, Table, text
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from . import triggers
from .bridge import Database, LoopThread, database_url, engine_of, in_memory
from .errors import ConfigError
from .log.check import verify
from .log.ranges import SIZE, partition_sql
from .schema import Names, Tables

Target = str | URL | Engine | AsyncEngine | Connection
"""A database: its URL (of a sync or async driver), an engine, or a connection, whose transaction is then used and left
open. In async code: ``await connection.run_sync(sqla_events.alembic.upgrade)``.
"""

_one_at_a_time = threading.RLock()  # Alembic's environment is a global of the process


def upgrade(target: Target, names: Names | None = None) -> None:
    """Create the event tables, or bring them up to this library's revision; does nothing where they are.

    One transaction; two deployments that do it at the same time take turns. A ``names.schema`` that does not exist is
    created.

    :raises ConfigError: for a database that is neither PostgreSQL nor SQLite, or a schema on SQLite.
    """
    _run(target, lambda config: command.upgrade(config, "head"), names)


def downgrade(target: Target, names: Names | None = None, revision: str = "base") -> None:
    """Go back to an older revision; ``base`` drops the tables with every event in them.

    :raises ConfigError: as :func:`upgrade`.
    """
    _run(target, lambda config: command.downgrade(config, revision), names)


def partition(target: Target, names: Names | None = None, size: int = SIZE) -> None:
    """Turn the log into a table of range partitions, with what it holds as the first one; does nothing where it is one.

    PostgreSQL only. One transaction, which locks the log and reads it once. A broker with ``retention`` then drops whole
    partitions instead of deleting rows; the user of its engine must own the log. Views of your own over the log must be
    made anew.

    :param size: numbers of a partition; later ones have the configured ``database.partition_size``.
    :raises ConfigError: on another database.
    """
    def run(connection: Connection) -> None:
        for statement in _partition_statements(names or Names(), connection.dialect.name, size):
            connection.execute(text(statement))

    connected(target, run)


def _partition_statements(names: Names, dialect: str, size: int) -> list[str]:
    if dialect != "postgresql":
        raise ConfigError(f"the database is {dialect!r}; range partitions need postgresql")
    if size < 1000:
        raise ConfigError(f"size is {size}; a range partition must have at least 1000 numbers")
    return [partition_sql(names, size)]


def check(target: Target, names: Names | None = None) -> None:
    """See that the tables are there and recent enough.

    :raises SchemaError: if not; the message names the command that mends it.
    """
    connected(target, lambda connection: verify(connection, Tables(names)))


def sql(dialect: str, names: Names | None = None) -> str:
    """The statements of :func:`upgrade` as a script for whoever may run it; ``dialect`` is a name or a URL."""
    output = io.StringIO()
    config = _config(names, output)
    config.attributes["dialect"] = make_url(dialect).get_backend_name() if "://" in dialect else dialect
    _supported(config.attributes["dialect"], names)
    with _one_at_a_time:
        command.upgrade(config, "head", sql=True)
    return output.getvalue()


def _run(target: Target, work: Callable[[Config], None], names: Names | None) -> None:
    def migrate(connection: Connection) -> None:
        _supported(connection.dialect.name, names)
        config = _config(names)
        config.attributes["connection"] = connection
        with _one_at_a_time:
            work(config)

    connected(target, migrate)


def _config(names: Names | None, output: io.StringIO | None = None) -> Config:
    config = Config(output_buffer=output) if output else Config()
    config.set_main_option("script_location", str(migrations()).replace("%", "%%"))
    config.attributes["names"] = names or Names()
    return config


def _supported(dialect: str, names: Names | None) -> None:
    if dialect not in {"postgresql", "sqlite"}:
        raise ConfigError(f"the database is {dialect!r}; sqla_events works on postgresql and sqlite")
    if dialect == "sqlite" and names and names.schema:
        raise ConfigError(f"schema is {names.schema!r}; SQLite has no schemas, leave it out")


def migrations() -> Path:
    """The folder of the migrations: inside an installed package, beside it in a checkout."""
    inside = Path(__file__).with_name("migrations")
    return inside if inside.is_dir() else Path(__file__).resolve().parents[1] / "migrations"


# Where to -----------------------------------------------------------------------------------------------------------


def connected(target: Target, fn: Callable[[Connection], None]) -> None:
    """Call ``fn`` with a connection to the target, in a transaction."""
    if isinstance(target, Connection):
        fn(target)
    elif isinstance(target, AsyncEngine):
        _on_a_loop(target, fn)
    elif isinstance(target, Engine):
        with target.begin() as connection:
            fn(connection)
    else:
        _at(database_url(target), fn)


def _at(url: URL, fn: Callable[[Connection], None]) -> None:
    if in_memory(url):
        raise ConfigError(
            f"{url!r} is SQLite in memory: its tables end with this call; give the URL of a file, or the engine that keeps them"
        )
    engine = engine_of(url)
    try:
        connected(engine, fn)
    finally:
        if isinstance(engine, Engine):
            engine.dispose()


def _on_a_loop(engine: AsyncEngine, fn: Callable[[Connection], None]) -> None:
    """On connections and a loop of our own, so that nothing of the application's engine is tied to a loop that ends."""
    database, loop = Database(engine), LoopThread("sqla-events-migrate")
    try:
        loop.call(database.run(fn)).result()
        loop.call(database.close()).result()
    finally:
        loop.stop()


# Operations for an application's own migrations ---------------------------------------------------------------------


class _EventTablesOp(MigrateOperation):
    def __init__(self, names: Names) -> None:
        self.names = names


@Operations.register_operation("create_event_tables")
class CreateEventTables(_EventTablesOp):
    """``op.create_event_tables(events="events", schema=None)``: tables, view, and the row with their revision."""

    @classmethod
    def create_event_tables(cls, operations: Operations, events: str = "events", schema: str | None = None) -> None:
        operations.invoke(cls(Names(events, schema)))

    def reverse(self) -> DropEventTables:
        return DropEventTables(self.names)


@Operations.register_operation("drop_event_tables")
class DropEventTables(_EventTablesOp):
    """``op.drop_event_tables(events="events", schema=None)``: everything, with every event in it."""

    @classmethod
    def drop_event_tables(cls, operations: Operations, events: str = "events", schema: str | None = None) -> None:
        operations.invoke(cls(Names(events, schema)))

    def reverse(self) -> CreateEventTables:
        return CreateEventTables(self.names)


@Operations.register_operation("partition_event_tables")
class PartitionEventTables(_EventTablesOp):
    """``op.partition_event_tables(events="events", schema=None, size=1_000_000)``: range partitions, on PostgreSQL."""

    size = SIZE

    @classmethod
    def partition_event_tables(
        cls, operations: Operations, events: str = "events", schema: str | None = None, size: int = SIZE
    ) -> None:
        operation = cls(Names(events, schema))
        operation.size = size
        operations.invoke(operation)


@Operations.implementation_for(PartitionEventTables)
def _partition(operations: Operations, operation: PartitionEventTables) -> None:
    dialect = operations.get_context().dialect.name
    _execute(operations, _partition_statements(operation.names, dialect, operation.size))


@Operations.implementation_for(CreateEventTables)
def _create(operations: Operations, operation: CreateEventTables) -> None:
    names, dialect = operation.names, operations.get_context().dialect.name
    _supported(dialect, names)
    version = names.qualified(names.version)
    for module in _revisions():
        _execute(operations, module.create(names, dialect))
    _execute(operations, [f"CREATE TABLE {version} (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"])
    _execute(operations, [f"INSERT INTO {version} (version_num) VALUES ('{module.revision}')"])


@Operations.implementation_for(DropEventTables)
def _drop(operations: Operations, operation: DropEventTables) -> None:
    names, dialect = operation.names, operations.get_context().dialect.name
    for module in reversed(list(_revisions())):
        _execute(operations, module.drop(names, dialect))
    _execute(operations, [f"DROP TABLE {names.qualified(names.version)}"])


def _revisions() -> Iterator[Any]:
    """The modules of our migrations, oldest first."""
    scripts = ScriptDirectory.from_config(_config(None))
    return (script.module for script in reversed(list(scripts.walk_revisions())))


def _execute(operations: Operations, statements: list[str]) -> None:
    for statement in statements:
        operations.execute(statement)


# Triggers -----------------------------------------------------------------------------------------------------------


@Operations.register_operation("create_event_trigger")
class CreateEventTrigger(MigrateOperation):
    """``op.create_event_trigger("users")``: an event for every change that no hook captures."""

    def __init__(self, table: Table, names: Names, options: dict[str, Any]) -> None:
        self.table = table
        self.names = names
        self.options = options

    @classmethod
    def create_event_trigger(
        cls,
        operations: Operations,
        table: str | Table,
        schema: str | None = None,
        *,
        events: str = "events",
        events_schema: str | None = None,
        **options: Any,
    ) -> None:
        """Make the triggers of a table, or make them anew after it has changed.

        How values get into events is taken from ``target_metadata`` of the migration where it has the table, else from
        the database. Online, they are made for the columns that the database has at that point of its history. A script
        (``--sql``) cannot know them: give it a Table with the columns of that point.

        :param table: its name, or a Table.
        :param events: name of the event log, in ``events_schema``.
        :param options: ``exclude_columns``, ``redact_columns``, ``default_schema``, as in ``capture``.
        :raises ConfigError: if the database has no such table, or, for a script, nobody says its columns.
        """
        found = table if isinstance(table, Table) else _known(operations, table, schema)
        operations.invoke(cls(found, Names(events, events_schema), options))

    def reverse(self) -> DropEventTrigger:
        return DropEventTrigger(self.table, self.names)


@Operations.register_operation("drop_event_trigger")
class DropEventTrigger(MigrateOperation):
    """``op.drop_event_trigger("users")``; nothing where there is none."""

    def __init__(self, table: Table, names: Names) -> None:
        self.table = table
        self.names = names

    @classmethod
    def drop_event_trigger(
        cls,
        operations: Operations,
        table: str | Table,
        schema: str | None = None,
        *,
        events: str = "events",
        events_schema: str | None = None,
    ) -> None:
        """Remove the triggers of a table. Do so before the event tables are dropped: every write would fail."""
        found = table if isinstance(table, Table) else Table(table, MetaData(), schema=schema)
        operations.invoke(cls(found, Names(events, events_schema)))

    def reverse(self) -> CreateEventTrigger:
        return CreateEventTrigger(self.table, self.names, {})


def _known(operations: Operations, name: str, schema: str | None) -> Table:
    metadata = operations.get_context().opts.get("target_metadata")
    wanted = f"{schema}.{name}" if schema else name
    for one in metadata if isinstance(metadata, (list, tuple)) else [metadata]:
        if one is not None and wanted in one.tables:
            found: Table = one.tables[wanted]
            return found
    return Table(name, MetaData(), schema=schema)


@Operations.implementation_for(CreateEventTrigger)
def _create_trigger(operations: Operations, operation: CreateEventTrigger) -> None:
    context = operations.get_context()
    if context.as_sql:
        _script(operations, triggers.sql(operation.table, context.dialect, operation.names, **operation.options))
    else:
        triggers.create(operations.get_bind(), operation.table, operation.names, **operation.options)


@Operations.implementation_for(DropEventTrigger)
def _drop_trigger(operations: Operations, operation: DropEventTrigger) -> None:
    context = operations.get_context()
    if context.as_sql:
        _script(operations, triggers.drop_sql(operation.table, context.dialect, operation.names))
    else:
        triggers.drop(operations.get_bind(), operation.table, names=operation.names)


def _script(operations: Operations, statements: list[str]) -> None:
    """As they are: Alembic would double the percent signs of a name for psycopg."""
    impl: Any = operations.impl
    for statement in statements:
        impl.static_output(statement.strip() + impl.command_terminator)

"""Alembic environment of the event tables, with a version table of its own: the application's is left alone.

It is started by :mod:`sqla_events.alembic`, which passes names and connection as attributes, or by the ``alembic``
command with ``-x url=… [-x events=NAME] [-x schema=NAME]``.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import create_engine, exc, inspect, text
from sqlalchemy.engine import Connection

from sqla_events.schema import Names

LOCK = 0x7371_6C61_6576  # "sqlaev": two deployments that migrate at the same time take turns


def event_names() -> Names:
    """What the tables are to be called."""
    given = context.config.attributes.get("names")
    if given is not None:
        return given
    arguments = context.get_x_argument(as_dictionary=True)
    return Names(arguments.get("events", "events"), arguments.get("schema"))


def options(names: Names) -> dict[str, object]:
    """What Alembic needs to know in every mode."""
    return {"version_table": names.version, "version_table_schema": names.schema, "event_names": names}


def prepare(connection: Connection, names: Names) -> None:
    """Make the migration one transaction, alone, and see that the schema is there."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        if names.schema and not inspect(connection).has_schema(names.schema):
            connection.execute(text(f'CREATE SCHEMA "{names.schema}"'))
    if connection.dialect.name == "sqlite":
        begin_immediate(connection)


def begin_immediate(connection: Connection) -> None:
    """Start the transaction now: Python's sqlite3 would let each DDL statement commit by itself."""
    try:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    except exc.OperationalError as error:
        if "within a transaction" not in str(error):
            raise


def migrate(connection: Connection) -> None:
    """Run the migrations in the transaction of ``connection``; whoever opened it commits."""
    names = event_names()
    prepare(connection, names)
    context.configure(connection=connection, **options(names))
    with context.begin_transaction():
        context.run_migrations()


def write_sql() -> None:
    """Print the statements instead of executing them."""
    names = event_names()
    dialect = context.config.attributes.get("dialect") or context.get_x_argument(as_dictionary=True)["dialect"]
    context.configure(dialect_name=dialect, literal_binds=True, **options(names))
    with context.begin_transaction():
        if names.schema and dialect == "postgresql":
            context.execute(f'CREATE SCHEMA IF NOT EXISTS "{names.schema}"')
        context.run_migrations()


def connect_and_migrate() -> None:
    """The ``alembic`` command: connect to ``-x url``."""
    engine = create_engine(context.get_x_argument(as_dictionary=True)["url"])
    with engine.begin() as connection:
        migrate(connection)
    engine.dispose()


if context.is_offline_mode():
    write_sql()
elif "connection" in context.config.attributes:
    migrate(context.config.attributes["connection"])
else:
    connect_and_migrate()

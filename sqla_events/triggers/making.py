"""Creating and dropping the triggers of a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Dialect, make_url

from ..capture.marks import look
from ..errors import ConfigError
from ..schema import Names
from .postgresql import PostgresqlSpec
from .spec import Options, Spec, refuse
from .sqlite import SqliteSpec

_SPECS: dict[str, type[Any]] = {"postgresql": PostgresqlSpec, "sqlite": SqliteSpec}


def create(connection: Connection, table: sa.Table, names: Names | None = None, **options: Any) -> None:
    """Write an event for every change of the table that capture does not write; made anew where triggers are already.

    Made for the columns that the database has now; those that the Table has not are taken as the database declares them.
    After a change of the table make them again (:func:`drift` tells).

    :param names: of the event tables.
    :param options: ``exclude_columns``, ``redact_columns``, ``default_schema``, as in ``capture``.
    :raises ConfigError: if the table is not in the database, or the database is neither PostgreSQL nor SQLite.
    """
    run(connection, sql(present(connection, table), connection.dialect, names, **options))


def drop(connection: Connection, table: sa.Table | str, schema: str | None = None, names: Names | None = None) -> None:
    """Remove the triggers of a table; nothing where there are none."""
    known = table if isinstance(table, sa.Table) else sa.Table(table, sa.MetaData(), schema=schema)
    spec = _spec(known, connection.dialect, names)
    run(connection, spec.drop())
    if isinstance(spec, SqliteSpec) and not look(connection.connection.cursor(), "sqlite"):
        run(connection, [f"DROP TABLE IF EXISTS {spec.guard}"])


def sql(table: sa.Table, dialect: Dialect | str, names: Names | None = None, **options: Any) -> list[str]:
    """The statements of :func:`create`, for the columns of the Table; ``dialect`` is one, its name, or a URL."""
    refuse(table)
    return list(_spec(table, dialect, names, **options).create())


def drop_sql(table: sa.Table, dialect: Dialect | str, names: Names | None = None) -> list[str]:
    """The statements of :func:`drop`."""
    return list(_spec(table, dialect, names).drop())


def _spec(table: sa.Table, dialect: Dialect | str, names: Names | None, **options: Any) -> Any:
    chosen = make_url(dialect if "://" in dialect else f"{dialect}://").get_dialect()() if isinstance(dialect, str) else dialect
    spec: type[Spec] | None = _SPECS.get(chosen.name)
    if spec is None:
        raise ConfigError(f"the database is {chosen.name!r}; event triggers are made on postgresql and sqlite")
    return spec(table, chosen, Options(names or Names(), **{key: _plain(value) for key, value in options.items()}))


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def present(connection: Connection, table: sa.Table) -> sa.Table:
    """The table with the columns that the database has: as the Table says, or as they are declared there.

    :raises ConfigError: if the database has no such table.
    """
    try:
        found = sa.Table(table.name, sa.MetaData(), schema=table.schema, autoload_with=connection, resolve_fks=False)
    except sa.exc.NoSuchTableError:
        raise ConfigError(f"there is no table {table.fullname!r} in the database; create it before its event trigger") from None
    known = {column.name: column for column in table.columns}
    keys = {column.name for column in (table.primary_key.columns or found.primary_key.columns)}
    columns = [_copied(known.get(column.name, column), column, column.name in keys) for column in found.columns]
    return sa.Table(table.name, sa.MetaData(), *columns, schema=table.schema, info=dict(table.info))


def _copied(column: sa.Column[Any], found: sa.Column[Any], in_key: bool) -> sa.Column[Any]:
    computed = [] if found.computed is None else [sa.Computed(found.computed.sqltext, persisted=found.computed.persisted)]
    return sa.Column(column.name, column.type, *computed, primary_key=in_key, info=dict(column.info), autoincrement=False)


def run(connection: Connection, statements: Iterable[str]) -> None:
    """Execute statements as they are: neither a colon nor a percent sign in a name means anything."""
    for statement in statements:
        connection.execution_options(no_parameters=True).exec_driver_sql(statement)

"""Whether the tables are there and up to date, found at start instead of at the first write."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..errors import SchemaError
from ..schema import REVISION, Names, Tables


def verify(connection: Connection, tables: Tables) -> None:
    """See that the tables are there. Newer ones are accepted: an old process goes on while a new release rolls out.

    :raises SchemaError: if tables are missing or of an older revision; the message names the command.
    """
    names = tables.names
    present = set(sa.inspect(connection).get_table_names(schema=names.schema))
    missing = [name for name in (names.events, names.positions, names.batches, names.deliveries) if name not in present]
    if missing:
        raise SchemaError(
            f"the event tables {', '.join(missing)} are missing; create them with: {command(connection, names)}"
        )
    revision = _revision(connection, names) if names.version in present else None
    if revision is None or revision < REVISION:
        raise SchemaError(
            f"the event tables are of revision {revision or 'unknown'} and this version of sqla_events needs {REVISION}; "
            f"upgrade them with: {command(connection, names)}"
        )


def _revision(connection: Connection, names: Names) -> str | None:
    version = sa.table(names.version, sa.column("version_num"), schema=names.schema)
    return connection.scalar(sa.select(version.c.version_num))


def command(connection: Connection, names: Names) -> str:
    """The command that creates or upgrades the tables of this database."""
    url = connection.engine.url.render_as_string(hide_password=True)
    options = f" --table-name {names.events}" if names.events != "events" else ""
    options += f" --schema {names.schema}" if names.schema else ""
    return f"sqla-events migrate '{url}'{options}"

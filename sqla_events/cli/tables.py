"""Commands about what is in the database: the event tables, and event triggers."""

from __future__ import annotations

import click
from sqlalchemy.engine import Connection

from ..bridge import database_url
from ..log.ranges import SIZE
from ..schema import Names
from .options import on_a_database
from .target import refuse_missing_file


@click.command()
@on_a_database
@click.option("--downgrade", is_flag=True, help="Drop the event tables, with every event in them.")
@click.option("--partitioned", is_flag=True, help="Also cut the log into range partitions (PostgreSQL).")
@click.option("--partition-size", default=SIZE, show_default=True, type=click.IntRange(1000), help="Numbers of a partition.")
def migrate(
    url: str, table_name: str | None, schema: str | None, downgrade: bool, partitioned: bool, partition_size: int
) -> None:
    """Create the event tables, or bring them up to date."""
    from .. import alembic

    names = Names("events" if table_name is None else table_name, schema)
    if downgrade:
        alembic.downgrade(database_url(url), names)
        click.echo(f"dropped {names.events} and what belongs to it")
    else:
        alembic.upgrade(database_url(url), names)
        if partitioned:
            alembic.partition(database_url(url), names, partition_size)
        click.echo(f"{names.events} is up to date")


@click.command(name="triggers")
@click.argument("url")
def event_triggers(url: str) -> None:
    """Check that event triggers fit their tables as these are now."""
    from .. import alembic, triggers

    found: list[str] = []
    wrong: list[str] = []

    def look(connection: Connection) -> None:
        found.extend(triggers.installed(connection))
        wrong.extend(triggers.drift(connection))

    target = database_url(url)
    refuse_missing_file(target)
    alembic.connected(target, look)
    if wrong:
        raise click.ClickException("; ".join(wrong))
    click.echo(f"event triggers fit their tables: {', '.join(found)}" if found else "there are no event triggers")

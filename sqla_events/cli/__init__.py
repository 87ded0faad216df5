"""The command ``sqla-events``: migrate, relay, tail, status, replay, pause, resume, triggers, dead-letters, settings, demo.

What goes wrong is one line on stderr and exit code 1; a command that was typed wrongly is exit code 2.
"""

from __future__ import annotations

from typing import Any

import click
from sqlalchemy.exc import SQLAlchemyError

from ..bridge import database_url
from ..config import Config
from ..errors import SQLAlchemyEventsError
from ..settings import reference
from . import dead_letters, operating, tables, tail


class Commands(click.Group):
    """Commands whose expected errors are one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (SQLAlchemyEventsError, SQLAlchemyError, ImportError) as error:
            raise click.ClickException(_first_line(error)) from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return text or type(error).__name__


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sqla-events")
def main() -> None:
    """Every committed SQLAlchemy change becomes an event.

    URL is a database URL as SQLAlchemy takes it: postgresql+psycopg://user@host/database, sqlite:///app.db. For
    dead-letters and replay it may also be a transport's: redis://…, nats://….
    """


for _command in (
    tables.migrate,
    tables.event_triggers,
    operating.relay,
    operating.status,
    operating.replay,
    operating.pause,
    operating.resume,
    tail.tail,
    dead_letters.dead_letters,
):
    main.add_command(_command)


@main.command()
def settings() -> None:
    """Print every setting, its default and meaning (Markdown)."""
    click.echo(reference(Config))


@main.command()
@click.option("--url", help="Database to play in; without it an SQLite file that is deleted afterwards.")
@click.pass_context
def demo(ctx: click.Context, url: str | None) -> None:
    """Play a small shop and count that nothing is lost. On a database of yours it makes tables shop_… and drops them."""
    from ..demo import run

    ctx.exit(run(None if url is None else database_url(url)))

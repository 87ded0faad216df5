"""Arguments and options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

Command = Callable[..., Any]


def on_a_database(command: Command) -> Command:
    """Argument URL and the options that say what the tables there are called."""
    for option in (
        click.option("--schema", metavar="NAME", help="Database schema of the event tables."),
        click.option("--table-name", metavar="NAME", help="Name of the log's table (events)."),
        click.argument("url"),
    ):
        command = option(command)
    return command


def configured(command: Command) -> Command:
    """The options that say how to run."""
    for option in (
        click.option("--provider", metavar="URL", help="Provider, or its URL: redis://…, nats://…"),
        click.option("--config", metavar="FILE", help="YAML file; without it the environment (SQLA_EVENTS_…)."),
    ):
        command = option(command)
    return on_a_database(command)

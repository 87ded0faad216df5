"""Rows in columns, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click


def print_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a head and rows, each column as wide as its widest cell."""
    texts = [tuple(head), *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(head))]
    for row in texts:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

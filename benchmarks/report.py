"""What every benchmark prints and writes: name, value, unit, baseline, ratio."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One measured number and, where it has one, what it stands beside in the same run."""

    name: str
    value: float
    unit: str
    baseline: str | None = None
    ratio: float | None = None


def table(figures: list[Figure]) -> str:
    """The figures as text."""
    width = max((len(figure.name) for figure in figures), default=0)
    lines = [f"{'case':{width}}  {'value':>12}  {'unit':10}  {'baseline':16}  ratio"]
    for figure in figures:
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
        lines.append(
            f"{figure.name:{width}}  {figure.value:12,.2f}  {figure.unit:10}  {figure.baseline or '':16}  {ratio}"
        )
    return "\n".join(lines)


def publish(figures: list[Figure], target: str | None) -> None:
    """Print the table; write the list as JSON to ``target`` if there is one."""
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(table(figures))
    if target:
        Path(target).write_text(json.dumps([asdict(figure) for figure in figures], indent=1) + "\n")

"""Keeps ``alembic revision --autogenerate`` from proposing to drop the event tables.

They are in the database and not in the application's MetaData, so Alembic takes them for leftovers. With Alembic
>= 1.18 nothing has to be done: this module is an Alembic plugin, found by its entry point whenever sqla_events is
installed. (An ``env.py`` that sets ``autogenerate_plugins`` itself must include ``alembic.autogenerate.*``.) With an
older one, say it in ``env.py``::

    context.configure(..., include_name=sqla_events.autogenerate.include_name)

Why tables are known by their columns: the plugin cannot see how an application named them, and a leftover table of the
application's own that happens to be called ``events`` is still proposed for dropping.

Imports nothing of Alembic at import time: Alembic loads its plugins while it is being imported itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .schema import Names, Tables

if TYPE_CHECKING:
    from alembic.operations.ops import UpgradeOps
    from alembic.runtime.plugins import Plugin

_COLUMNS = frozenset(Tables().events.columns.keys())

Relation = tuple[str | None, str]
"""Schema, None for the default one, and name."""


def setup(plugin: Plugin) -> None:
    """Called by Alembic: look at its proposal after everybody else."""
    from alembic.util import DispatchPriority

    plugin.add_autogenerate_comparator(_keep_event_tables, "autogenerate", priority=DispatchPriority.LAST)


def _keep_event_tables(_context: Any, proposal: UpgradeOps) -> Any:
    from alembic.util import PriorityDispatchResult

    ours = _ours(proposal.ops)
    proposal.ops[:] = [op for op in proposal.ops if _relation(op) not in ours]
    return PriorityDispatchResult.CONTINUE


def _ours(ops: Iterable[Any]) -> set[Relation]:
    """Every relation that belongs to an events table whose dropping is proposed."""
    from alembic.operations.ops import DropTableOp

    logs = [op for op in ops if isinstance(op, DropTableOp) and set(op.to_table().columns.keys()) >= _COLUMNS]
    return {(op.schema, name) for op in logs for name in Names(op.table_name).reserved}


def _relation(op: Any) -> Relation | None:
    """What a proposed operation is about: the table to drop, or the one whose indexes are to be dropped before."""
    from alembic.operations.ops import DropTableOp, ModifyTableOps

    return (op.schema, op.table_name) if isinstance(op, (DropTableOp, ModifyTableOps)) else None


_PART = re.compile(rf"{Names().events}_(p\d+|rest)")


def include_name(name: str | None, kind: str, _parents: Mapping[str, Any]) -> bool:
    """For ``context.configure(include_name=…)``: everything except the event tables under their default names."""
    return kind != "table" or (name not in Names().reserved and not _PART.fullmatch(name or ""))

"""Claims on partitions, and an index that finds an event by its id.

Frozen: a later change is a later revision.

``claimant`` asks the owner of a partition to give it up, until ``claim_expires``: so partitions are spread over the
processes that there are without a list of these processes.

The index is BRIN, on PostgreSQL only: ids of version 7 grow with time, so a few bytes for each 128 pages say where an id
is, and an insert pays next to nothing for it (a B-tree costs every capture 5-10 %). It serves ``event_status`` by id.
"""

from __future__ import annotations

from alembic import op

from sqla_events.schema import Names

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for statement in create(op.get_context().opts["event_names"], op.get_context().dialect.name):
        op.execute(statement)


def downgrade() -> None:
    for statement in drop(op.get_context().opts["event_names"], op.get_context().dialect.name):
        op.execute(statement)


def create(names: Names, dialect: str) -> list[str]:
    """The statements that bring the tables of 0001 here."""
    positions, time = names.qualified(names.positions), "timestamp with time zone" if dialect == "postgresql" else "DATETIME"
    return [
        f"ALTER TABLE {positions} ADD COLUMN claimant {'text' if dialect == 'postgresql' else 'TEXT'}",
        f"ALTER TABLE {positions} ADD COLUMN claim_expires {time}",
        *_index(names, dialect),
    ]


def _index(names: Names, dialect: str) -> list[str]:
    if dialect != "postgresql":
        return []
    return [f'CREATE INDEX "{names.events}_id" ON {names.qualified(names.events)} USING brin (id) WITH (autosummarize = on)']


def drop(names: Names, dialect: str) -> list[str]:
    """The statements that go back to 0001."""
    positions = names.qualified(names.positions)
    index = [f"DROP INDEX {names.qualified(names.events + '_id')}"] if dialect == "postgresql" else []
    return [*index, *(f"ALTER TABLE {positions} DROP COLUMN {column}" for column in ("claim_expires", "claimant"))]

"""${message}

Revision ${up_revision}, after ${down_revision | comma,n}.
"""

from __future__ import annotations

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    for statement in create(op.get_context().opts["event_names"], op.get_context().dialect.name):
        op.execute(statement)


def downgrade() -> None:
    for statement in drop(op.get_context().opts["event_names"], op.get_context().dialect.name):
        op.execute(statement)

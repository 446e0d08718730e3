"""what is held is found without reading what once was

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    held = sa.text("released_at IS NULL")
    op.create_index(
        "ix_allocations_held",
        "allocations",
        ["node_id", "engine_id", "attempt_id"],
        postgresql_where=held,
        sqlite_where=held,
    )


def downgrade() -> None:
    op.drop_index("ix_allocations_held", table_name="allocations")

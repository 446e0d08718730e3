"""what nodes use, for an hour, and since when they report their GPUs

Revision ID: 0023
Revises: 0022
"""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("nodes", sa.Column("gpus_since", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "node_samples",
        sa.Column("node_id", sa.String(64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("use", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("node_id", "at", name="pk_node_samples"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_node_samples_at", "node_samples", ["at"])


def downgrade() -> None:
    op.drop_table("node_samples")
    op.drop_column("nodes", "gpus_since")

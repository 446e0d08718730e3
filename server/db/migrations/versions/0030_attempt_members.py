"""attempts on several nodes

Revision ID: 0030
Revises: 0029
"""

import sqlalchemy as sa
from alembic import op

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempts", sa.Column("nodes", sa.Integer(), nullable=False, server_default="1"))
    op.create_table(
        "attempt_members",
        sa.Column("attempt_id", sa.String(48), nullable=False),
        sa.Column("node_rank", sa.Integer(), nullable=False),
        sa.Column("node_id", sa.String(64), nullable=False),
        sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("report", sa.JSON(), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.String(16), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(["attempt_id"], ["attempts.id"], name="fk_attempt_members_attempt_id"),
        sa.PrimaryKeyConstraint("attempt_id", "node_rank", name="pk_attempt_members"),
    )


def downgrade() -> None:
    op.drop_table("attempt_members")
    op.drop_column("attempts", "nodes")

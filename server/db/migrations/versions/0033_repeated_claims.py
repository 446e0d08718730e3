"""what tells a repeated claim and a late report from new ones, and for how long an attempt has run

Revision ID: 0033
Revises: 0032
"""

import sqlalchemy as sa
from alembic import op

revision = "0033"
down_revision = "0032"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempts", sa.Column("claim_id", sa.String(64), nullable=True))
    op.add_column("attempts", sa.Column("ran_s", sa.Float(), nullable=True))
    op.add_column("attempt_members", sa.Column("claim_id", sa.String(64), nullable=True))
    op.add_column("nodes", sa.Column("report_number", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("nodes", "report_number")
    op.drop_column("attempt_members", "claim_id")
    op.drop_column("attempts", "ran_s")
    op.drop_column("attempts", "claim_id")

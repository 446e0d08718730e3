"""token records of trajectories

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("trajectory_steps", sa.Column("tokens", sa.JSON(), nullable=True))
    op.add_column(
        "trajectory_steps", sa.Column("token_rows", sa.Integer(), nullable=False, server_default="0")
    )


def downgrade() -> None:
    op.drop_column("trajectory_steps", "token_rows")
    op.drop_column("trajectory_steps", "tokens")

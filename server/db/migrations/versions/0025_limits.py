"""the limits of a job that the leader judges

Revision ID: 0025
Revises: 0024
"""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("limits", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "limits")

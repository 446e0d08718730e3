"""the limits of a job that the leader judges

Revision ID: 0026
Revises: 0023
"""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("limits", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "limits")

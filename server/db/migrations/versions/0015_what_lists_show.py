"""the lists show who else tried to use a node's name, and how many trajectories are behind a job's p

Revision ID: 0015
Revises: 0014
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("nodes", sa.Column("rival", sa.JSON(), nullable=True))
    op.add_column("jobs", sa.Column("last_p_defined", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("last_p_undefined", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "last_p_undefined")
    op.drop_column("jobs", "last_p_defined")
    op.drop_column("nodes", "rival")

"""a node knows who else tried to use its name

Revision ID: 0019
Revises: 0012
"""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("nodes", sa.Column("rival", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("nodes", "rival")

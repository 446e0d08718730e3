"""the job for which an attempt was told to stop

Revision ID: 0026
Revises: 0025
"""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempts", sa.Column("made_way_for", sa.String(32), nullable=True))


def downgrade() -> None:
    op.drop_column("attempts", "made_way_for")

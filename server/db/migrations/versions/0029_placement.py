"""since when there has been a leader without a gap; whom attempts made way for, by job

Revision ID: 0029
Revises: 0028
"""

import sqlalchemy as sa
from alembic import op

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("leaders", sa.Column("served_since", sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_attempts_made_way_for", "attempts", ["made_way_for"])


def downgrade() -> None:
    op.drop_index("ix_attempts_made_way_for", "attempts")
    op.drop_column("leaders", "served_since")

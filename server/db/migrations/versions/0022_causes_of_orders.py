"""why an attempt was ordered to stop

Revision ID: 0022
Revises: 0021
"""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempts", sa.Column("order_cause", sa.String(16), nullable=True))


def downgrade() -> None:
    op.drop_column("attempts", "order_cause")

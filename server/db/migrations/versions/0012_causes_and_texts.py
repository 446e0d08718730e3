"""attempts say why they ended, jobs keep the text they came from

Revision ID: 0012
Revises: 0011
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempts", sa.Column("reason", sa.String(300), nullable=True))
    op.add_column("jobs", sa.Column("spec_text", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "spec_text")
    op.drop_column("attempts", "reason")

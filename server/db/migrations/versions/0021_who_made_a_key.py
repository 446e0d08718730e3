"""which key made a key, so that a leaked one ends with all that were made with it

Revision ID: 0021
Revises: 0020
"""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("made_by", sa.String(32), nullable=True))
    op.create_index("ix_api_keys_made_by", "api_keys", ["made_by"])
    op.add_column("device_sign_ins", sa.Column("made_by", sa.String(32), nullable=True))


def downgrade() -> None:
    op.drop_column("device_sign_ins", "made_by")
    op.drop_index("ix_api_keys_made_by", "api_keys")
    op.drop_column("api_keys", "made_by")

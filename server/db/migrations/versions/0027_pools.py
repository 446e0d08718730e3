"""pools, and the nodes that they were asked for

Revision ID: 0027
Revises: 0026
"""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "pools",
        sa.Column("name", sa.String(24), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("shape", sa.JSON(), nullable=False),
        sa.Column("min", sa.Integer(), nullable=False),
        sa.Column("max", sa.Integer(), nullable=False),
        sa.Column("error", sa.String(500), nullable=True),
        sa.PrimaryKeyConstraint("name", name="pk_pools"),
    )
    op.create_table(
        "pilots",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("pool", sa.String(24), nullable=False),
        sa.Column("node_id", sa.String(64), nullable=False),
        sa.Column("external_id", sa.String(100), nullable=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(300), nullable=False, server_default=""),
        sa.Column("leaves", sa.String(200), nullable=True),
        sa.Column("failed", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("shape", sa.JSON(), nullable=False),
        sa.Column("key_id", sa.String(32), nullable=True),
        sa.Column("unneeded_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_pilots"),
    )
    op.create_index("ix_pilots_node_id", "pilots", ["node_id"])
    living = sa.text("state <> 'ended'")
    op.create_index("ix_pilots_living", "pilots", ["pool"], postgresql_where=living, sqlite_where=living)


def downgrade() -> None:
    op.drop_table("pilots")
    op.drop_table("pools")

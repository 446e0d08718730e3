"""engine services

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "engines",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("node", sa.String(length=64), nullable=True),
        sa.Column("gpu_uuids", sa.JSON(), nullable=False),
        sa.Column("url", sa.String(length=300), nullable=True),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("why", sa.String(length=200), nullable=True),
        sa.Column("report", sa.JSON(), nullable=True),
        sa.Column("created_by", sa.String(length=32), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["created_by"], ["api_keys.id"], name="fk_engines_created_by"),
        sa.PrimaryKeyConstraint("id", name="pk_engines"),
    )
    op.create_index("uq_engines_name", "engines", ["name"], unique=True)
    op.add_column("allocations", sa.Column("engine_id", sa.String(length=32), nullable=True))
    op.create_index("ix_allocations_engine_id", "allocations", ["engine_id"])
    op.add_column("jobs", sa.Column("longest_sequence", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "longest_sequence")
    op.drop_index("ix_allocations_engine_id", table_name="allocations")
    op.drop_column("allocations", "engine_id")
    op.drop_table("engines")

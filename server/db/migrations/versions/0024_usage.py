"""what deleted jobs held is kept, and what was held in a period is found

Revision ID: 0024
Revises: 0023
"""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_RELEASED = sa.text("released_at IS NOT NULL")


def upgrade() -> None:
    op.create_index(
        "ix_allocations_released_at",
        "allocations",
        ["released_at"],
        postgresql_where=_RELEASED,
        sqlite_where=_RELEASED,
    )
    op.create_table(
        "usage_records",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("project", sa.String(80), nullable=False),
        sa.Column("person_id", sa.String(32), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("cpu_slots", sa.Integer(), nullable=False),
        sa.Column("started_at", _TIME, nullable=False),
        sa.Column("ended_at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name="fk_usage_records_person_id"),
        sa.PrimaryKeyConstraint("id", name="pk_usage_records"),
    )
    op.create_index("ix_usage_records_project", "usage_records", ["project"])
    op.create_index("ix_usage_records_ended_at", "usage_records", ["ended_at"])


def downgrade() -> None:
    op.drop_table("usage_records")
    op.drop_index("ix_allocations_released_at", "allocations")

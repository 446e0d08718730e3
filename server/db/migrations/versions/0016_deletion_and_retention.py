"""deletion and retention

Jobs and projects are marked as deleted before their rows go in batches; checkpoints can be pinned; projects
have a limit on what they store and rules on how long they keep it.

Revision ID: 0016
Revises: 0015
"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_DELETED = sa.text("deleted_at IS NOT NULL")


def upgrade() -> None:
    op.add_column("projects", sa.Column("storage_limit", sa.BigInteger(), nullable=True))
    op.add_column("projects", sa.Column("retention", sa.JSON(), nullable=True))
    op.add_column("projects", sa.Column("deleted_at", _TIME, nullable=True))
    op.add_column("jobs", sa.Column("deleted_at", _TIME, nullable=True))
    op.create_index(
        "ix_jobs_deleted_at", "jobs", ["deleted_at"], postgresql_where=_DELETED, sqlite_where=_DELETED
    )
    op.add_column("checkpoints", sa.Column("pinned", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "removed_parts",
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("part", sa.String(16), nullable=False),
        sa.Column("removed_at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_removed_parts_job_id"),
        sa.PrimaryKeyConstraint("job_id", "part", name="pk_removed_parts"),
    )


def downgrade() -> None:
    op.drop_table("removed_parts")
    op.drop_column("checkpoints", "pinned")
    op.drop_index("ix_jobs_deleted_at", "jobs")
    op.drop_column("jobs", "deleted_at")
    for column in ("deleted_at", "retention", "storage_limit"):
        op.drop_column("projects", column)

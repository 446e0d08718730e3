"""jobs that train on from another job's weights, and the files that they need; the values of checkpoints

Revision ID: 0031
Revises: 0030
"""

import sqlalchemy as sa
from alembic import op

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("forked_from", sa.String(32), nullable=True))
    op.add_column("jobs", sa.Column("forked_step", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("origin", sa.JSON(), nullable=True))
    op.create_index("ix_jobs_forked_from", "jobs", ["forked_from"])
    op.create_table(
        "forked_files",
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("owner", sa.String(32), nullable=False),
        sa.Column("files", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_forked_files_job_id"),
        sa.PrimaryKeyConstraint("job_id", "owner", name="pk_forked_files"),
    )
    op.create_index("ix_forked_files_owner", "forked_files", ["owner"])
    op.add_column("checkpoints", sa.Column("value", sa.Float(), nullable=True))


def downgrade() -> None:
    op.drop_column("checkpoints", "value")
    op.drop_index("ix_forked_files_owner", "forked_files")
    op.drop_table("forked_files")
    op.drop_index("ix_jobs_forked_from", "jobs")
    op.drop_column("jobs", "origin")
    op.drop_column("jobs", "forked_step")
    op.drop_column("jobs", "forked_from")

"""an Idempotency-Key is known in its project alone

A key of one project told whether its person had used an Idempotency-Key in another.

Revision ID: 0014
Revises: 0013
"""

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("uq_jobs_idempotency", table_name="jobs")
    op.create_index(
        "uq_jobs_idempotency", "jobs", ["created_by", "project_id", "idempotency_key"], unique=True
    )


def downgrade() -> None:
    """Of jobs with the same key in several projects, the older versions know the first alone."""
    op.execute(
        "UPDATE jobs SET idempotency_key = NULL WHERE EXISTS (SELECT 1 FROM jobs AS first WHERE "
        "first.created_by = jobs.created_by AND first.idempotency_key = jobs.idempotency_key "
        "AND first.id < jobs.id)"
    )
    op.drop_index("uq_jobs_idempotency", table_name="jobs")
    op.create_index("uq_jobs_idempotency", "jobs", ["created_by", "idempotency_key"], unique=True)

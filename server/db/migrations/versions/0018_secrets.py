"""secrets of projects and people

Revision ID: 0018
Revises: 0017
"""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_OWNERS = {
    "project_secrets": ("project_id", sa.String(63), "projects"),
    "person_secrets": ("person_id", sa.String(32), "people"),
}


def upgrade() -> None:
    for table, (owner, kind, owners) in _OWNERS.items():
        op.create_table(
            table,
            sa.Column(owner, kind, nullable=False),
            sa.Column("name", sa.String(63), nullable=False),
            sa.Column("key_id", sa.String(32), nullable=False),
            sa.Column("wrapped_key", sa.LargeBinary(), nullable=False),
            sa.Column("blob", sa.LargeBinary(), nullable=False),
            sa.Column("set_by", sa.String(32), nullable=False),
            sa.Column("set_at", _TIME, nullable=False),
            sa.Column("used_at", _TIME, nullable=True),
            sa.ForeignKeyConstraint([owner], [f"{owners}.id"], name=f"fk_{table}_{owner}"),
            sa.ForeignKeyConstraint(["set_by"], ["people.id"], name=f"fk_{table}_set_by"),
            sa.PrimaryKeyConstraint(owner, "name", name=f"pk_{table}"),
        )


def downgrade() -> None:
    for table in _OWNERS:
        op.drop_table(table)

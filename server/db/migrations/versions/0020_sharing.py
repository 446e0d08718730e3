"""how projects share the cluster: quotas, priorities, pauses, nodes that take nothing new

Revision ID: 0020
Revises: 0019
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_NEW: dict[str, tuple[tuple[str, Any, Any], ...]] = {
    "projects": (
        ("gpu_quota", sa.Integer(), "0"),
        ("gpu_limit", sa.Integer(), None),
        ("cpu_quota", sa.Integer(), "0"),
        ("cpu_limit", sa.Integer(), None),
        ("share_weight", sa.Float(), "1"),
        ("quota_version", sa.Integer(), "0"),
    ),
    "jobs": (
        ("priority", sa.String(32), "normal"),
        ("pause_requested", sa.Boolean(), sa.false()),
        ("queued_at", _TIME, None),
        ("preemptions", sa.Integer(), "0"),
        ("ended_by", sa.String(300), None),
    ),
    "attempts": (("order_reason", sa.String(300), None), ("ordered_at", _TIME, None)),
    "nodes": (
        ("closed", sa.String(8), None),
        ("closed_reason", sa.String(200), None),
        ("drain_at", _TIME, None),
    ),
}
_CLASSES = (("low", -100, "member"), ("normal", 0, "member"), ("high", 100, "maintainer"))


def upgrade() -> None:
    for table, columns in _NEW.items():
        for name, kind, default in columns:
            optional = default is None
            op.add_column(table, sa.Column(name, kind, nullable=optional, server_default=default))
    op.execute("UPDATE jobs SET queued_at = created_at WHERE state = 'queued'")
    classes = op.create_table(
        "priority_classes",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("value", sa.Integer(), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_priority_classes"),
    )
    op.bulk_insert(classes, [dict(zip(("name", "value", "role"), row, strict=True)) for row in _CLASSES])


def downgrade() -> None:
    op.drop_table("priority_classes")
    for table, columns in _NEW.items():
        for name, _, _ in columns:
            op.drop_column(table, name)

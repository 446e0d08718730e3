"""passwords, OIDC, sessions that end, keys that expire, command lines that wait

Revision ID: 0019
Revises: 0018
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_NEW: dict[str, tuple[tuple[str, Any], ...]] = {
    "people": (
        ("password_hash", sa.String(200)),
        ("oidc_issuer", sa.String(255)),
        ("oidc_subject", sa.String(255)),
        ("oidc_until", _TIME),
    ),
    "api_keys": (
        ("node", sa.String(64)),
        ("prefix", sa.String(16)),
        ("expires_at", _TIME),
        ("used_at", _TIME),
    ),
    "browser_sessions": (
        ("method", sa.String(16)),
        ("agent", sa.String(200)),
        ("address", sa.String(64)),
        ("created_at", _TIME),
        ("used_at", _TIME),
        ("ends_at", _TIME),
    ),
}
_ALWAYS = ("created_at", "used_at", "ends_at")


def upgrade() -> None:
    for table, columns in _NEW.items():
        for name, kind in columns:
            op.add_column(table, sa.Column(name, kind, nullable=True))
    op.create_index("uq_people_oidc", "people", ["oidc_issuer", "oidc_subject"], unique=True)
    # Sessions that are open keep the end that they have; what is unknown of them counts from now.
    op.execute("UPDATE browser_sessions SET method = 'key' WHERE kind = 'session'")
    op.execute("UPDATE browser_sessions SET created_at = CURRENT_TIMESTAMP, used_at = CURRENT_TIMESTAMP")
    op.execute("UPDATE browser_sessions SET ends_at = expires_at")
    with op.batch_alter_table("browser_sessions") as batch:
        for name in _ALWAYS:
            batch.alter_column(name, existing_type=_TIME, nullable=False)
    op.create_table(
        "device_sign_ins",
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        sa.Column("user_code", sa.String(16), nullable=False),
        sa.Column("client", sa.String(120), nullable=False),
        sa.Column("address", sa.String(64), nullable=True),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.Column("person_id", sa.String(32), nullable=True),
        sa.Column("project_id", sa.String(63), nullable=True),
        sa.Column("role", sa.String(16), nullable=True),
        sa.Column("key_ends_at", _TIME, nullable=True),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name="fk_device_sign_ins_person_id"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_device_sign_ins_project_id"),
        sa.PrimaryKeyConstraint("secret_sha256", name="pk_device_sign_ins"),
        sa.UniqueConstraint("user_code", name="uq_device_sign_ins_user_code"),
    )


def downgrade() -> None:
    op.drop_table("device_sign_ins")
    op.execute("DELETE FROM browser_sessions WHERE kind = 'invite'")
    op.drop_index("uq_people_oidc", "people")
    for table, columns in _NEW.items():
        for name, _ in columns:
            op.drop_column(table, name)

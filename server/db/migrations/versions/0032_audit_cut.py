"""an audit log whose oldest entries may be removed once they are archived

Revision ID: 0032
Revises: 0031
"""

import sqlalchemy as sa
from alembic import op

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None

REFUSAL = "the audit log is append-only"
START = "0" * 64


def upgrade() -> None:
    op.add_column("audit_head", sa.Column("cut_seq", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("audit_head", sa.Column("cut_hash", sa.String(64), nullable=False, server_default=START))
    op.add_column("audit_head", sa.Column("cut_signature", sa.String(1000), nullable=True))
    _allow_removal_of_archived()


def _allow_removal_of_archived() -> None:
    """Servers of the version before go on: they delete no entry, and change none."""
    archived = "coalesce((SELECT cut_seq FROM audit_head WHERE id = 1), 0)"
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TRIGGER audit_entries_no_delete")
        op.execute(
            "CREATE TRIGGER audit_entries_no_delete BEFORE DELETE ON audit_entries "
            f"WHEN OLD.seq > {archived} BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END"
        )
        return
    op.execute(
        "CREATE FUNCTION refuse_audit_removal() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN IF OLD.seq > {archived} THEN RAISE EXCEPTION '{REFUSAL}'; END IF; RETURN OLD; END $$"
    )
    op.execute("DROP TRIGGER audit_entries_append_only ON audit_entries")
    op.execute(
        "CREATE TRIGGER audit_entries_append_only BEFORE UPDATE OR TRUNCATE ON audit_entries "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()"
    )
    op.execute(
        "CREATE TRIGGER audit_entries_no_removal BEFORE DELETE ON audit_entries "
        "FOR EACH ROW EXECUTE FUNCTION refuse_audit_removal()"
    )


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TRIGGER audit_entries_no_delete")
        op.execute(
            "CREATE TRIGGER audit_entries_no_delete BEFORE DELETE ON audit_entries "
            f"BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END"
        )
    else:
        for trigger in ("no_removal", "append_only"):
            op.execute(f"DROP TRIGGER audit_entries_{trigger} ON audit_entries")
        op.execute("DROP FUNCTION refuse_audit_removal()")
        op.execute(
            "CREATE TRIGGER audit_entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_entries "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()"
        )
    for column in ("cut_signature", "cut_hash", "cut_seq"):
        op.drop_column("audit_head", column)

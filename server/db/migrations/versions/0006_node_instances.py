"""a node's name belongs to one worker, and a node can be removed without its attempts' history

Revision ID: 0006
Revises: 0005
"""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("nodes", sa.Column("instance", sa.String(64), nullable=True))
    with op.batch_alter_table("allocations") as allocations:
        allocations.drop_constraint("fk_allocations_node_id", type_="foreignkey")


def downgrade() -> None:
    op.drop_column("nodes", "instance")
    _name_all_nodes(op.get_bind())
    with op.batch_alter_table("allocations") as allocations:
        allocations.create_foreign_key("fk_allocations_node_id", "nodes", ["node_id"], ["id"])


def _name_all_nodes(connection: sa.Connection) -> None:
    """The key needs a row for every node that ever held something, also for those that were removed."""
    nodes = sa.table(
        "nodes",
        sa.column("id"),
        sa.column("report", sa.JSON()),
        sa.column("seen_at", sa.DateTime(timezone=True)),
    )
    held = sa.table("allocations", sa.column("node_id"))
    unknown = sa.select(held.c.node_id).distinct().where(held.c.node_id.not_in(sa.select(nodes.c.id)))
    gone = datetime.fromtimestamp(0, UTC)
    for node_id in connection.execute(unknown).scalars().all():
        report = {"hostname": node_id, "version": ""}
        connection.execute(nodes.insert().values(id=node_id, report=report, seen_at=gone))

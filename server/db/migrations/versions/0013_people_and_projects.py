"""people, and projects that own everything

Each person's key gets a person: an administrator's an administrator, a member's a member of the project
`default`, to which everything belongs from now on. Keys go on working.

Revision ID: 0013
Revises: 0012
"""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_OWNED = ("jobs", "datasets")
_MADE_BY_PEOPLE = ("jobs", "replays", "engines")
# A key's person has its id with another beginning, in both directions.
_PERSON_OF = "'person-' || substr({column}, 5)"
_KEY_OF = "'key-' || substr({column}, 8)"
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    _create_tables()
    _fill_tables()
    _give_to_projects()
    for table in _MADE_BY_PEOPLE:
        _refer(table, "created_by", "people", _PERSON_OF)
    _give_sessions_to_people()


def downgrade() -> None:
    with op.batch_alter_table("browser_sessions") as batch:
        batch.drop_index("ix_browser_sessions_person_id")
        batch.drop_constraint("fk_browser_sessions_person_id", type_="foreignkey")
        batch.drop_column("person_id")
    _forget_people_without_keys()
    for table in _MADE_BY_PEOPLE:
        _refer(table, "created_by", "api_keys", _KEY_OF)
    with op.batch_alter_table("datasets") as batch:
        batch.drop_index("uq_datasets_content")
        batch.drop_constraint("fk_datasets_created_by", type_="foreignkey")
        batch.drop_column("created_by")
        batch.drop_column("sha256")
    for table in _OWNED:
        with op.batch_alter_table(table) as batch:
            batch.drop_index(f"ix_{table}_project_id")
            batch.drop_constraint(f"fk_{table}_project_id", type_="foreignkey")
            batch.drop_column("project_id")
    with op.batch_alter_table("api_keys") as batch:
        batch.drop_index("ix_api_keys_person_id")
        for column in ("person_id", "project_id"):
            batch.drop_constraint(f"fk_api_keys_{column}", type_="foreignkey")
            batch.drop_column(column)
    for table in ("memberships", "people", "projects"):
        op.drop_table(table)


def _create_tables() -> None:
    op.create_table(
        "projects",
        sa.Column("id", sa.String(63), nullable=False),
        sa.Column("title", sa.String(120), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_projects"),
    )
    op.create_table(
        "people",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("email", sa.String(254), nullable=True),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("cluster_role", sa.String(16), nullable=True),
        sa.Column("default_project", sa.String(63), nullable=True),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(["default_project"], ["projects.id"], name="fk_people_default_project"),
        sa.PrimaryKeyConstraint("id", name="pk_people"),
        sa.UniqueConstraint("email", name="uq_people_email"),
    )
    op.create_table(
        "memberships",
        sa.Column("person_id", sa.String(32), nullable=False),
        sa.Column("project_id", sa.String(63), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name="fk_memberships_person_id"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_memberships_project_id"),
        sa.PrimaryKeyConstraint("person_id", "project_id", name="pk_memberships"),
    )
    op.create_index("ix_memberships_project_id", "memberships", ["project_id"])
    with op.batch_alter_table("api_keys") as batch:
        batch.add_column(sa.Column("person_id", sa.String(32), nullable=True))
        batch.add_column(sa.Column("project_id", sa.String(63), nullable=True))
        batch.create_foreign_key("fk_api_keys_person_id", "people", ["person_id"], ["id"])
        batch.create_foreign_key("fk_api_keys_project_id", "projects", ["project_id"], ["id"])
    op.create_index("ix_api_keys_person_id", "api_keys", ["person_id"])


def _fill_tables() -> None:
    projects = sa.table("projects", sa.column("id"), sa.column("title"), sa.column("created_at", _TIME))
    op.execute(projects.insert().values(id="default", title="Default", created_at=datetime.now(UTC)))
    person = _PERSON_OF.format(column="id")
    op.execute(
        "INSERT INTO people (id, name, kind, cluster_role, default_project, active, created_at) "
        f"SELECT {person}, name, 'person', CASE role WHEN 'admin' THEN 'admin' END, 'default', "
        "revoked_at IS NULL, created_at FROM api_keys WHERE role <> 'node'"
    )
    op.execute(f"UPDATE api_keys SET person_id = {person} WHERE role <> 'node'")
    op.execute(
        "INSERT INTO memberships (person_id, project_id, role) "
        "SELECT id, 'default', 'member' FROM people WHERE cluster_role IS NULL"
    )


def _give_to_projects() -> None:
    for table in _OWNED:
        with op.batch_alter_table(table) as batch:
            batch.add_column(sa.Column("project_id", sa.String(63), nullable=True))
            batch.create_foreign_key(f"fk_{table}_project_id", "projects", ["project_id"], ["id"])
        op.execute(f"UPDATE {table} SET project_id = 'default'")
        with op.batch_alter_table(table) as batch:
            batch.alter_column("project_id", existing_type=sa.String(63), nullable=False)
        op.create_index(f"ix_{table}_project_id", table, ["project_id"])
    with op.batch_alter_table("datasets") as batch:
        batch.add_column(sa.Column("sha256", sa.String(64), nullable=True))
        batch.add_column(sa.Column("created_by", sa.String(32), nullable=True))
        batch.create_foreign_key("fk_datasets_created_by", "people", ["created_by"], ["id"])
    rows = sa.table("datasets", sa.column("id"), sa.column("sha256"), sa.column("artefact", sa.JSON()))
    for dataset_id, artefact in op.get_bind().execute(sa.select(rows.c.id, rows.c.artefact)).fetchall():
        op.execute(rows.update().where(rows.c.id == dataset_id).values(sha256=artefact["sha256"]))
    with op.batch_alter_table("datasets") as batch:
        batch.alter_column("sha256", existing_type=sa.String(64), nullable=False)
    op.create_index("uq_datasets_content", "datasets", ["project_id", "sha256"], unique=True)


def _refer(table: str, column: str, to: str, translated: str) -> None:
    """Let the column refer to the rows of another table, with translated ids."""
    name = f"fk_{table}_{column}"
    with op.batch_alter_table(table) as batch:
        batch.drop_constraint(name, type_="foreignkey")
    op.execute(f"UPDATE {table} SET {column} = {translated.format(column=column)}")
    with op.batch_alter_table(table) as batch:
        batch.create_foreign_key(name, to, [column], ["id"])


def _give_sessions_to_people() -> None:
    with op.batch_alter_table("browser_sessions") as batch:
        batch.add_column(sa.Column("person_id", sa.String(32), nullable=True))
        batch.alter_column("key_id", existing_type=sa.String(32), nullable=True)
        batch.create_foreign_key("fk_browser_sessions_person_id", "people", ["person_id"], ["id"])
    op.execute(f"UPDATE browser_sessions SET person_id = {_PERSON_OF.format(column='key_id')}")
    with op.batch_alter_table("browser_sessions") as batch:
        batch.alter_column("person_id", existing_type=sa.String(32), nullable=False)
    op.create_index("ix_browser_sessions_person_id", "browser_sessions", ["person_id"])


def _forget_people_without_keys() -> None:
    """Older versions know keys alone: what a person without one made goes to a revoked key of the name."""
    op.execute("DELETE FROM browser_sessions WHERE key_id IS NULL")
    with op.batch_alter_table("browser_sessions") as batch:
        batch.alter_column("key_id", existing_type=sa.String(32), nullable=False)
    key = _KEY_OF.format(column="people.id")
    op.execute(
        "INSERT INTO api_keys (id, name, role, key_sha256, created_at, revoked_at) "
        f"SELECT {key}, name, 'member', people.id, created_at, created_at FROM people "
        f"WHERE {key} NOT IN (SELECT id FROM api_keys)"
    )
    op.execute("UPDATE api_keys SET role = 'member' WHERE role NOT IN ('admin', 'member', 'node')")

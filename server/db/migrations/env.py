"""Alembic's entry point: runs the revisions on the connection from server.db.migrate or, for the `alembic`
command, on the database in the server's settings."""

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import Connection

from server.db.models import Base, UtcDateTime
from server.db.session import Database
from server.settings import Settings


def _render_type(kind: str, value: Any, _context: AutogenContext) -> str | Literal[False]:
    """Revisions are self-contained: they use the plain type, not this project's class."""
    if kind == "type" and isinstance(value, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    return False


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_type=True,
        transactional_ddl=True,  # also on SQLite, where server.db.session begins its transactions itself
        render_as_batch=connection.dialect.name == "sqlite",
        render_item=_render_type,
    )
    with context.begin_transaction():
        context.run_migrations()


handed_over = context.config.attributes.get("connection")
if handed_over is not None:
    _run(handed_over)
else:
    database = Database(Settings().database_url)
    with database.rebuild() as own:
        _run(own)
    database.close()

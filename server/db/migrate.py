"""Bring a database to the newest revision, one server at a time."""

from functools import cache

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text

from powermean.errors import PowermeanError
from server.db.session import Database

_POSTGRES_LOCK = 0x706D_0001  # advisory lock, so that replicas that start together take turns


class NewerDatabaseError(PowermeanError):
    """The database is at a revision that this version does not know."""


def alembic_config() -> Config:
    """Alembic's configuration, without an ini file."""
    config = Config()
    # A package, not a path: "%" would mean something in a path.
    config.set_main_option("script_location", "server.db:migrations")
    config.set_main_option("path_separator", "os")
    return config


def migrate(database: Database) -> None:
    """Run the migrations that are missing, if any, in one transaction and under a lock.

    Raises NewerDatabaseError.
    """
    config = alembic_config()
    with database.rebuild() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _POSTGRES_LOCK})
        _known_revision(connection)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def pending_revision(database: Database) -> str | None:
    """The newest revision, if the database does not have it; otherwise None. Raises NewerDatabaseError."""
    head = _scripts().get_current_head()
    with database.engine.connect() as connection:
        return None if _known_revision(connection) == head else head


def current_revision(database: Database) -> str | None:
    """The database's revision; None before the first one. Raises NewerDatabaseError."""
    with database.engine.connect() as connection:
        return _known_revision(connection)


def check_revision(revision: str) -> None:
    """Raises NewerDatabaseError for a revision that this version does not know."""
    scripts = _scripts()
    try:
        scripts.get_revision(revision)
    except CommandError as error:
        raise NewerDatabaseError(
            f"the database is of a newer version of powermean (revision {revision}) than this one "
            f"({scripts.get_current_head()}): upgrade powermean, or restore a backup from before"
        ) from error


def _known_revision(connection: Connection) -> str | None:
    """The database's revision; None before the first one. Raises NewerDatabaseError."""
    current = MigrationContext.configure(connection).get_current_revision()
    check_revision(current or "base")
    return current


@cache
def _scripts() -> ScriptDirectory:
    """The revisions. Reading them runs each one's file."""
    return ScriptDirectory.from_config(alembic_config())

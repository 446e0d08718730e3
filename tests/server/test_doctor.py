"""`python -m server.doctor` with real faults: each is one line that says what to do."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import make_url, text

from powermean.contracts.checks import Check
from server import doctor
from server.db.session import Database
from server.vault.key_file import KeyFile
from tests.support.live_server import listening
from tests.support.service_driver import ServiceDriver


@pytest.fixture(autouse=True)
def settings_here(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("POWERMEAN_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("POWERMEAN_DATABASE_URL", database_url)
    monkeypatch.setenv("POWERMEAN_ARTEFACTS_URL", f"file://{tmp_path / 'artefacts'}")
    monkeypatch.setenv("POWERMEAN_SECRETS_DIR", str(tmp_path / "secrets"))
    monkeypatch.setenv("POWERMEAN_REDIS_URL", "redis://127.0.0.1:1/0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("POWERMEAN_PORT", str(probe.getsockname()[1]))


def found(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Check]:
    """The checks by name; of several with one name the worst."""
    code = doctor.main(["--json", *arguments])
    checks = [Check.model_validate_json(one) for one in capsys.readouterr().out.splitlines()]
    assert code == int(any(one.verdict == "failed" for one in checks))
    order = ("ok", "warning", "failed")
    return {one.name: one for one in sorted(checks, key=lambda one: order.index(one.verdict))}


def test_a_server_without_a_fault(service: ServiceDriver, capsys: pytest.CaptureFixture[str]) -> None:
    checks = found(capsys, "--idle")
    disk = {"database folder"} if service.settings.on_sqlite else {"clock"}
    assert {name for name, one in checks.items() if one.verdict == "failed"} == set()
    assert checks.keys() >= {
        "python",
        "packages",
        "settings",
        "database",
        "revision",
        "secrets",
        "port",
        *disk,
    }
    assert "redis" not in checks


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_faults_that_are_named(
    service: ServiceDriver, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets_dir = service.settings.secrets_dir
    (secrets_dir / "secrets.keys").chmod(0o644)
    (secrets_dir / "attempt_token.key").unlink()
    monkeypatch.setenv("POWERMEAN_PUBLIC_URL", "https://localhost:1")
    with service.database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0020'"))
    with socket.create_server(("127.0.0.1", int(os.environ["POWERMEAN_PORT"]))):
        checks = found(capsys)
    assert "no answer from 127.0.0.1:1" in checks["redis"].said
    assert checks["revision"].said.startswith("the database is at 0020, this version needs ")
    assert "server migrate" in (checks["revision"].remedy or "")
    assert checks["secrets"].remedy == f"chmod 600 {secrets_dir / 'secrets.keys'}"
    assert f"process {os.getpid()}" in checks["port"].said
    assert "strangers share its address" in checks["settings"].said
    assert checks["certificate"].verdict == checks["public address"].verdict == "failed"
    with service.database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0999'"))
    assert "upgrade powermean" in found(capsys)["database"].said


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_keys_may_be_a_group_s(service: ServiceDriver, capsys: pytest.CaptureFixture[str]) -> None:
    """Kubernetes gives them to a volume's fsGroup; the server starts with them."""
    for key in service.settings.secrets_dir.glob("*.key*"):
        key.chmod(0o660)
    KeyFile.ensure(service.settings.secrets_dir)
    assert found(capsys, "--idle")["secrets"].verdict == "ok"


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_running_server_of_ours_has_the_port(
    service: ServiceDriver, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(service.app) as url:
        monkeypatch.setenv("POWERMEAN_PORT", url.rpartition(":")[2])
        checks = found(capsys, "--idle")
        service.app.state.connections.draining = True
        (stopping,) = doctor.readiness(url)
    assert "a powermean server listens" in checks["port"].said
    assert checks["running server"].verdict == "failed"
    assert checks["running server"].said.startswith("degraded: redis ")
    assert (stopping.verdict, stopping.said) == ("failed", "not ready: server is about to stop")


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_server_of_ours_on_ipv6_and_an_address_that_is_none(
    service: ServiceDriver, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(service.app, host="::1") as url:
        monkeypatch.setenv("POWERMEAN_HOST", "::1")
        monkeypatch.setenv("POWERMEAN_PORT", url.rpartition(":")[2])
        assert "a powermean server listens" in found(capsys, "--idle")["port"].said
    assert not doctor._answers("http://::1:8700")


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_setting_s_file_that_can_t_be_used(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POWERMEAN_REDIS_URL_FILE", "/run/secrets/redis_url")
    checks = found(capsys)
    assert checks["python"].verdict == "ok"
    assert checks["settings"].said.startswith("POWERMEAN_REDIS_URL and POWERMEAN_REDIS_URL_FILE are both set")


@pytest.mark.postgres
@pytest.mark.parametrize("kind", ["postgres"], indirect=True)
def test_a_wrong_password_and_no_postgres(
    database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(database_url)
    with database.write() as session:
        session.execute(text("CREATE ROLE stranger LOGIN PASSWORD 'right'"))
    database.close()
    for url in (
        make_url(database_url).set(username="nobody-here", password="wrong-secret"),
        make_url("postgresql+psycopg://me:wrong-secret@127.0.0.1:1/nothing"),
    ):
        monkeypatch.setenv("POWERMEAN_DATABASE_URL", url.render_as_string(hide_password=False))
        check = found(capsys, "--idle")["database"]
        assert check.verdict == "failed"
        assert "wrong-secret" not in check.said
        assert "POWERMEAN_DATABASE_URL" in (check.remedy or "")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_wrong_settings_as_the_command_says_them() -> None:
    environment = dict(os.environ) | {"POWERMEAN_PORT": "many", "POWERMEAN_ALLOWED_HOSTS": "*"}
    command = [sys.executable, "-m", "powermean", "doctor", "--server"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "POWERMEAN_PORT: Input should be a valid integer" in done.stdout
    assert "POWERMEAN_ALLOWED_HOSTS: must name hosts" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr

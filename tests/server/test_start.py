"""What the server checks before it takes a request; each failure is one line that says what to do."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError
from sqlalchemy import text

from powermean.artefacts import MARKER
from server.db.migrate import NewerDatabaseError, pending_revision
from server.db.session import Database
from server.settings import Settings
from server.start import CannotStartError, allow_files, bind, prepare
from tests.support.service_driver import ADMIN_KEY, NODE_TOKEN, ServiceDriver
from tests.support.stored_things import full_job, store_of


def settings_for(url: str, folder: Path, **changes: object) -> Settings:
    return Settings(
        database_url=url,
        artefacts_url=f"file://{folder / 'artefacts'}",
        secrets_dir=folder / "secrets",
        **changes,
    )


def test_a_database_that_was_not_migrated_is_refused_with_the_remedy(empty_url: str, tmp_path: Path):
    with pytest.raises(
        CannotStartError, match=r"revision none, .* needs 00\d\d: run `python -m server migrate"
    ):
        prepare(settings_for(empty_url, tmp_path))


@pytest.mark.slow
def test_embedded_servers_migrate_themselves(empty_url: str, tmp_path: Path):
    settings = settings_for(empty_url, tmp_path, migrate=True)
    for _ in range(2):
        prepare(settings)
    database = Database(empty_url)
    assert pending_revision(database) is None
    database.close()


@pytest.mark.parametrize("migrate", [False, True])
def test_a_newer_database_is_told_as_such(database_url: str, tmp_path: Path, migrate: bool):
    database = Database(database_url)
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0099'"))
    database.close()
    with pytest.raises(NewerDatabaseError, match=r"newer version .*0099.*\(00\d\d\): upgrade powermean"):
        prepare(settings_for(database_url, tmp_path, migrate=migrate))


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "gpu-node.example.org"])
def test_nothing_is_exposed_without_names_and_a_key(database_url: str, tmp_path: Path, host):
    with pytest.raises(CannotStartError, match="POWERMEAN_ALLOWED_HOSTS"):
        prepare(settings_for(database_url, tmp_path, host=host))
    with pytest.raises(CannotStartError, match="POWERMEAN_BOOTSTRAP_ADMIN_KEY"):
        prepare(settings_for(database_url, tmp_path, host=host, allowed_hosts="a.example.org"))
    prepare(
        settings_for(
            database_url, tmp_path, host=host, allowed_hosts="a.example.org", bootstrap_admin_key=ADMIN_KEY
        )
    )


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_neither(database_url: str, tmp_path: Path, host):
    prepare(settings_for(database_url, tmp_path, host=host))


def test_a_database_that_is_not_there_is_one_line_without_the_password(tmp_path: Path):
    url = "postgresql+psycopg://me:secret@127.0.0.1:1/nothing"
    with pytest.raises(CannotStartError, match="cannot use the database") as caught:
        prepare(settings_for(url, tmp_path))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["nonsense:secret", "postgres://me:secret@host/name", "sqlite+none:///x", ""])
def test_an_address_that_is_none_is_one_line_without_it(tmp_path: Path, url: str):
    with pytest.raises(CannotStartError, match="POWERMEAN_DATABASE_URL is not") as caught:
        prepare(settings_for(url, tmp_path))
    assert "secret" not in str(caught.value)


def test_a_busy_port_is_one_line():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(
            CannotStartError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"
        ):
            bind(Settings(port=port))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beat_s": 40.0}, "at most half of lease_s"),
        ({"allowed_hosts": "*"}, "must name hosts"),
        ({"allowed_hosts": "pm.example.org:8443"}, "write pm.example.org "),
        ({"allowed_hosts": "a.example.org, https://pm.example.org/x"}, "write pm.example.org "),
        ({"allowed_hosts": '"pm.example.org"'}, "write pm.example.org "),
        ({"allowed_hosts": 'a.example.org,"pm.example.org"'}, "write pm.example.org "),
        ({"database_url": "'sqlite:///x.db'"}, "in quotes"),
        ({"public_url": "pm.example.org"}, "must look like https://"),
        ({"public_url": "https://pm.example.org/?x=1"}, "must look like https://"),
        ({"public_url": "https://pm.example.org:99999"}, "Port out of range"),
        ({"trusted_proxies": "proxy.example.org"}, "write an address such as"),
        ({"trusted_proxies": "*"}, "write an address such as"),
        ({"port": 70000}, "65535"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ValidationError, match=message):
        Settings(**changes)


def test_a_server_that_may_have_others_beside_it_drains_before_it_stops():
    postgres = "postgresql+psycopg://me@host/name"
    assert Settings(database_url=postgres).drains_for_s == 5
    assert Settings(database_url=postgres, drain_s=0).drains_for_s == 0
    assert Settings(database_url="sqlite:///x.db").drains_for_s == 0
    assert Settings(database_url="sqlite:///x.db", drain_s=2).drains_for_s == 2


@pytest.mark.parametrize("hosts", ["PM.example.org,[2001:db8::1]", " pm.example.org , [2001:db8::1]"])
def test_hosts_as_people_write_them(hosts):
    settings = Settings(allowed_hosts=hosts, public_url="https://Public.example.org:8443/pm/")
    assert {"pm.example.org", "[2001:db8::1]", "public.example.org"} <= set(settings.hosts)
    assert settings.public_url == "https://Public.example.org:8443/pm"
    assert Settings(public_url="").public_url is None


def test_the_soft_limit_of_open_files_is_raised_and_the_hard_one_respected(monkeypatch):
    limits = [1024, 4096]
    monkeypatch.setattr("resource.getrlimit", lambda which: tuple(limits))
    monkeypatch.setattr("resource.setrlimit", lambda which, new: limits.__setitem__(slice(None), new))
    allow_files(2000)
    assert limits == [3000, 4096]
    allow_files(100)
    assert limits == [3000, 4096]
    with pytest.raises(CannotStartError, match="POWERMEAN_MAX_CONNECTIONS to 3096 or less"):
        allow_files(4000)
    limits[1] = 1024
    with pytest.raises(CannotStartError, match="limit is 1024: raise it"):
        allow_files(2000)


def environment_of(folder: Path, port: int) -> dict[str, str]:
    """That of a server which keeps all it has in the folder."""
    return os.environ | {
        "POWERMEAN_DATABASE_URL": f"sqlite:///{folder / 'new' / 'server.db'}",
        "POWERMEAN_ARTEFACTS_URL": f"file://{folder / 'artefacts'}",
        "POWERMEAN_SECRETS_DIR": str(folder / "secrets"),
        "POWERMEAN_REDIS_URL": "redis://127.0.0.1:1/0",
        "POWERMEAN_PORT": str(port),
        "POWERMEAN_MIGRATE": "1",
        "POWERMEAN_BOOTSTRAP_ADMIN_KEY": ADMIN_KEY,
        "POWERMEAN_BOOTSTRAP_NODE_TOKEN": NODE_TOKEN,
    }


@pytest.mark.slow
@pytest.mark.integration
def test_what_keeps_the_program_from_starting_is_one_line(tmp_path: Path):
    environment = environment_of(tmp_path, port=0) | {"POWERMEAN_BOOTSTRAP_NODE_TOKEN": ADMIN_KEY}
    command = [sys.executable, "-m", "server"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert (
        last == "cannot start: the key in POWERMEAN_BOOTSTRAP_NODE_TOKEN already exists with the role admin"
    )
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
@pytest.mark.integration
def test_serving_from_start_to_stop(tmp_path: Path):
    """The program itself: it migrates, answers, refuses a second one on its port, and stops when told to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = environment_of(tmp_path, port)
    command = [sys.executable, "-m", "server"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stderr=log)
    try:
        await_health(f"http://127.0.0.1:{port}", server)
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        answer = httpx.get(f"http://127.0.0.1:{port}/v1/jobs", headers=headers, trust_env=False)
        assert answer.json() == {"items": [], "next": None}
        second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert second.returncode == 1
        assert second.stderr.count("\n") == 1
        assert "Address already in use" in second.stderr
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) in (0, -signal.SIGTERM)
    finally:
        server.kill()
        server.wait(10)


def await_health(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert server.poll() is None, "the server ended early"
        try:
            if httpx.get(f"{url}/healthz", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_where_the_store_s_disk_is_not_mounted_no_new_store_is_made(service: ServiceDriver, tmp_path: Path):
    full_job(service)
    store = store_of(service).folder
    assert store is not None
    store.rename(tmp_path / "elsewhere")
    with pytest.raises(CannotStartError, match=r"is empty, and the database names objects in it.*mount"):
        prepare(service.settings)
    assert not store.exists()
    (tmp_path / "elsewhere").rename(store)
    (store / MARKER).unlink()  # of a version before the marker
    prepare(service.settings)
    assert (store / MARKER).exists()

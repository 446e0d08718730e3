"""What stands between a machine and its service is told in one clear line, before anything is started."""

import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from sqlalchemy import make_url

from powermean.artefacts import ArtefactStore
from powermean.cli import embedded
from powermean.cli.embedded import (
    Embedded,
    EmbeddedError,
    choose_port,
    make_home,
    require_packages,
    require_space,
    secret,
)
from powermean.client import Client
from powermean.home import Home


def test_a_busy_port_is_told_with_the_remedy_or_passed_over() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(EmbeddedError, match=f"Port {port} is in use: .*--port"):
            choose_port(port, or_next=False)
        assert choose_port(port, or_next=True) > port


def test_a_full_disk_is_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match=r"GiB are free in .* make room"):
        require_space(tmp_path, 2**60)


def test_a_missing_package_is_told_with_the_remedy() -> None:
    with pytest.raises(EmbeddedError, match="no_such_package is missing: install it"):
        require_packages([("no_such_package", "install it")])


def test_a_second_service_is_told_who_holds_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "FREE_BYTES", 0)
    monkeypatch.setattr(embedded, "require_space", lambda folder: None)
    first, second = Embedded(Home(tmp_path)), Embedded(Home(tmp_path))
    first.url = "http://127.0.0.1:1"
    first._take_lock()
    first._note_holder()
    try:
        with pytest.raises(EmbeddedError, match=r"already runs in .*process \d+, http://127.0.0.1:1"):
            second.start()
    finally:
        first.stop()
    second._take_lock()
    second.stop()


@pytest.mark.parametrize("name", ["b[1]", "what?a", "50% off", "a::b", "x#y &c"])
def test_everything_lies_in_the_home_whatever_its_name(tmp_path: Path, name: str) -> None:
    """Server and worker are told places as URLs: each reads back the same path."""
    home = Home(tmp_path / name)
    make_home(home)
    (_, server, worker) = Embedded(home)._programs(8700)
    assert make_url(server.environment["POWERMEAN_DATABASE_URL"]).database == str(home.database)
    store = ArtefactStore(worker.environment["POWERMEAN_ARTEFACTS_URL"])
    ref = store.put_bytes("jobs/a/model", "config.json", b"{}")
    assert store.local_path(ref) == home.artefacts / ref.key
    assert store.list("jobs/a/model") == (ref,)
    store.delete_prefix("jobs/a")
    assert not store.exists(ref)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_home_is_its_owners_alone(tmp_path: Path) -> None:
    new, old, shared = (Home(tmp_path / name) for name in ("new", "old", "shared"))
    old.secrets.mkdir(parents=True)  # an earlier version's
    shared.folder.mkdir()
    for folder in (old.folder, shared.folder):
        folder.chmod(0o755)
    for home in (new, old, shared):
        make_home(home)
    modes = [home.folder.stat().st_mode & 0o777 for home in (new, old, shared)]
    assert modes == [0o700, 0o700, 0o755]  # the last one may be a folder like /tmp
    assert shared.logs.stat().st_mode & 0o077 == 0


def test_a_home_that_cannot_be_made_is_told_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedError, match=r"Not a directory.* set POWERMEAN_HOME"):
        make_home(Home(tmp_path / "file" / "home"))
    with pytest.raises(EmbeddedError, match="not UTF-8: set POWERMEAN_HOME"):
        make_home(Home(tmp_path / os.fsdecode(b"\xff")))


def test_secrets_are_made_once_and_are_the_owners_alone(tmp_path: Path) -> None:
    made = secret(tmp_path / "admin.key", "pm_")
    assert made.startswith("pm_")
    assert len(made) == 46
    assert secret(tmp_path / "admin.key", "pm_") == made
    assert (tmp_path / "admin.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("status", ["ready", "degraded"])
def test_a_service_has_started_once_no_part_of_it_fails(status: str) -> None:
    client = SimpleNamespace(
        ready=lambda: SimpleNamespace(status=status),
        nodes=lambda: SimpleNamespace(items=[SimpleNamespace(alive=True)]),
    )
    assert embedded.ready(cast("Client", client)) is (status == "ready")

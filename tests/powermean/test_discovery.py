"""How a client finds its service, and says which it took."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from powermean import Client, discovery
from powermean.cli import terminal
from powermean.cli.embedded import free_port
from powermean.discovery import (
    DEFAULT_URL,
    ServiceStartingError,
    find_service,
    registered,
    running_homes,
)
from powermean.home import Home, NoServerError


@pytest.fixture(autouse=True)
def _a_user_without_services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("POWERMEAN_URL", "POWERMEAN_API_KEY", "POWERMEAN_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")


def home(folder: Path, port: int) -> Home:
    """The folder of a service that has started."""
    made = Home(folder)
    made.secrets.mkdir(parents=True)
    made.admin_key.write_text(f"pm_{port}\n")
    made.address.write_text(f"http://127.0.0.1:{port}\n")
    return made


def test_the_environment_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERMEAN_URL", "http://127.0.0.1:9999/")
    monkeypatch.setenv("POWERMEAN_API_KEY", "pm_mine")
    with registered(home(tmp_path / "home", 9001)):
        assert Client().url == "http://127.0.0.1:9999"
        assert find_service().key == "pm_mine"


def test_a_services_own_key_goes_to_no_other_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERMEAN_HOME", str(home(tmp_path / "home", 9001).folder))
    assert find_service("http://127.0.0.1:9001").key == "pm_9001"
    with pytest.raises(NoServerError, match="needs a key"):
        find_service("https://team.example")


def test_the_folders_own_service_comes_before_others(tmp_path: Path) -> None:
    home(tmp_path / "elsewhere" / ".powermean", 9001)
    with registered(home(tmp_path / "home", 9002)):
        found = find_service()
    assert (found.url, found.key, found.elsewhere) == ("http://127.0.0.1:9001", "pm_9001", None)


def test_from_any_folder_the_running_service_is_found_and_named(tmp_path: Path) -> None:
    there = home(tmp_path / "home", 9001)
    with registered(there):
        found = find_service()
        assert (found.url, found.key, found.elsewhere) == ("http://127.0.0.1:9001", "pm_9001", there.folder)
    assert running_homes() == []


def test_of_several_services_one_has_to_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with registered(home(tmp_path / "one", 9001)):
            entry = tmp_path / "state" / "powermean" / "services" / f"{os.getpid()}.json"
            second = entry.with_name(f"{other.pid}.json")
            second.write_text(entry.read_text().replace("/one", "/two"))
            home(tmp_path / "two", 9002)
            with pytest.raises(NoServerError) as told:
                find_service()
            assert f"{tmp_path}/one (http://127.0.0.1:9001)" in str(told.value)
            assert f"{tmp_path}/two (http://127.0.0.1:9002)" in str(told.value)
            assert told.value.remedy == "Set POWERMEAN_HOME to one's folder."
            monkeypatch.setenv("POWERMEAN_HOME", str(tmp_path / "two"))
            assert find_service().url == "http://127.0.0.1:9002"
            monkeypatch.delenv("POWERMEAN_HOME")
            other.communicate(b"\n")
            assert find_service().url == "http://127.0.0.1:9001"  # the other one has ended
    finally:
        other.kill()
        other.wait()
    assert not second.exists()


def test_a_service_that_is_starting_is_no_stopped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = home(tmp_path / "home", 9001)
    there.address.unlink()
    with there.lock.open("w") as lock, registered(there):
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ServiceStartingError, match=f"the service in {there.folder} is starting"):
            find_service()
        monkeypatch.setenv("POWERMEAN_HOME", str(there.folder))
        with pytest.raises(ServiceStartingError):
            find_service()
        monkeypatch.setattr("time.sleep", lambda _: there.address.write_text("http://127.0.0.1:9001"))
        with terminal.connected() as client:
            assert client.url == "http://127.0.0.1:9001"
        there.address.unlink()
        monkeypatch.setattr(terminal, "STARTING_S", -1.0)
        with pytest.raises(typer.Exit), terminal.connected():
            pass
    with pytest.raises(NoServerError, match="is not running"):
        find_service()


def test_a_key_alone_goes_to_the_default_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERMEAN_API_KEY", "pm_mine")
    assert find_service().url == DEFAULT_URL


def test_without_a_service_there_is_one_clear_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "DEFAULT_URL", f"http://127.0.0.1:{free_port()}")  # nothing is there
    with pytest.raises(NoServerError) as told:
        find_service()
    assert "POWERMEAN_API_KEY" in str(told.value.remedy)
    assert "login --server" in str(told.value.remedy)


def test_a_service_that_does_not_run_is_named_and_its_key_sent_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = home(tmp_path / "home", 9001)
    stopped.address.unlink()
    monkeypatch.setenv("POWERMEAN_HOME", str(stopped.folder))
    with registered(home(tmp_path / "other", 9002)), pytest.raises(NoServerError, match="is not running"):
        find_service()
    monkeypatch.setenv("POWERMEAN_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(NoServerError, match="no service has run in"):
        find_service()


@pytest.mark.parametrize("state", ["file", "~/nowhere"])
def test_a_user_without_a_folder_for_it_runs_a_service_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", state if state.startswith("~") else str(tmp_path / state))
    with registered(home(tmp_path / "home", 9001)):
        assert running_homes() == []
    assert not Path("~").exists()

"""The file with the servers that the command line is signed in to."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from powermean.discovery import find_service
from powermean.servers import (
    SavedServer,
    SavedServers,
    ServersFileError,
    read_servers,
    servers_file,
    write_servers,
)

LAB = SavedServer(url="https://lab.example", key="pm_lab", key_id="key-1", person="Ada")
HOME = SavedServer(
    url="https://home.example:8700",
    key="pm_home",
    key_id="key-2",
    person="ada",
    expires_at=datetime(2027, 1, 1, tzinfo=UTC),
)
BOTH = SavedServers().adding("lab", LAB).adding("home", HOME)


@pytest.fixture(autouse=True)
def _a_user_with_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("POWERMEAN_URL", "POWERMEAN_API_KEY", "POWERMEAN_HOME", "POWERMEAN_SERVER"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def test_what_is_written_is_read_again_and_is_nobody_elses() -> None:
    assert read_servers() == SavedServers()
    previous = os.umask(0)
    try:
        write_servers(BOTH)
    finally:
        os.umask(previous)
    assert read_servers() == BOTH
    assert servers_file().stat().st_mode & 0o777 == 0o600
    assert servers_file().parent.stat().st_mode & 0o777 == 0o700
    assert [file.name for file in servers_file().parent.iterdir()] == ["servers.json"]


def test_a_file_that_others_could_read_is_theirs_no_longer_after_the_next_write() -> None:
    write_servers(BOTH)
    servers_file().chmod(0o644)
    write_servers(BOTH.without("lab"))
    assert servers_file().stat().st_mode & 0o777 == 0o600


def test_no_key_is_in_what_is_printed_of_it() -> None:
    assert "pm_lab" not in repr(BOTH)
    servers_file().parent.mkdir(parents=True)
    servers_file().write_text('{"servers": {"lab": {"url": 1, "key": "pm_secret"}}}')
    with pytest.raises(ServersFileError) as told:
        read_servers()
    assert "pm_secret" not in str(told.value)
    assert told.value.__cause__ is None


def test_the_last_one_is_the_default_and_leaving_it_makes_another_one_so() -> None:
    assert BOTH.default == "home"
    assert BOTH.without("lab").default == "home"
    assert BOTH.without("home").default == "lab"
    assert BOTH.without("home").without("lab") == SavedServers()


def test_commands_take_the_default_server(monkeypatch: pytest.MonkeyPatch) -> None:
    write_servers(BOTH.without("home"))
    found = find_service()
    assert (found.url, found.key, found.chosen_from_several) == (LAB.url, "pm_lab", False)
    write_servers(BOTH)
    assert find_service().chosen_from_several
    monkeypatch.setenv("POWERMEAN_SERVER", "lab")
    assert (find_service().url, find_service().chosen_from_several) == (LAB.url, False)


def test_a_server_that_is_named_comes_before_the_environment_and_gets_its_own_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_servers(BOTH)
    monkeypatch.setenv("POWERMEAN_URL", "https://other.example")
    monkeypatch.setenv("POWERMEAN_API_KEY", "pm_other")
    assert find_service().key == "pm_other"
    monkeypatch.setenv("POWERMEAN_SERVER", "lab")
    assert (find_service().url, find_service().key) == (LAB.url, "pm_lab")
    monkeypatch.setenv("POWERMEAN_SERVER", "nowhere")
    with pytest.raises(ServersFileError, match="known: home, lab"):
        find_service()


def test_an_address_that_is_known_has_its_key_and_no_other_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    write_servers(BOTH)
    monkeypatch.setenv("POWERMEAN_URL", LAB.url + "/")
    assert find_service().key == "pm_lab"
    monkeypatch.setenv("POWERMEAN_API_KEY", "pm_mine")
    monkeypatch.delenv("POWERMEAN_URL")
    assert find_service().url == "http://127.0.0.1:8700"  # a key alone is for this machine's service

"""Keys are stripped or refused where they enter, and no message quotes one."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from powermean import AsyncClient, Client
from powermean.discovery import find_service
from powermean.keys import MalformedKeyError, clean_key, without_logins
from server.settings import Settings
from worker.settings import NodeSettings

KEY = "pm_0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"
WRAPPED = [f"{KEY}\n", f" {KEY}\t", f'"{KEY}"', f"'{KEY}'\r\n"]
BROKEN = [f"{KEY}\n{KEY}", f"{KEY} {KEY}", f"\N{LEFT DOUBLE QUOTATION MARK}{KEY}", f"{KEY}\0"]


@pytest.mark.parametrize("given", WRAPPED)
def test_what_copying_adds_is_taken_off(given: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert clean_key(given, "it") == KEY
    monkeypatch.setenv("POWERMEAN_API_KEY", given)
    unquoted = given.replace('"', "").replace("'", "")  # the server's settings refuse quotes
    monkeypatch.setenv("POWERMEAN_BOOTSTRAP_ADMIN_KEY", unquoted)
    monkeypatch.setenv("POWERMEAN_NODE_TOKEN", given)
    monkeypatch.setenv("POWERMEAN_ARTEFACTS_URL", f"file://{tmp_path}\n")
    monkeypatch.setenv("POWERMEAN_DATA_DIR", str(tmp_path))
    assert find_service("http://127.0.0.1:1").key == KEY
    bootstrap = Settings().bootstrap_admin_key
    assert bootstrap is not None
    assert bootstrap.get_secret_value() == KEY
    node = NodeSettings.read()
    assert node.node_token.get_secret_value() == KEY
    assert node.artefacts_url == f"file://{tmp_path}"


@pytest.mark.parametrize("given", BROKEN)
def test_what_no_header_can_hold_is_refused_without_the_key(given: str, tmp_path: Path) -> None:
    with pytest.raises(MalformedKeyError, match="the key holds a character") as client:
        Client("http://127.0.0.1:1", given)
    with pytest.raises(MalformedKeyError) as async_client:
        AsyncClient("http://127.0.0.1:1", given)
    with pytest.raises(ValidationError) as server:
        Settings(bootstrap_admin_key=given)
    with pytest.raises(ValidationError) as node:
        NodeSettings(node_token=given, artefacts_url="file:///a", data_dir=tmp_path)
    for error in (client, async_client, server, node):
        assert KEY not in str(error.value)
        assert KEY not in repr(error.value)


def test_a_quoted_key_in_the_settings_is_refused_without_it() -> None:
    with pytest.raises(ValidationError, match="is in quotes") as refused:
        Settings(bootstrap_admin_key=f'"{KEY}"')
    assert KEY not in str(refused.value)


def test_addresses_are_shown_without_their_logins() -> None:
    told = "no answer from sftp://me:p@ss@host/a@b, but from file:///data/me@home and https://host:1/x"
    assert without_logins(told) == told.replace("me:p@ss@", "***@")

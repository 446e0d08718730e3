"""A client finds its server, or is told in one line why not."""

from pathlib import Path

import pytest

from powermean import Client
from powermean.connection import BadAddressError
from powermean.home import Home, NoServerError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("POWERMEAN_HOME", str(tmp_path))
    monkeypatch.delenv("POWERMEAN_URL", raising=False)
    monkeypatch.delenv("POWERMEAN_API_KEY", raising=False)
    return Home.find()


def test_a_home_that_cannot_be_read_is_told_with_the_remedy(home: Home) -> None:
    """Folders stand in for files of somebody else: tests may run as root, who can read everything."""
    home.address.mkdir()
    home.admin_key.mkdir(parents=True)
    with pytest.raises(NoServerError, match=r"server\.url can't be read") as address:
        _ = home.url
    with pytest.raises(NoServerError, match=r"admin\.key can't be read") as key:
        home.key()
    for error in (address, key):
        assert "POWERMEAN_HOME" in (error.value.remedy or "")


def test_an_address_is_stripped_or_refused(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERMEAN_URL", "http://127.0.0.1:8911/\n")
    with Client(key="pm_key") as client:
        assert client.url == "http://127.0.0.1:8911"
    for wrong in ("http://127.0.0.1:89\n11", "127.0.0.1:8911", "ftp://host", "http://"):
        with pytest.raises(BadAddressError, match="is not the address of a server"):
            Client(wrong, "pm_key")

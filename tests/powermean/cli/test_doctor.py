"""What `powermean doctor` looks at, and with which settings."""

import os
from pathlib import Path

import pytest

from powermean.cli import doctor


@pytest.fixture(autouse=True)
def settings_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("POWERMEAN_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("POWERMEAN_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("form", ["", "_FILE"])
def test_the_environment_s_server_and_node(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Compose and Helm set the files alone."""
    assert [place.idle for place in doctor._here()] == [True, True]  # the home's, which does not run
    monkeypatch.setenv(f"POWERMEAN_NODE_TOKEN{form}", "x")
    assert doctor._here() == [doctor.Place("node", {})]
    monkeypatch.setenv(f"POWERMEAN_DATABASE_URL{form}", "x")
    assert doctor._here() == [doctor.Place("server", {}), doctor.Place("node", {})]


def test_a_place_s_own_settings_come_before_the_environment_s_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERMEAN_REDIS_URL_FILE", "/nowhere")
    assert doctor._environment({"POWERMEAN_REDIS_URL": "redis://here"}) == {
        name: text for name, text in os.environ.items() if name != "POWERMEAN_REDIS_URL_FILE"
    } | {"POWERMEAN_REDIS_URL": "redis://here"}

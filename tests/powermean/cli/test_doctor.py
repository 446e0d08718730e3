"""What `powermean doctor` looks at, and with which settings."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from powermean.cli import doctor
from powermean.cli.main import app


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


SAYS = """print('{"name": "python", "verdict": "ok", "said": "3.11"}', flush=True)\n"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("then", "said"),
    [
        ("import time; time.sleep(60)", "has said nothing for 3 s"),
        ("raise RuntimeError('no luck')", "broke off: RuntimeError: no luck"),
        (
            "import sys, time; from powermean.checks import tell\n"
            "sys.exit(tell('server', [('mount', lambda: time.sleep(60))], True, {'mount': 0.1}))",
            "mount: no answer within 0.1 s",
        ),
    ],
)
def test_a_program_that_hangs_or_breaks_off_keeps_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str, said: str
) -> None:
    (tmp_path / "odd_doctor.py").write_text(SAYS + then)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path.cwd()}")
    monkeypatch.setitem(doctor.MODULES, "server", "odd_doctor")
    monkeypatch.setattr(doctor, "SILENT_S", 3.0 if "has said" in said else 30.0)
    done = CliRunner().invoke(app, ["doctor", "--server"])
    assert done.exit_code == 1
    assert "ok       python: 3.11" in done.stdout
    assert said in done.stdout
    assert "1 failed, 0 warnings" in done.stdout

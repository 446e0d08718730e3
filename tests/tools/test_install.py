"""Which environment is set up, and when there is nothing to do."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools import install


@pytest.mark.parametrize("words", [[], ["serve"], ["run", "tpu"], ["run", "cpu", "more"]])
def test_what_it_does_not_know_it_names(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert install.main(words) == 1
    assert "server|run|run-vllm|test|test-vllm [cpu|cuda]" in capsys.readouterr().err


def test_an_environment_is_for_a_purpose_on_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "VENV", tmp_path)
    install.stamp("run").write_text(install.fingerprint("cpu"))
    assert install.installed_for("run", "cpu")
    assert install.installed_for("server", "cpu")  # less than that
    assert not install.installed_for("run-vllm", "cpu")
    assert not install.installed_for("run", "cuda")
    assert install.main(["server", "cpu"]) == 0


def test_the_image_with_gpus_is_built_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(install, "run", lambda command, **_: commands.append([str(word) for word in command]))
    install.install_python("run-vllm", "cuda")
    assert any(word.endswith("constraints/cuda.txt") for word in commands[0])
    assert commands[0][-1].endswith("[trainer,vllm-cuda]")
    commands.clear()
    install.install_python("server", "cpu")
    assert [command[-1] for command in commands] == [str(install.ROOT)]  # no model, no PyTorch


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment of its own, without pip."""
    monkeypatch.setattr(install, "VENV", tmp_path / "venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", install.VENV], check=True)
    return install.VENV


@pytest.mark.slow
def test_an_environment_that_was_begun_or_is_none_is_made_anew(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-written pip can be imported; without its settings an environment is the system's Python."""
    pip = next(small.glob("lib/python*/site-packages")) / "pip"
    pip.mkdir()
    assert not install.works()
    whole = pip / "_internal" / "commands" / "install.py"
    whole.parent.mkdir(parents=True)
    whole.touch()
    assert install.works()
    (small / "pyvenv.cfg").unlink()
    assert not install.works()

    commands: list[list[str]] = []
    monkeypatch.setattr(install, "run", lambda command, **_: commands.append([str(word) for word in command]))
    install.make_venv()
    assert not small.exists()
    assert commands[0][1:] == ["-m", "venv", str(small)]


def test_a_newer_pip_is_wanted_and_not_needed(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_venv(command: list[object], **_: object) -> None:
        if "venv" not in command:
            raise subprocess.CalledProcessError(1, command)  # type: ignore[arg-type]

    monkeypatch.setattr(install, "run", only_venv)
    install.make_venv()


def test_what_cannot_be_imported_ends_the_installation_but_for_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(command: list[object], **_: object) -> None:
        if broken in str(command[-1]):
            raise subprocess.CalledProcessError(1, command, stderr=b"no such thing")  # type: ignore[arg-type]

    monkeypatch.setattr(install, "run", fails)
    broken = "vllm"
    install.compile_what_is_used("run-vllm")
    broken = "trainer"
    with pytest.raises(subprocess.CalledProcessError):
        install.compile_what_is_used("run-vllm")

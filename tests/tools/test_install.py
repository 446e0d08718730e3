"""Which environment is set up, and when there is nothing to do."""

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

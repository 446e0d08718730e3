"""`powermean fit` says whether a job fits, what takes the memory, and what would make it smaller."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny_model import tiny_spec
from trainer.preflight import fit

GPU = {"resources": {"gpus": 1}}


@pytest.fixture(autouse=True)
def _roots(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERMEAN_MODEL_ROOTS", str(tiny_folder.parent))
    monkeypatch.setenv("POWERMEAN_DATA_DIR", str(tmp_path / "node"))


@pytest.fixture
def file(tiny_folder: Path, tmp_path: Path) -> Path:
    return written(tmp_path, tiny_folder)


def written(folder: Path, tiny_folder: Path, **changes: object) -> Path:
    path = folder / "job.json"
    path.write_text(json.dumps(tiny_spec(tiny_folder.name) | changes))
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["fit", *map(str, arguments)])
    return fit.main()


@pytest.mark.slow
def test_a_job_that_fits(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, file) == 0
    said = capsys.readouterr().out
    assert said.startswith("job.json: fits\n")
    for part in ("weights", "gradients", "AdamW's moments", "activations", "output layer", "the node has"):
        assert part in said
    assert "prompts of up to 4" in said  # of the packaged data, counted: `a+b=`


@pytest.mark.slow
def test_a_job_that_does_not_fit_is_told_what_helps(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, tiny_folder, **GPU)
    assert run(monkeypatch, file, "--gpu-memory", "0.001") == fit.TOO_LARGE
    said = capsys.readouterr().out
    assert said.startswith("job.json: does not fit\n")
    assert "The trainer would take, with" in said
    assert "model.lora" in said
    assert run(monkeypatch, file, "--gpu-memory", "80") == 0


@pytest.mark.slow
def test_a_model_that_is_not_here_on_gpus_that_are_not(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sharded over eight it fits; one GPU can't hold it, nor can eight that have all of it each."""
    known = {"name": "Qwen/Qwen2.5-7B", "dtype": "bfloat16"}
    file = written(tmp_path, tiny_folder, model=known, resources={"gpus": 1})
    there = ("--gpu-memory", 80, "--prompt-tokens", 100)
    assert run(monkeypatch, file, *there) == fit.TOO_LARGE
    assert run(monkeypatch, file, *there, "--gpus", 8) == 0
    said = capsys.readouterr().out
    assert "sharded over 8 ranks" in said
    assert re.search(r"host's memory, to load the model +28\.4 GiB  on the first node", said)
    assert run(monkeypatch, file, *there, "--gpus", 8, "--nodes", 2, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ranks"], found["shards"]) == (16, 8)
    assert found["parts"]["gathered"] > 0


@pytest.mark.slow
def test_as_json_it_has_the_bytes(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, file, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is True
    assert found["trainer"] == sum(found["parts"].values()) < found["memory"]
    assert {"change", "trainer"} == set(found["changes"][0])


def test_what_cannot_be_known_is_an_error_with_a_remedy(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded = written(
        tmp_path, tiny_folder, data={"kind": "jsonl", "dataset": "0" * 32}, reward={"kind": "exact_match"}
    )
    assert run(monkeypatch, uploaded) == 2
    assert "remedy: give --prompt-tokens" in capsys.readouterr().err
    assert run(monkeypatch, uploaded, "--prompt-tokens", 10) == 0
    assert run(monkeypatch, tmp_path / "nothing.yaml") == 2


@pytest.mark.slow
def test_the_command_runs_it_and_gives_back_its_status(file: Path) -> None:
    command = [sys.executable, "-m", "powermean", "fit", str(file)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("job.json: fits\n")

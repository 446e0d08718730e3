"""However a run ends, its last record says how, in a typed error that people can act on."""

import json
import time
from pathlib import Path

import pytest
import torch

from powermean.artefacts import ArtefactStoreFullError, ArtefactStoreUnavailableError
from powermean.contracts.attempts import EngineStart, JobError
from rollout.client import EngineUnreachableError
from tests.support.attempts import Stage
from tests.support.fake_engine import FakeEngine
from trainer import run
from trainer.engine_connection import Connection, engine_url, publisher
from trainer.failures import TrainingError, failed
from trainer.policy.loading import load_policy, make_policy
from worker.attempt_dir import AttemptDir


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (TrainingError("unknown_model", "no", path="model.name"), "unknown_model", False),
        (TrainingError("publish_mismatch", "no", retryable=True), "publish_mismatch", True),
        (MemoryError(), "out_of_memory", False),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "out_of_memory", False),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out_of_memory", False),
        (OSError(28, "No space left on device"), "disk_full", True),
        (EngineUnreachableError("http://127.0.0.1:1", "refused"), "engine_unreachable", True),
        (ArtefactStoreFullError("no space"), "artefact_store_full", False),
        (ArtefactStoreUnavailableError("no answer"), "artefact_store_unavailable", True),
        (ZeroDivisionError("division by zero"), "trainer_error", False),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)[:30]),
)
def test_failures_are_typed(error: Exception, code: str, retryable: bool) -> None:
    finish = failed(error)
    assert finish.outcome == "failed"
    assert finish.error is not None
    assert finish.error.code == code
    assert finish.retryable is retryable
    assert finish.error.message


def test_an_engine_that_never_starts_is_a_named_error(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(TrainingError) as caught:
        engine_url(AttemptDir(tmp_path), timeout_s=0.2)
    assert caught.value.error.code == "engine_unreachable"
    assert caught.value.retryable
    assert time.monotonic() - started < 5
    (tmp_path / "engine.json").write_text(json.dumps({"url": "http://127.0.0.1:9"}))
    assert engine_url(AttemptDir(tmp_path), timeout_s=0.2) == "http://127.0.0.1:9"


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_people_are_told_how_long_the_engine_has_been_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("trainer.engine_connection.time", Clock())
    with pytest.raises(TrainingError):
        engine_url(AttemptDir(tmp_path), timeout_s=61.0, tell=said.append, tell_every_s=15.0)
    seconds = [
        int(text.removeprefix("waiting for the rollout engine, ").split(" s so far")[0]) for text in said
    ]
    assert seconds == [15, 30, 45, 60]
    assert all(len(text) <= 80 for text in said)  # as much as a phase holds


def test_an_engine_that_could_not_start_says_why(tmp_path: Path) -> None:
    why = JobError(code="vllm_missing", message="no vLLM", path="rollout.engine", remedy="install it")
    (tmp_path / "engine.json").write_text(EngineStart(error=why).model_dump_json())
    with pytest.raises(TrainingError) as caught:
        engine_url(AttemptDir(tmp_path), timeout_s=0.2)
    assert caught.value.error == why
    assert not caught.value.retryable


def test_an_unknown_model_fails_the_attempt_with_its_field(tmp_path: Path, model_root: Path) -> None:
    finish = Stage(tmp_path, model_root).play(
        engine=FakeEngine(model_root / "tiny", tmp_path), model={"folder": "none"}
    )
    assert finish.finish.outcome == "failed"
    assert isinstance(finish.finish.error, JobError)
    assert (finish.finish.error.code, finish.finish.error.path) == ("unknown_model", "model.folder")


def test_a_model_that_is_damaged_is_an_unknown_model(tmp_path: Path, tiny_folder: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in tiny_folder.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(TrainingError) as caught:
        load_policy(broken, device=torch.device("cpu"), dtype=torch.float32, temperature=1.0)
    assert caught.value.error.code == "unknown_model"


def test_weights_go_the_way_that_is_asked_for_or_fits(
    tmp_path: Path, model_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    from tests.support.tiny_model import tiny_config

    policy = make_policy(LlamaForCausalLM(tiny_config()), dtype=torch.float32, temperature=1.0)
    played = Stage(tmp_path, model_root).play(order="cancel")
    claim = run.AttemptDir(played.folder).claim()
    engine = FakeEngine(model_root / "tiny", tmp_path)
    store = run.ArtefactStore("memory://")
    for asked, here, method in (
        ("auto", True, "shm"),
        ("auto", False, "store"),
        ("store", True, "store"),
        ("shm", True, "shm"),
        ("gloo", True, "gloo"),
    ):
        asking = claim.spec.rollout.model_copy(update={"publish": asked})
        told = claim.model_copy(update={"spec": claim.spec.model_copy(update={"rollout": asking})})
        made = publisher(Connection(engine, here), told, policy, store, tmp_path)
        assert made.method == method
    asking = claim.spec.rollout.model_copy(update={"publish": "shm"})
    told = claim.model_copy(update={"spec": claim.spec.model_copy(update={"rollout": asking})})
    with pytest.raises(TrainingError) as caught:
        publisher(Connection(engine, False), told, policy, store, tmp_path)
    assert (caught.value.error.code, caught.value.error.path) == ("no_shared_memory", "rollout.publish")


def test_the_program_needs_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("POWERMEAN_DATA_DIR", raising=False)
    monkeypatch.setattr("sys.argv", ["trainer.run", "--attempt-dir", str(tmp_path)])
    assert run.main() == 2
    assert "POWERMEAN_DATA_DIR" in capsys.readouterr().err

"""However a run ends, its last record says how, in a typed error that people can act on."""

import errno
import io
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from powermean.artefacts import ArtefactStoreFullError, ArtefactStoreUnavailableError
from powermean.contracts.attempts import Claim, EngineStart, JobError
from powermean.contracts.job import JobSpec
from rollout.client import EngineUnreachableError
from tests.support.attempts import Stage
from tests.support.fake_engine import FakeEngine
from tests.support.tiny_model import tiny_spec
from trainer import run
from trainer.engine_connection import Connection, engine_url, publisher
from trainer.failures import TrainingError, failed
from trainer.policy.loading import load_policy, make_policy
from trainer.weights.in_place import InPlaceWriter
from worker.attempt_dir import AttemptDir
from worker.reporter import Reporter
from worker.settings import NodeSettings


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
        (ArtefactStoreFullError("no space"), "artefact_store_full", True),
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


class _FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failure_is_recorded_although_the_disk_of_its_log_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = NodeSettings(artefacts_url=f"file://{tmp_path}", data_dir=tmp_path)
    monkeypatch.setattr("sys.stderr", _FullDisk())
    nowhere = AttemptDir(tmp_path / "none")
    finish = run.run_attempt(nowhere, settings, Reporter(tmp_path), connect=None)  # type: ignore[arg-type]
    assert finish.error is not None
    assert finish.error.code == "trainer_error"


def test_an_engine_that_never_starts_is_a_named_error(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(TrainingError) as caught:
        engine_url(AttemptDir(tmp_path), timeout_s=0.2)
    assert caught.value.error.code == "engine_unreachable"
    assert caught.value.retryable
    assert time.monotonic() - started < 5
    (tmp_path / "engine-0.json").write_text(json.dumps({"url": "http://127.0.0.1:9"}))
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
    (tmp_path / "engine-0.json").write_text(EngineStart(error=why).model_dump_json())
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
    claim = a_claim()
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


def a_claim(**spec: object) -> Claim:
    return Claim(
        attempt_id="job-a.1",
        job_id="job-a",
        number=1,
        spec=JobSpec.model_validate(tiny_spec("tiny", **spec)),
        allocations=(),
        token="secret",
        lease_s=60,
        beat_s=10,
    )


WAYS = ("store", "shm", "in_place")


@pytest.mark.parametrize(
    ("connection", "spec", "why"),
    [
        ({}, {}, None),
        ({"methods": ("store", "shm")}, {}, "it takes none in place"),
        ({"on_this_host": False}, {}, "on another host"),
        ({"shared": True}, {}, "other jobs use it"),
        ({}, {"model": {"folder": "tiny", "dtype": "bfloat16"}}, "training.weights float32"),
        ({}, {"rollout": {"max_staleness": 1}}, "max_staleness is above 0"),
        ({}, {"rollout": {"publish": "shm"}}, ""),
    ],
)
def test_auto_is_in_place_where_that_works_and_the_log_says_why_not(
    tmp_path: Path,
    model_root: Path,
    caplog: pytest.LogCaptureFixture,
    connection: dict[str, Any],
    spec: dict[str, Any],
    why: str | None,
) -> None:
    claim = a_claim(**spec)
    engine = FakeEngine(model_root / "tiny", tmp_path)
    policy = make_policy(engine.model, dtype=torch.float32, temperature=1.0)
    facts = {"on_this_host": True, "methods": WAYS} | connection
    with caplog.at_level(logging.INFO):
        made = publisher(Connection(engine, **facts), claim, policy, run.ArtefactStore("memory://"), tmp_path)
    assert isinstance(made, InPlaceWriter) is (why is None)
    assert (why or "") in caplog.text
    assert ("gets copies" in caplog.text) is bool(why)


def test_in_place_that_was_asked_for_and_can_t_be_is_an_error(
    tmp_path: Path, model_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = a_claim(rollout={"publish": "in_place", "engine": "transformers"})
    engine, store = FakeEngine(model_root / "tiny", tmp_path), run.ArtefactStore("memory://")
    policy = make_policy(engine.model, dtype=torch.float32, temperature=1.0)

    def made(**facts: Any) -> object:
        connection = Connection(engine, **{"on_this_host": True, "methods": WAYS} | facts)
        return publisher(connection, claim, policy, store, tmp_path)

    assert isinstance(made(), InPlaceWriter)
    with pytest.raises(TrainingError, match="it takes none in place") as caught:
        made(methods=("store", "shm"))
    assert (caught.value.error.code, caught.value.error.path) == ("not_in_place", "rollout.publish")
    with monkeypatch.context() as patch:
        patch.setattr("trainer.engine_connection.fits_shared_memory", lambda *_: False)
        with pytest.raises(TrainingError, match="has no room"):
            made()
    policy.model.model.norm.bfloat16()  # type: ignore[union-attr, operator]
    with pytest.raises(TrainingError, match=r"are not all torch\.float32"):
        made()


def test_the_program_needs_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("POWERMEAN_DATA_DIR", raising=False)
    monkeypatch.setattr("sys.argv", ["trainer.run", "--attempt-dir", str(tmp_path)])
    assert run.main() == 2
    assert "POWERMEAN_DATA_DIR" in capsys.readouterr().err

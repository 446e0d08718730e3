"""A restart of the engine's server in mid-run is waited out, and the weights are sent again."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from powermean.artefacts import ArtefactStore
from powermean.contracts.rollout import GenerateRequest, GenerateResponse, PublishRequest, Sampling
from rollout.client import EngineRefused, EngineUnreachable, RolloutError
from trainer.failures import TrainingError
from trainer.publish import WeightWriter
from trainer.steady_engine import SteadyEngine

REQUEST = GenerateRequest(prompts=((1,),), sampling=Sampling(max_new_tokens=1))
ANSWER = GenerateResponse(completions=((),), seconds=0.0)
DIED, STARTING = EngineRefused(503, "engine_died", "gone"), EngineRefused(503, "engine_starting", "soon")
GONE = EngineUnreachable("http://127.0.0.1:1", "refused")
NO_ADAPTER = EngineRefused(409, "adapter_missing", "the job has no adapter here")
EMPTY = EngineRefused(503, "weights_incomplete", "started anew")
BROKEN = EngineRefused(500, "engine_error", "EngineDeadError")


class Scripted:
    """Answers each call by the next line of the script: an error, or None for success."""

    def __init__(self, folder: Path, script: list[RolloutError | None]) -> None:
        self.folder = folder
        self.script: Iterator[RolloutError | None] = iter(script)
        self.calls: list[str] = []

    def generate(self, request: GenerateRequest, timeout_s: float) -> GenerateResponse:
        self._next("generate")
        return ANSWER

    def publish(self, request: PublishRequest, timeout_s: float) -> None:
        assert all((self.folder / file.uri.removeprefix("shm:")).is_file() for file in request.files)
        self._next(f"publish {request.version}")

    def _next(self, call: str) -> None:
        self.calls.append(call)
        if (error := next(self.script)) is not None:
            raise error


class Stage:
    def __init__(self, folder: Path, script: list[RolloutError | None], restart_s: float = 60.0) -> None:
        self.engine = Scripted(folder, script)
        store = ArtefactStore(f"file://{folder}/store")
        self.writer = WeightWriter("job-a", 1, "shm", torch.float32, store, folder, shared_memory=folder)
        self.model = nn.Linear(2, 2)
        self.told: list[str] = []
        self.steady = SteadyEngine(
            self.engine, self.writer, self.model, self.told.append, restart_s=restart_s, poll_s=0.0
        )

    def publish(self, version: int) -> None:
        self.steady.publish(self.writer.write(self.model, version), 1.0)
        self.writer.discard(version)


def test_nothing_is_repeated_where_nothing_is_wrong(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [None, None])
    stage.publish(1)
    assert stage.steady.generate(REQUEST, 1.0) is ANSWER
    assert stage.engine.calls == ["publish 1", "generate"]
    assert stage.told == []


def test_after_a_restart_the_last_version_is_published_again(tmp_path: Path) -> None:
    """Also when it dies once more while it takes the weights."""
    stage = Stage(tmp_path, [None, None, DIED, STARTING, EMPTY, DIED, STARTING, None, None])
    stage.publish(1)
    stage.publish(2)
    assert stage.steady.generate(REQUEST, 1.0) is ANSWER
    again = ["publish 2", "publish 2", "publish 2", "generate"]
    assert stage.engine.calls == ["publish 1", "publish 2", *["generate"] * 3, *again]
    assert "engine_died" in stage.told[0]
    assert list(tmp_path.glob("*.safetensors")) == []


def test_a_shared_service_that_was_started_anew_gets_the_adapter_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [None, GONE, GONE, NO_ADAPTER, None, None])
    stage.steady.comes_back = True
    stage.publish(1)
    assert stage.steady.generate(REQUEST, 1.0) is ANSWER
    assert stage.engine.calls == ["publish 1", *["generate"] * 3, "publish 1", "generate"]


def test_before_the_first_publish_the_models_own_weights_will_do(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [DIED, STARTING, None])
    assert stage.steady.generate(REQUEST, 1.0) is ANSWER
    assert stage.engine.calls == ["generate"] * 3


def test_a_publish_that_broke_off_is_made_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [EngineRefused(504, "engine_timeout", "hung"), STARTING, None, EMPTY, None, None])
    stage.publish(1)
    stage.steady.generate(REQUEST, 1.0)
    assert stage.engine.calls == ["publish 1"] * 3 + ["generate", "publish 1", "generate"]


@pytest.mark.parametrize(
    "error",
    [
        EngineRefused(503, "engine_failed", "died too often"),
        EngineRefused(422, "too_long", "a prompt"),
        EngineRefused(409, "engine_error", "vLLM refused"),
        GONE,
        EMPTY,  # nothing was published that could be sent again
    ],
    ids=lambda error: error.code,
)
def test_what_does_not_pass_is_not_waited_out(tmp_path: Path, error: RolloutError) -> None:
    stage = Stage(tmp_path, [error])
    with pytest.raises(type(error)) as caught:
        stage.steady.generate(REQUEST, 1.0)
    assert caught.value is error


def test_an_error_that_comes_again_and_again_is_raised(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [BROKEN] * 10)
    with pytest.raises(EngineRefused) as caught:
        stage.steady.generate(REQUEST, 1.0)
    assert caught.value is BROKEN
    assert len(stage.engine.calls) == 4


def test_the_wait_has_a_deadline_and_a_name(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [STARTING] * 10, restart_s=0.0)
    with pytest.raises(TrainingError) as caught:
        stage.steady.generate(REQUEST, 1.0)
    assert caught.value.error.code == "engine_not_back"
    assert caught.value.retryable
    assert "soon" in str(caught.value)

"""A restart of the engine's server in mid-run is waited out, and the weights are sent again."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
import torch
from torch import nn

from powermean.artefacts import ArtefactStore
from powermean.contracts.rollout import (
    Completion,
    GenerateRequest,
    GenerateResponse,
    HoldRequest,
    PublishRequest,
    Sampling,
)
from rollout.client import EngineRefusedError, EngineUnreachableError, RolloutError
from trainer.failures import TrainingError
from trainer.weights.engine_pool import EnginePool
from trainer.weights.files import WeightWriter
from trainer.weights.in_place import InPlaceWriter
from trainer.weights.steady_engine import SteadyEngine

REQUEST = GenerateRequest(prompts=((1,),), sampling=Sampling(max_new_tokens=1))
ANSWER = GenerateResponse(
    completions=((Completion(token_ids=(1,), logprobs=(0.0,), finish_reason="length", weight_versions=()),),)
)
DIED, STARTING = (
    EngineRefusedError(503, "engine_died", "gone"),
    EngineRefusedError(503, "engine_starting", "soon"),
)
GONE = EngineUnreachableError("http://127.0.0.1:1", "refused")
NO_ADAPTER = EngineRefusedError(409, "adapter_missing", "the job has no adapter here")
BUSY = EngineRefusedError(503, "busy", "full")
EMPTY = EngineRefusedError(503, "weights_incomplete", "vLLM restarted")
BROKEN = EngineRefusedError(500, "engine_error", "EngineDeadError")


class Scripted:
    """Answers each call by the next line of the script: an error, or None for success."""

    def __init__(self, folder: Path, script: list[RolloutError | None]) -> None:
        self.folder = folder
        self.script: Iterator[RolloutError | None] = iter(script)
        self.calls: list[str] = []

    def close(self) -> None:
        pass

    def generate(self, request: GenerateRequest, timeout_s: float) -> GenerateResponse:
        self._next("generate")
        return ANSWER

    def publish(self, request: PublishRequest, timeout_s: float) -> None:
        assert all((self.folder / file.uri.removeprefix("shm:")).is_file() for file in request.files)
        self._next(f"publish {request.version}")

    def hold(self, request: HoldRequest, timeout_s: float) -> None:
        self._next(f"hold {request.version}")

    def _next(self, call: str) -> None:
        self.calls.append(call)
        if (error := next(self.script)) is not None:
            raise error


class Stage:
    def __init__(
        self,
        folder: Path,
        script: list[RolloutError | None],
        restart_s: float = 60.0,
        sleeps: bool = False,
    ) -> None:
        self.engine = Scripted(folder, script)
        store = ArtefactStore(f"file://{folder}/store")
        self.writer = WeightWriter(
            "job-a", 1, "shm", torch.float32, store, folder, shared_memory=folder, sleeps=sleeps
        )
        self.model = nn.Linear(2, 2)
        self.told: list[str] = []
        self.steady = SteadyEngine(
            EnginePool([self.engine]),
            self.writer,
            self.model,
            self.told.append,
            restart_s=restart_s,
            poll_s=0.0,
            make_room=lambda: self.engine.calls.append("room"),
        )

    def publish(self, version: int) -> None:
        self.steady.publish(self.writer.write(self.model, version), 1.0)
        self.writer.discard(version)


def test_nothing_is_repeated_where_nothing_is_wrong(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [None, None])
    stage.publish(1)
    assert stage.steady.generate(REQUEST, 1.0) == ANSWER
    assert stage.engine.calls == ["publish 1", "generate"]
    assert stage.told == []


def test_after_a_restart_the_last_version_is_published_again(tmp_path: Path) -> None:
    """Also when it dies once more while it takes the weights."""
    stage = Stage(tmp_path, [None, None, DIED, STARTING, EMPTY, DIED, STARTING, None, None])
    stage.publish(1)
    stage.publish(2)
    assert stage.steady.generate(REQUEST, 1.0) == ANSWER
    again = ["publish 2", "publish 2", "publish 2", "generate"]
    assert stage.engine.calls == ["publish 1", "publish 2", *["generate"] * 3, *again]
    assert "engine_died" in stage.told[0]
    assert list(tmp_path.glob("*.safetensors")) == []


def test_a_shared_service_that_was_started_anew_gets_the_adapter_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [None, GONE, GONE, NO_ADAPTER, None, None])
    stage.steady.comes_back = True
    stage.publish(1)
    assert stage.steady.generate(REQUEST, 1.0) == ANSWER
    assert stage.engine.calls == ["publish 1", *["generate"] * 3, "publish 1", "generate"]


@pytest.mark.parametrize(
    "passing",
    [EngineRefusedError(503, "engine_failed", "died too often"), EngineRefusedError(503, "busy", "full")],
)
def test_a_shared_service_that_ends_or_is_crowded_is_waited_for(
    tmp_path: Path, passing: RolloutError
) -> None:
    stage = Stage(tmp_path, [None, passing, None])
    stage.steady.comes_back = True
    stage.publish(1)
    assert stage.steady.generate(REQUEST, 1.0) == ANSWER


def test_a_publish_whose_answer_was_lost_is_worth_another_attempt(tmp_path: Path) -> None:
    """The engine has the version, and takes none twice: what else it has is not known."""
    stale = EngineRefusedError(409, "stale_version", "version 1 is not above 1")
    stage = Stage(tmp_path, [GONE, stale])
    stage.steady.comes_back = True
    with pytest.raises(TrainingError) as caught:
        stage.publish(1)
    assert caught.value.error.code == "publish_answer_lost"
    assert caught.value.retryable
    stage = Stage(tmp_path, [stale])
    with pytest.raises(EngineRefusedError):  # nothing was lost: this is a mistake
        stage.publish(1)


def test_weights_in_place_are_published_again_as_copies_are(tmp_path: Path) -> None:
    """And the engine is held whatever comes between; a publisher of copies has no need to."""
    stage = Stage(tmp_path, [None, BUSY, None, DIED, None, EMPTY, None, None])
    stage.publish(1)
    stage.steady.hold(2)
    assert stage.engine.calls == ["publish 1"]
    stage.steady.weights = InPlaceWriter("job-a", 1, tmp_path)
    stage.steady.hold(2)
    stage.steady.publish(stage.steady.weights.write(stage.model, 2), 1.0)
    assert stage.steady.generate(REQUEST, 1.0) == ANSWER
    sent = ["room", "publish 2"]
    again = [*sent, *sent, "generate", *sent, "generate"]
    assert stage.engine.calls == ["publish 1", "hold 2", "hold 2", *again]
    stage.steady.weights.close()


def test_a_hold_that_is_refused_ends_the_run(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [EngineRefusedError(409, "stale_version", "version 2 is not above 2")])
    stage.steady.weights = InPlaceWriter("job-a", 1, tmp_path)
    with pytest.raises(EngineRefusedError, match="not above"):
        stage.steady.hold(2)


def test_before_the_first_publish_the_models_own_weights_will_do(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [DIED, STARTING, None])
    assert stage.steady.generate(REQUEST, 1.0) == ANSWER
    assert stage.engine.calls == ["generate"] * 3


def test_a_publish_that_broke_off_is_made_again(tmp_path: Path) -> None:
    stage = Stage(
        tmp_path, [EngineRefusedError(504, "engine_timeout", "hung"), STARTING, None, EMPTY, None, None]
    )
    stage.publish(1)
    stage.steady.generate(REQUEST, 1.0)
    assert stage.engine.calls == ["publish 1"] * 3 + ["generate", "publish 1", "generate"]


@pytest.mark.parametrize(
    "error",
    [
        EngineRefusedError(503, "engine_failed", "died too often"),
        EngineRefusedError(422, "too_long", "a prompt"),
        EngineRefusedError(409, "engine_error", "vLLM refused"),
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
    with pytest.raises(EngineRefusedError) as caught:
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


class Losing:
    """Loses its weights on demand, and takes no version twice unless it has lost them."""

    def __init__(self) -> None:
        self.version = 0
        self.has_weights = True
        self.published: list[int] = []
        self.refusals = 0
        self.limits: list[float] = []
        self.closed = False

    def generate(self, request: GenerateRequest, timeout_s: float) -> GenerateResponse:
        self.limits.append(timeout_s)
        if not self.has_weights:
            self.refusals += 1
            raise EMPTY
        return ANSWER

    def publish(self, request: PublishRequest, timeout_s: float) -> None:
        self.limits.append(timeout_s)
        if request.version <= self.version and self.has_weights:
            raise EngineRefusedError(409, "stale_version", "not above")
        self.version, self.has_weights = request.version, True
        self.published.append(request.version)

    def close(self) -> None:
        self.closed = True


class Beside:
    """A thread that asks for completions while the test trains."""

    def __init__(self, folder: Path, share_s: float = 0.0) -> None:
        self.stage = Stage(folder, [])
        self.engine = Losing()
        self.stage.steady.engine = EnginePool([self.engine])
        self.stage.steady.poll_s = 0.01
        self.stage.steady.share_s = share_s
        self.stage.publish(1)

    def asks(self, pool: ThreadPoolExecutor) -> Future[GenerateResponse]:
        """Its question, which has been refused more than once for want of weights."""
        self.engine.has_weights = False
        answer = pool.submit(self.stage.steady.beside().generate, REQUEST, 1.0)
        until(lambda: self.engine.refusals > 2)
        assert not answer.done()
        assert self.engine.published == [1]  # it does not publish what the model has by now
        return answer


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_thread_beside_waits_for_weights_until_training_restores_them(tmp_path: Path) -> None:
    beside = Beside(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        answer = beside.asks(pool)
        beside.stage.steady.restore()
        assert answer.result(10) == ANSWER
    beside.stage.steady.restore()  # nothing is missing
    assert beside.engine.published == [1, 1]


def test_the_next_version_brings_what_a_thread_beside_waits_for(tmp_path: Path) -> None:
    beside = Beside(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        answer = beside.asks(pool)
        beside.stage.publish(2)
        assert answer.result(10) == ANSWER
    beside.stage.steady.restore()
    assert beside.engine.published == [1, 2]


def test_a_refusal_that_a_publish_overtook_restores_nothing(tmp_path: Path) -> None:
    """The engine takes no version twice: a restore in vain would end the run."""
    beside, late = Beside(tmp_path), Event()
    generate = beside.engine.generate

    def overtaken(request: GenerateRequest, timeout_s: float) -> GenerateResponse:
        try:
            return generate(request, timeout_s)
        except EngineRefusedError:
            beside.stage.publish(2)
            raise
        finally:
            late.set()

    beside.engine.generate = overtaken  # type: ignore[method-assign]
    beside.engine.has_weights = False
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(beside.stage.steady.beside().generate, REQUEST, 1.0)
        assert late.wait(10)
        while not answer.done():
            beside.stage.steady.restore()
    assert answer.result(10) == ANSWER
    assert beside.engine.published == [1, 2]


def test_close_ends_every_wait(tmp_path: Path) -> None:
    beside = Beside(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        answer = beside.asks(pool)
        beside.stage.steady.close()
        assert answer.exception(10) is EMPTY
    assert beside.engine.closed
    starting = Stage(tmp_path, [STARTING] * 3)
    starting.steady.poll_s = 60.0
    starting.steady.close()
    with pytest.raises(EngineRefusedError):
        starting.steady.generate(REQUEST, 1.0)


def test_before_the_first_publish_a_thread_beside_has_nothing_to_wait_for(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [EMPTY])
    with pytest.raises(EngineRefusedError) as caught:
        stage.steady.beside().generate(REQUEST, 1.0)
    assert caught.value is EMPTY


def test_calls_that_share_the_engine_have_more_time(tmp_path: Path) -> None:
    beside = Beside(tmp_path, share_s=100.0)
    beside.stage.steady.generate(REQUEST, 1.0)
    beside.stage.steady.beside().generate(REQUEST, 2.0)
    assert beside.engine.limits == [101.0, 101.0, 102.0]


def test_an_engine_that_slept_gets_room_before_each_publish(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [None, None, None, EMPTY, None, None], sleeps=True)
    stage.publish(1)
    stage.steady.hold(2)
    stage.steady.publish(stage.writer.write(stage.model, 2), 1.0)
    stage.steady.generate(REQUEST, 1.0)
    first, second = (["room", f"publish {version}"] for version in (1, 2))
    assert stage.engine.calls == [*first, "hold 2", *second, "generate", *second, "generate"]

"""The trainer's end of a channel, against a rollout service that is a thread of the test."""

import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from powermean.contracts.rollout import ChannelRequest, PublishRequest
from rollout import gloo
from rollout.client import EngineRefusedError
from rollout.gloo import Announced, Receiver, TransferError
from tests.support.tiny_model import tiny_config
from trainer.failures import TrainingError
from trainer.learner.model_state import unique_weights
from trainer.weights.channel import ChannelWriter, connector
from trainer.weights.engine_pool import EnginePool
from trainer.weights.steady_engine import SteadyEngine

CLOSED = EngineRefusedError(409, "channel_closed", "vLLM restarted")
DIED = EngineRefusedError(503, "engine_died", "vLLM died")


class Service:
    """Takes weights like the rollout service and its worker. `script`: what the next calls raise."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.script: list[Exception | None] = []
        self.taken: dict[str, torch.Tensor] = {}
        self.take = 10**6  # tensors after which the worker dies
        self.timeout_s = 5.0
        self._worker: Receiver | None = None

    def open_channel(self, request: ChannelRequest, timeout_s: float) -> None:
        self._next("open")
        assert (request.job_id, request.attempt, request.method) == ("job-a", 2, "gloo")
        assert request.host is not None
        assert request.port is not None
        self._worker = Receiver(request.host, request.port, self.timeout_s)

    def publish(self, request: PublishRequest, timeout_s: float) -> str:
        self._next(f"publish {request.version}")
        worker = self._worker
        assert worker is not None
        assert request.sha256 is not None
        announced = [Announced(one.name, getattr(torch, one.dtype), one.shape) for one in request.tensors]
        self.taken = {}
        try:
            for name, tensor in worker.receive(request.version, announced, request.sha256):
                self.taken[name] = tensor
                if len(self.taken) == self.take:
                    self.die()
                    raise DIED
        except TransferError as error:
            raise EngineRefusedError(409, "engine_error", f"vLLM refused: {error}") from error
        return "taken"

    def generate(self, *_: object) -> None:
        raise AssertionError

    def die(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _next(self, call: str) -> None:
        self.calls.append(call)
        if self.script and (error := self.script.pop(0)) is not None:
            raise error


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.die()


@pytest.fixture
def writer() -> Iterator[ChannelWriter]:
    made = _writer()
    yield made
    made.close()


def _writer(dtype: torch.dtype = torch.float32) -> ChannelWriter:
    return ChannelWriter("job-a", 2, "gloo", dtype, connector("gloo", lambda _target: "127.0.0.1"))


def _model(tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config(tie_word_embeddings=tied))


def _publish(writer: ChannelWriter, service: Service, version: int, timeout_s: float = 10.0) -> object:
    return writer.publish(service, writer.write(_model(), version), timeout_s)


def _within(seconds: float, action: Callable[[], object]) -> str:
    """The code of the error that the action ends with in time."""
    started = time.monotonic()
    with pytest.raises((EngineRefusedError, TrainingError)) as caught:
        action()
    assert time.monotonic() - started < seconds
    return caught.value.error.code


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_arrives_once_in_the_engines_type(
    service: Service, tied: bool, dtype: torch.dtype
) -> None:
    writer, model = _writer(dtype), _model(tied)
    request = writer.write(model, 3)
    assert (request.method, request.version, len(request.sha256 or "")) == ("gloo", 3, 64)
    assert writer.publish(service, request, 10.0) == "taken"
    weights = dict(unique_weights(model.state_dict()))
    assert ("lm_head.weight" in weights) is not tied
    assert service.taken.keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(service.taken[name], weight.to(dtype)), name
    writer.close()


def test_one_channel_serves_many_publishes(writer: ChannelWriter, service: Service) -> None:
    for version in (1, 2, 3):
        _publish(writer, service, version)
        writer.discard(version)
        assert not writer._weights
    assert service.calls == ["open", "publish 1", "publish 2", "publish 3"]


def test_after_a_restart_of_vllm_the_channel_is_opened_anew(writer: ChannelWriter, service: Service) -> None:
    _publish(writer, service, 1)
    service.die()
    service.script = [CLOSED]
    assert _publish(writer, service, 2) == "taken"
    assert service.calls == ["open", "publish 1", "publish 2", "open", "publish 2"]


def test_a_channel_that_was_never_good_is_not_tried_for_ever(writer: ChannelWriter, service: Service) -> None:
    service.script = [None, CLOSED]
    assert _within(5.0, lambda: _publish(writer, service, 1)) == "channel_closed"
    assert service.calls == ["open", "publish 1"]


@pytest.mark.parametrize("place", ["open", "publish"])
def test_a_refusal_is_raised_at_once(writer: ChannelWriter, service: Service, place: str) -> None:
    """Nobody waits for a worker that will not come."""
    refusal = EngineRefusedError(409, "stale_version", "not above")
    service.script = [refusal] if place == "open" else [None, refusal]
    assert _within(5.0, lambda: _publish(writer, service, 1, timeout_s=60.0)) == "stale_version"
    assert _publish(writer, service, 2) == "taken"


def test_a_worker_that_dies_in_mid_transfer_is_told_by_the_service(
    writer: ChannelWriter, service: Service
) -> None:
    service.take = 3
    assert _within(5.0, lambda: _publish(writer, service, 1, timeout_s=60.0)) == "engine_died"
    service.take = 10**6
    assert _publish(writer, service, 1) == "taken"


def test_a_send_that_fails_here_ends_the_workers_call_too(
    writer: ChannelWriter, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(sender: gloo.Sender, tensors: Iterator[torch.Tensor]) -> None:
        raise TransferError("the network is down")

    with monkeypatch.context() as patch:
        patch.setattr(gloo.Sender, "send", breaks)
        assert _within(5.0, lambda: _publish(writer, service, 1, timeout_s=60.0)) == "engine_error"


@pytest.mark.slow
def test_a_worker_that_never_comes_has_a_deadline(writer: ChannelWriter, service: Service) -> None:
    service.open_channel = lambda request, timeout_s: time.sleep(timeout_s + 0.5)  # type: ignore[method-assign]
    assert _within(10.0, lambda: _publish(writer, service, 1, timeout_s=0.5)) == "transfer_failed"


def test_the_steady_engine_publishes_again_over_a_new_channel(
    writer: ChannelWriter, service: Service
) -> None:
    model, told = _model(), list[str]()
    steady = SteadyEngine(EnginePool([service]), writer, model, told.append, poll_s=0.0)  # type: ignore[list-item]
    service.script = [
        *(None, DIED),
        *(
            EngineRefusedError(503, "channel_failed", "dead"),
            EngineRefusedError(503, "engine_starting", "soon"),
        ),
    ]
    steady.publish(writer.write(model, 4), 10.0)
    assert service.calls == ["open", "publish 4", *["open"] * 3, "publish 4"]
    assert "engine_died" in told[0]


def test_a_counter_can_not_go_by_channel(writer: ChannelWriter) -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("steps", torch.tensor(2**40))
    with pytest.raises(TrainingError) as caught:
        writer.write(model, 1)
    assert (caught.value.error.code, caught.value.error.path) == ("publish_dtype", "rollout.publish")

"""What vLLM is told when weights come by a channel, and what is refused before it is told anything."""

import base64
import importlib
import json
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from pydantic import ValidationError
from transformers import LlamaForCausalLM

from powermean.contracts.rollout import (
    ChannelMethod,
    ChannelRequest,
    GenerateRequest,
    HoldRequest,
    IpcBuffer,
    PublishRequest,
    Sampling,
    WeightTensor,
)
from powermean.engine_selection import vllm_installed
from powermean.tokens import KeyPair, Verb, sign_attempt_token
from rollout.app import create_app
from rollout.engine import EngineError, Fence
from rollout.settings import RolloutSettings
from rollout.vllm import channel as vllm_channel
from rollout.vllm import server as vllm_server
from rollout.vllm.command import VllmOptions
from rollout.vllm.engine import VllmEngine, load_engine
from rollout.vllm.server import Deadlines
from rollout.weights import WeightSource
from tests.support.tiny_model import tiny_config
from trainer.learner.model_state import unique_weights

pytestmark = pytest.mark.slow
FAKE = Path(__file__).parents[2] / "support" / "fake_vllm.py"
NCCL_ID = base64.b64encode(bytes(range(128))).decode()
JOB = "job-1"
REQUEST = GenerateRequest(prompts=((1,),), sampling=Sampling(max_new_tokens=1))
BUFFER = IpcBuffer(
    gpu="GPU-1",
    size=1 << 20,
    memory=base64.b64encode(b"memory").decode(),
    offset=512,
    counter=base64.b64encode(b"counter").decode(),
    counter_offset=3,
    event=base64.b64encode(b"event").decode(),
    wait=True,
)
HOLD = HoldRequest(job_id=JOB, attempt=1, version=1)


@dataclass
class Stage:
    """An engine on a stand-in for vLLM, and what that was told."""

    engine: VllmEngine
    script: Path

    def calls(self) -> list[tuple[str, dict[str, object]]]:
        lines = (self.script / "calls").read_text().splitlines()
        return [(path, json.loads(body)) for path, _, body in (line.partition(" ") for line in lines)]

    def paths(self) -> list[str]:
        return [path for path, _ in self.calls()]

    def forget(self) -> None:
        (self.script / "calls").write_text("")

    def say(self, name: str, *lines: str) -> None:
        (self.script / name).write_text("\n".join(lines))

    def open(self, attempt: int = 1, **place: object) -> None:
        method = self.engine._channel.method
        meeting = {"gloo": {"host": "127.0.0.1", "port": 7}, "nccl": {"nccl_id": NCCL_ID}, "ipc": {}}
        place = meeting[method] | place
        self.engine.open_channel(
            ChannelRequest.model_validate({"job_id": JOB, "attempt": attempt, "method": method} | place)
        )


Make = Callable[..., Stage]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Make]:
    monkeypatch.setattr(vllm_server, "require_vllm", lambda: None)
    LlamaForCausalLM(tiny_config(tie_word_embeddings=True)).save_pretrained(tmp_path / "model")
    script = tmp_path / "script"
    script.mkdir()
    monkeypatch.setattr(
        vllm_server,
        "server_command",
        lambda _options, path: [sys.executable, str(FAKE), str(path), str(script)],
    )
    with ExitStack() as stack:

        def start(method: ChannelMethod, **options: Any) -> Stage:
            engine = load_engine(
                VllmOptions(tmp_path / "model", "float32", transfer=method, **options),
                fence=Fence(JOB, 1, 0),
                weights=WeightSource(None),
                deadlines=Deadlines(start=30.0, sync_step=30.0, stop=3.0),
            )
            stack.callback(engine.close)
            return Stage(engine, script)

        yield start


def _tensors() -> tuple[WeightTensor, ...]:
    weights = unique_weights(LlamaForCausalLM(tiny_config(tie_word_embeddings=True)).state_dict())
    return tuple(WeightTensor(name=name, dtype="float32", shape=tuple(one.shape)) for name, one in weights)


def _request(
    method: ChannelMethod = "gloo", version: int = 1, attempt: int = 1, **changed: object
) -> PublishRequest:
    facts = {"sha256": "0" * 64} if method == "gloo" else {"buffer": BUFFER} if method == "ipc" else {}
    told = {"job_id": JOB, "attempt": attempt, "version": version, "method": method, "tensors": _tensors()}
    return PublishRequest.model_validate(told | facts | changed)


def _error(action: Callable[[], object]) -> EngineError:
    with pytest.raises(EngineError) as caught:
        action()
    return caught.value


STEPS = ["/pause", "/start_weight_update", "/update_weights", "/finish_weight_update"]
LAST_STEPS = ["/reset_prefix_cache", "/resume"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gloo", "nccl", "ipc"])
def test_vllm_is_told_step_by_step(make: Make, method: ChannelMethod) -> None:
    stage = make(method)
    assert stage.engine.state().methods == ("store", "shm", method)
    stage.open()
    stage.engine.publish(_request(method))
    calls = stage.calls()[-7:]
    assert [path for path, _ in calls] == ["/init_weight_transfer_engine", *STEPS, *LAST_STEPS]
    meeting = {
        "gloo": {"host": "127.0.0.1", "port": 7, "timeout_s": 30.0},
        "nccl": {
            "nccl_unique_id_b64": NCCL_ID,
            **{"rank_offset": 1, "world_size": 2, "packed": True},
        },
        "ipc": {"packed": True},
    }
    assert calls[0][1] == {"init_info": meeting[method]}
    if method == "nccl" and vllm_installed():
        nccl = importlib.import_module("vllm.distributed.weight_transfer.nccl_common")
        assert nccl.NCCLWeightTransferInitInfo(**meeting[method]).nccl_unique_id_bytes == bytes(range(128))
    update = calls[3][1]["update_info"]
    assert isinstance(update, dict)
    assert update["names"] == [one.name for one in _tensors()]
    assert update["dtype_names"] == ["float32"] * len(_tensors())
    assert update["shapes"] == [list(one.shape) for one in _tensors()]
    own = {"gloo": {"version", "sha256"}, "nccl": set(), "ipc": {"tensor_sizes", "ipc_handles_pickled"}}
    assert update.keys() - {"names", "dtype_names", "shapes"} == own[method]
    assert calls[4][1] == {"weight_version": "1"}
    assert stage.engine.state().version == 1


def test_a_tied_weight_may_come_under_its_other_name(make: Make) -> None:
    stage = make("gloo")
    stage.open()
    renamed = [
        one.model_copy(update={"name": "lm_head.weight"}) if one.name == "model.embed_tokens.weight" else one
        for one in _tensors()
    ]
    stage.engine.publish(_request(tensors=renamed))
    update = dict(stage.calls())["/update_weights"]["update_info"]
    assert isinstance(update, dict)
    assert "model.embed_tokens.weight" in update["names"]
    assert "lm_head.weight" not in update["names"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "code", "words"),
    [
        ({"tensors": _tensors()[1:]}, "weights_mismatch", "is missing"),
        ({"tensors": (*_tensors(), _tensors()[0])}, "weights_mismatch", "twice"),
        (
            {"tensors": [one.model_copy(update={"dtype": "bfloat16"}) for one in _tensors()]},
            "weights_mismatch",
            "is bfloat16, the engine float32",
        ),
        (
            {"tensors": [one.model_copy(update={"shape": (1, *one.shape)}) for one in _tensors()]},
            "weights_mismatch",
            "has shape",
        ),
        ({"version": 0}, "stale_version", "not above"),
        ({"job_id": "job-2"}, "other_job", "serves job"),
        ({"attempt": 2}, "channel_closed", "no channel is open to this attempt"),
    ],
)
def test_what_does_not_fit_is_refused_before_vllm_is_told(
    make: Make, changed: dict[str, object], code: str, words: str
) -> None:
    stage = make("gloo")
    stage.open()
    stage.forget()
    error = _error(lambda: stage.engine.publish(_request(**changed)))  # type: ignore[arg-type]
    assert error.code == code
    assert words in str(error)
    assert stage.paths() == []
    stage.engine.publish(_request())


@pytest.mark.slow
def test_without_a_channel_or_after_a_restart_nothing_is_received(make: Make) -> None:
    stage = make("gloo")
    assert _error(lambda: stage.engine.publish(_request())).code == "channel_closed"
    stage.open()
    stage.engine._server.kill("for the test")
    _await(lambda: stage.engine._server.starts == 2 and stage.engine._server.phase == "ready")
    assert _error(lambda: stage.engine.publish(_request())).code == "channel_closed"
    stage.open()
    stage.engine.publish(_request())
    assert stage.engine.state().version == 1


def test_a_lower_attempt_opens_no_channel_and_a_higher_one_takes_it_over(make: Make) -> None:
    stage = make("gloo")
    stage.open()
    stage.open(attempt=2)
    assert _error(lambda: stage.engine.publish(_request())).code == "channel_closed"
    stage.engine.publish(_request(attempt=2, version=5))
    assert _error(lambda: stage.open(attempt=1)).code == "fenced"


def test_a_channel_that_vllm_could_not_open_costs_no_restart(make: Make) -> None:
    stage = make("gloo")
    stage.say("fail", "/init_weight_transfer_engine", "no trainer is listening at 127.0.0.1:7")
    error = _error(stage.open)
    assert (error.status, error.code) == (503, "channel_failed")
    assert "no trainer is listening" in str(error)
    assert (stage.engine._server.phase, stage.engine._server.starts) == ("ready", 1)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["/init_weight_transfer_engine", *STEPS, *LAST_STEPS])
def test_each_step_has_a_deadline_and_what_hangs_is_ended(make: Make, step: str) -> None:
    stage = make("gloo")
    if step != "/init_weight_transfer_engine":
        stage.open()
    stage.say("hang", step)
    server = stage.engine._server
    server.deadlines = replace(server.deadlines, sync_step=1.0)
    act = stage.open if step == "/init_weight_transfer_engine" else lambda: stage.engine.publish(_request())
    error = _error(act)
    assert (error.status, error.code) == (504, "engine_timeout")
    (stage.script / "hang").unlink()
    _await(lambda: stage.engine._server.starts == 2 and stage.engine._server.phase == "ready")
    assert stage.engine.state().version == 0


@pytest.mark.slow
def test_a_broken_transfer_ends_vllm_because_its_weights_are_of_two_versions(make: Make) -> None:
    stage = make("gloo")
    for text, code in (
        ("the trainer left", "engine_error"),
        ("weights_corrupt: x", "weights_corrupt"),
    ):
        starts = stage.engine._server.starts
        stage.open()
        stage.say("fail", "/update_weights", text)
        assert _error(lambda: stage.engine.publish(_request())).code == code
        (stage.script / "fail").unlink()
        _await(lambda s=starts: stage.engine._server.starts == s + 1)  # type: ignore[misc]
        _await(lambda: stage.engine._server.phase == "ready")
        assert _error(lambda: stage.engine.generate(REQUEST, Event())).code == "weights_incomplete"
    assert stage.engine.state().version == 0


def test_ipc_handles_are_what_torch_makes_of_a_flat_tensor(make: Make) -> None:
    """Pickled by the engine alone: a client can only name numbers and bytes."""
    stage = make("ipc")
    stage.open()
    stage.engine.publish(_request("ipc"))
    update = dict(stage.calls())["/update_weights"]["update_info"]
    assert isinstance(update, dict)
    ((gpu, arguments),) = pickle.loads(base64.b64decode(update["ipc_handles_pickled"])).items()
    assert gpu == "GPU-1"
    flat = (torch.Tensor, torch.Size([1 << 20]), (1,), 0, torch.storage.TypedStorage, torch.uint8, 0)
    assert arguments == (*flat, b"memory", 1 << 20, 512, False, b"counter", 3, b"event", True)
    small = BUFFER.model_copy(update={"size": 8})
    assert "in a buffer of 8" in str(_error(lambda: stage.engine.publish(_request("ipc", 2, buffer=small))))
    assert _error(lambda: stage.engine.publish(_request("ipc", 2, buffer=None))).path == "buffer"


@pytest.mark.parametrize(
    "changed",
    [
        {"method": "shm"},
        {"sha256": None},
        {"tensors": ()},
        {"buffer": BUFFER},
        {"memory": "powermean-job-1.1.weights.safetensors"},
        {"files": ({"uri": "shm:x", "sha256": "0" * 64, "size": 1},)},
    ],
)
def test_a_manifest_is_that_of_its_method(changed: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        _request(**changed)  # type: ignore[arg-type]


def test_on_loopback_no_trainer_elsewhere_is_met(make: Make, keys: KeyPair, tmp_path: Path) -> None:
    stage = make("gloo")
    settings = RolloutSettings(model=tmp_path, job_id=JOB, public_key=tmp_path / "key", host="127.0.0.1")
    token = sign_attempt_token(keys.private_pem, JOB, 1, tuple(Verb), 600)
    app = create_app(stage.engine, settings, keys.public_pem)
    with TestClient(app, base_url="http://127.0.0.1", headers={"Authorization": f"Bearer {token}"}) as client:
        body = {"job_id": JOB, "attempt": 1, "method": "gloo", "port": 7}
        refused = client.post("/v1/channel", json=body | {"host": "192.0.2.1"})
        assert refused.status_code == 422
        assert "can't connect to a trainer at 192.0.2.1" in refused.json()["error"]["message"]
        assert "/init_weight_transfer_engine" not in stage.paths()
        assert client.post("/v1/channel", json=body | {"host": "127.0.0.1"}).status_code == 200
        other = client.post("/v1/channel", json={"job_id": JOB, "attempt": 1, "method": "ipc"})
        assert other.json()["error"]["code"] == "method_unsupported"


def test_no_weights_are_shared_with_vllm(make: Make) -> None:
    engine = make("gloo").engine
    assert "in_place" not in engine.state().methods
    with pytest.raises(EngineError) as refused:
        engine.hold(HoldRequest(job_id=JOB, attempt=1, version=1))
    assert refused.value.code == "method_unsupported"


@pytest.mark.slow
def test_an_engine_of_several_gpus_takes_weights_on_each(make: Make) -> None:
    """The trainer is rank 0 of the channel's group; a replica has a group of its own."""
    stage = make("nccl", tensor_parallel=4)
    stage.open()
    meeting = stage.calls()[-1][1]["init_info"]
    assert isinstance(meeting, dict)
    assert (meeting["rank_offset"], meeting["world_size"]) == (1, 5)


@pytest.mark.slow
def test_vllm_sleeps_from_a_hold_to_the_next_publish(make: Make) -> None:
    """It takes memory for weights before they come, and for its cache once they are there."""
    stage = make("gloo", sleep=True)
    assert stage.engine.state().sleeps
    stage.open()
    stage.forget()
    for _ in range(2):  # as after an answer that was lost
        stage.engine.hold(HOLD)
    assert stage.paths() == ["/sleep"]
    asked = GenerateRequest(prompts=((1,),), sampling=Sampling(max_new_tokens=1))
    assert _error(lambda: stage.engine.generate(asked, Event())).code == "weights_incomplete"
    stage.engine.publish(_request("gloo"))
    pause, *update = STEPS
    assert stage.paths() == ["/sleep", pause, "/wake_up", *update, "/wake_up", *LAST_STEPS]
    assert _error(lambda: stage.engine.hold(HOLD)).code == "stale_version"
    stage.forget()
    stage.engine.publish(_request("gloo", 2))
    assert "/wake_up" not in stage.paths()


@pytest.mark.slow
def test_vllm_that_can_t_go_to_sleep_is_ended_because_the_trainer_needs_the_memory(make: Make) -> None:
    stage = make("gloo", sleep=True)
    stage.say("fail", "/sleep", "CUDA error")
    assert "CUDA error" in str(_error(lambda: stage.engine.hold(HOLD)))
    ended_and_started_by_a_publish(stage)


@pytest.mark.slow
def test_vllm_that_dies_asleep_starts_when_the_trainer_no_longer_needs_the_memory(make: Make) -> None:
    stage = make("gloo", sleep=True)
    stage.engine.hold(HOLD)
    stage.engine._server.kill("out of memory")
    ended_and_started_by_a_publish(stage)
    stage.engine._server.kill("again")  # awake, so it comes back by itself
    _await(lambda: stage.engine._server.starts == 3)


def ended_and_started_by_a_publish(stage: Stage) -> None:
    """A hold is then as good as one of a vLLM that sleeps."""
    server = stage.engine._server
    _await(lambda: server.phase == "held")
    (stage.script / "fail").unlink(missing_ok=True)
    stage.engine.hold(HOLD)
    assert not server._processes()
    assert (stage.engine.state().ready, server.starts) == (True, 1)
    assert _error(lambda: stage.engine.generate(REQUEST, Event())).code == "engine_starting"
    stage.open()  # as a publish does after a restart
    stage.forget()
    stage.engine.publish(_request())
    assert "/wake_up" not in stage.paths()
    assert (stage.engine.state().version, server.phase, server.starts) == (1, "ready", 2)


def test_what_is_offered_is_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for registered, found in ((True, "gloo"), (False, None)):
        monkeypatch.setattr(vllm_channel, "_registered", lambda registered=registered: registered)
        assert vllm_channel.offered("auto", on_gpu=False) == found
        assert vllm_channel.offered("auto", on_gpu=True) is None
    assert vllm_channel.offered("ipc", on_gpu=True) == "ipc"
    assert _error(lambda: vllm_channel.offered("nccl", on_gpu=False)).code == "channel_unsupported"


def _await(condition: Callable[[], bool], seconds: float = 40.0) -> None:
    done = Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        done.wait(0.02)
    raise AssertionError("not in time")

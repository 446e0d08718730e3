"""What vLLM is told when weights come by a channel, and what is refused before it is told anything."""

import base64
import importlib
import pickle
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import torch
from fastapi.testclient import TestClient
from pydantic import ValidationError

from powermean.contracts.rollout import ChannelMethod, HoldRequest
from powermean.engine_selection import vllm_installed
from powermean.tokens import KeyPair, Verb, sign_attempt_token
from rollout.app import create_app
from rollout.engine import EngineError
from rollout.settings import RolloutSettings
from rollout.vllm import channel as vllm_channel
from tests.support.vllm_stage import (
    BUFFER,
    JOB,
    LAST_STEPS,
    NCCL_ID,
    REQUEST,
    STEPS,
    Make,
    error_of,
    publish_request,
    tensors,
    wait_until,
)

pytestmark = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gloo", "nccl", "ipc"])
def test_vllm_is_told_step_by_step(make: Make, method: ChannelMethod) -> None:
    stage = make(method)
    assert stage.engine.state().methods == ("store", "shm", method)
    stage.open()
    stage.engine.publish(publish_request(method))
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
    assert update["names"] == [one.name for one in tensors()]
    assert update["dtype_names"] == ["float32"] * len(tensors())
    assert update["shapes"] == [list(one.shape) for one in tensors()]
    own = {"gloo": {"version", "sha256"}, "nccl": set(), "ipc": {"tensor_sizes", "ipc_handles_pickled"}}
    assert update.keys() - {"names", "dtype_names", "shapes"} == own[method]
    assert calls[4][1] == {"weight_version": "1"}
    assert stage.engine.state().version == 1


def test_a_tied_weight_may_come_under_its_other_name(make: Make) -> None:
    stage = make("gloo")
    stage.open()
    renamed = [
        one.model_copy(update={"name": "lm_head.weight"}) if one.name == "model.embed_tokens.weight" else one
        for one in tensors()
    ]
    stage.engine.publish(publish_request(tensors=renamed))
    update = dict(stage.calls())["/update_weights"]["update_info"]
    assert isinstance(update, dict)
    assert "model.embed_tokens.weight" in update["names"]
    assert "lm_head.weight" not in update["names"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "code", "words"),
    [
        ({"tensors": tensors()[1:]}, "weights_mismatch", "is missing"),
        ({"tensors": (*tensors(), tensors()[0])}, "weights_mismatch", "twice"),
        (
            {"tensors": [one.model_copy(update={"dtype": "bfloat16"}) for one in tensors()]},
            "weights_mismatch",
            "is bfloat16, the engine float32",
        ),
        (
            {"tensors": [one.model_copy(update={"shape": (1, *one.shape)}) for one in tensors()]},
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
    error = error_of(lambda: stage.engine.publish(publish_request(**changed)))  # type: ignore[arg-type]
    assert error.code == code
    assert words in str(error)
    assert stage.paths() == []
    stage.engine.publish(publish_request())


@pytest.mark.slow
def test_without_a_channel_or_after_a_restart_nothing_is_received(make: Make) -> None:
    stage = make("gloo")
    assert error_of(lambda: stage.engine.publish(publish_request())).code == "channel_closed"
    stage.open()
    stage.engine._server.kill("for the test")
    wait_until(lambda: stage.engine._server.starts == 2 and stage.engine._server.phase == "ready")
    assert error_of(lambda: stage.engine.publish(publish_request())).code == "channel_closed"
    stage.open()
    stage.engine.publish(publish_request())
    assert stage.engine.state().version == 1


def test_a_lower_attempt_opens_no_channel_and_a_higher_one_takes_it_over(make: Make) -> None:
    stage = make("gloo")
    stage.open()
    stage.open(attempt=2)
    assert error_of(lambda: stage.engine.publish(publish_request())).code == "channel_closed"
    stage.engine.publish(publish_request(attempt=2, version=5))
    assert error_of(lambda: stage.open(attempt=1)).code == "fenced"


def test_a_channel_that_vllm_could_not_open_costs_no_restart(make: Make) -> None:
    stage = make("gloo")
    stage.say("fail", "/init_weight_transfer_engine", "no trainer is listening at 127.0.0.1:7")
    error = error_of(stage.open)
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
    act = (
        stage.open
        if step == "/init_weight_transfer_engine"
        else lambda: stage.engine.publish(publish_request())
    )
    error = error_of(act)
    assert (error.status, error.code) == (504, "engine_timeout")
    (stage.script / "hang").unlink()
    wait_until(lambda: stage.engine._server.starts == 2 and stage.engine._server.phase == "ready")
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
        assert error_of(lambda: stage.engine.publish(publish_request())).code == code
        (stage.script / "fail").unlink()
        wait_until(lambda s=starts: stage.engine._server.starts == s + 1)  # type: ignore[misc]
        wait_until(lambda: stage.engine._server.phase == "ready")
        assert error_of(lambda: stage.engine.generate(REQUEST, Event())).code == "weights_incomplete"
    assert stage.engine.state().version == 0


def test_ipc_handles_are_what_torch_makes_of_a_flat_tensor(make: Make) -> None:
    """Pickled by the engine alone: a client can only name numbers and bytes."""
    stage = make("ipc")
    stage.open()
    stage.engine.publish(publish_request("ipc"))
    update = dict(stage.calls())["/update_weights"]["update_info"]
    assert isinstance(update, dict)
    ((gpu, arguments),) = pickle.loads(base64.b64decode(update["ipc_handles_pickled"])).items()
    assert gpu == "GPU-1"
    flat = (torch.Tensor, torch.Size([1 << 20]), (1,), 0, torch.storage.TypedStorage, torch.uint8, 0)
    assert arguments == (*flat, b"memory", 1 << 20, 512, False, b"counter", 3, b"event", True)
    small = BUFFER.model_copy(update={"size": 8})
    assert "in a buffer of 8" in str(
        error_of(lambda: stage.engine.publish(publish_request("ipc", 2, buffer=small)))
    )
    assert error_of(lambda: stage.engine.publish(publish_request("ipc", 2, buffer=None))).path == "buffer"


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
        publish_request(**changed)  # type: ignore[arg-type]


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


def test_what_is_offered_is_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for registered, found in ((True, "gloo"), (False, None)):
        monkeypatch.setattr(vllm_channel, "_registered", lambda registered=registered: registered)
        assert vllm_channel.offered("auto", on_gpu=False) == found
        assert vllm_channel.offered("auto", on_gpu=True) is None
    assert vllm_channel.offered("ipc", on_gpu=True) == "ipc"
    assert error_of(lambda: vllm_channel.offered("nccl", on_gpu=False)).code == "channel_unsupported"

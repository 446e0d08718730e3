"""A vLLM engine on a stand-in for vLLM, channels to it, and requests to publish weights by them."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import pytest
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
from rollout.engine import EngineError
from rollout.vllm.engine import VllmEngine
from tests.support.tiny_model import tiny_config
from trainer.learner.model_state import unique_weights

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
STEPS = ["/pause", "/start_weight_update", "/update_weights", "/finish_weight_update"]
LAST_STEPS = ["/reset_prefix_cache", "/resume"]


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


def tensors() -> tuple[WeightTensor, ...]:
    """What the trainer of the tiny model sends."""
    weights = unique_weights(LlamaForCausalLM(tiny_config(tie_word_embeddings=True)).state_dict())
    return tuple(WeightTensor(name=name, dtype="float32", shape=tuple(one.shape)) for name, one in weights)


def publish_request(
    method: ChannelMethod = "gloo", version: int = 1, attempt: int = 1, **changed: object
) -> PublishRequest:
    """Of weights by a channel, with parts of it changed."""
    facts = {"sha256": "0" * 64} if method == "gloo" else {"buffer": BUFFER} if method == "ipc" else {}
    told = {"job_id": JOB, "attempt": attempt, "version": version, "method": method, "tensors": tensors()}
    return PublishRequest.model_validate(told | facts | changed)


def error_of(action: Callable[[], object]) -> EngineError:
    """What the action is refused with."""
    with pytest.raises(EngineError) as caught:
        action()
    return caught.value


def wait_until(condition: Callable[[], bool], seconds: float = 40.0) -> None:
    """Fails where it does not come true in time."""
    done = Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        done.wait(0.02)
    raise AssertionError("not in time")

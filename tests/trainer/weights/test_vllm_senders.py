"""What stands around vLLM's own senders, with stand-ins for these: they themselves need GPUs (tests/gpu)."""

import base64
import importlib.util
import time
from collections.abc import Callable
from threading import Event
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from transformers import LlamaForCausalLM

from powermean.contracts.rollout import ChannelRequest, IpcBuffer, PublishRequest
from rollout.client import EngineRefusedError
from tests.support.tiny_model import tiny_config
from trainer.failures import TrainingError
from trainer.weights.channel import ChannelWriter, connector

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

vllm_senders: Any = None


@pytest.fixture(autouse=True)
def _senders() -> None:
    """Imported when a test runs: it takes seconds, and collecting the quick tests should not."""
    global vllm_senders
    vllm_senders = importlib.import_module("trainer.weights.vllm_senders")


FLAT = (torch.Tensor, torch.Size([64]), (1,), 0, torch.storage.TypedStorage, torch.uint8, 0)
NCCL_ID = bytes(range(128))
ARGUMENTS = (*FLAT, b"memory", 64, 512, False, b"counter", 3, b"event", True)


class Service:
    def __init__(self) -> None:
        self.opened: list[ChannelRequest] = []
        self.published: list[PublishRequest] = []
        self.refusal: Exception | None = None

    def open_channel(self, request: ChannelRequest, timeout_s: float) -> None:
        self.opened.append(request)

    def publish(self, request: PublishRequest, timeout_s: float) -> str:
        self.published.append(request)
        if self.refusal is not None:
            raise self.refusal
        return "taken"


class Sender:
    """Does what vLLM's senders do with their client and source; `stuck` like NCCL without its peer."""

    def __init__(self, client: Any, source: Any, method: str) -> None:
        self.client, self.source, self.method = client, source, method
        self.packed_buffer_size_bytes = 0
        self.sent: list[str] = []
        self.stuck: Event | None = None
        self.is_shut = False
        client.init_weight_transfer_engine({"packed": True})

    def send_weights(self) -> None:
        self.client.start_weight_update()
        names = [meta.name for meta in self.source.metadata()]
        told: dict[str, Any] = {"names": names}
        if self.method == "ipc":
            told["ipc_handles"] = {"GPU-1": ARGUMENTS}
        try:
            self.client.update_weights(told)
        except EngineRefusedError:
            if self.stuck is None:
                raise
        if self.stuck is not None:
            self.stuck.wait(30)
        self.sent = [name for name, _ in self.source]
        self.client.finish_weight_update()

    def shutdown(self) -> None:
        self.is_shut = True


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Sender]:
    senders: list[Sender] = []

    def make(nccl_id: bytes | None, client: object, source: object, workers: int) -> Sender:
        assert workers == 1  # GPUs of this engine that take the weights
        senders.append(Sender(client, source, "ipc" if nccl_id is None else "nccl"))
        return senders[-1]

    monkeypatch.setattr(vllm_senders, "_sender", make)
    monkeypatch.setattr(vllm_senders, "_new_nccl_id", lambda: NCCL_ID)
    return senders


def _writer(method: Any) -> ChannelWriter:
    return ChannelWriter("job-a", 1, method, torch.bfloat16, connector(method, lambda _target: "127.0.0.1"))


def _model() -> LlamaForCausalLM:
    return LlamaForCausalLM(tiny_config(tie_word_embeddings=True))


def _code(action: Callable[[], object]) -> str:
    with pytest.raises((EngineRefusedError, TrainingError)) as caught:
        action()
    return caught.value.error.code


@pytest.mark.parametrize("method", ["nccl", "ipc"])
def test_one_publish_is_all_that_the_service_is_told(made: list[Sender], method: str) -> None:
    service, writer, model = Service(), _writer(method), _model()
    for version in (1, 2):
        assert writer.publish(service, writer.write(model, version), 5.0) == "taken"
    (opened,) = service.opened
    nccl_id = base64.b64encode(NCCL_ID).decode() if method == "nccl" else None
    assert (opened.method, opened.host, opened.nccl_id) == (method, None, nccl_id)
    assert [request.version for request in service.published] == [1, 2]
    for request in service.published:
        assert request.sha256 is None
        assert (request.buffer is not None) == (method == "ipc")
    (sender,) = made
    assert sender.sent == [tensor.name for tensor in service.published[0].tensors]
    if method == "ipc":
        assert sender.packed_buffer_size_bytes == sum(2 * weight.numel() for weight in model.parameters())
    writer.close()
    assert sender.is_shut


def test_a_refusal_is_raised_though_nccl_waits_for_its_peer(made: list[Sender]) -> None:
    service, writer = Service(), _writer("nccl")
    writer.publish(service, writer.write(_model(), 1), 5.0)
    made[0].stuck = Event()
    service.refusal = EngineRefusedError(503, "engine_died", "vLLM died")
    started = time.monotonic()
    assert _code(lambda: writer.publish(service, writer.write(_model(), 2), 30.0)) == "engine_died"
    assert time.monotonic() - started < 5.0
    assert made[0].is_shut
    made[0].stuck.set()
    service.refusal = None
    assert writer.publish(service, writer.write(_model(), 2), 5.0) == "taken"
    assert len(made) == 2


def test_a_service_that_opens_no_channel_is_not_waited_for_in_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its call never returns without a peer, and each would keep a thread and sockets."""
    monkeypatch.setattr(vllm_senders, "_new_nccl_id", lambda: NCCL_ID)
    joined: list[bytes] = []
    monkeypatch.setattr(vllm_senders, "uid_init_process_group", lambda nccl_id, *_: joined.append(nccl_id))
    service, writer = Service(), _writer("nccl")
    refusal = EngineRefusedError(503, "engine_starting", "vLLM is being started")
    monkeypatch.setattr(service, "open_channel", Mock(side_effect=refusal))
    assert _code(lambda: writer.publish(service, writer.write(_model(), 1), 5.0)) == "engine_starting"
    assert joined == []


def test_what_hangs_ends_at_the_deadline(made: list[Sender]) -> None:
    service, writer = Service(), _writer("nccl")
    writer.publish(service, writer.write(_model(), 1), 5.0)
    made[0].stuck = Event()
    assert _code(lambda: writer.publish(service, writer.write(_model(), 2), 0.5)) == "transfer_failed"
    made[0].stuck.set()


def test_handles_become_numbers_and_bytes(made: list[Sender]) -> None:
    """tests/rollout/vllm/test_channel.py has the way back."""
    assert vllm_senders._buffer({"GPU-1": ARGUMENTS}) == IpcBuffer(
        gpu="GPU-1",
        size=64,
        memory=base64.b64encode(b"memory").decode(),
        offset=512,
        counter=base64.b64encode(b"counter").decode(),
        counter_offset=3,
        event=base64.b64encode(b"event").decode(),
        wait=True,
    )


def test_other_ranks_of_the_job_take_no_part_in_sending_handles(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own sender would call them, and they would never answer."""
    ipc: Any = importlib.import_module("vllm.distributed.weight_transfer.ipc_engine")
    chunk = Mock(names=["w"], dtype_names=["float32"], shapes=[[2]], tensor_sizes=[8])
    chunk.ipc_handle = {"GPU-1": ARGUMENTS}
    monkeypatch.setattr(ipc, "packed_ipc_producer", lambda **_given: [chunk])
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: Mock(uuid="1"))
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    client = Mock()
    vllm_senders._sender(None, client, [], 1).send_weights()
    ((told,), _) = client.update_weights.call_args
    assert told["ipc_handles"] == {"GPU-1": ARGUMENTS}

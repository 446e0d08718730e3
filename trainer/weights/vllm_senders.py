"""The trainer's end of vLLM's own weight-transfer backends: NCCL between GPUs, CUDA IPC on one.

vLLM's senders expect a client that talks to a vLLM server. Here the client talks to the rollout service, the
only one that talks to vLLM, and one POST /v1/publish covers everything vLLM has to be told.
"""

import base64
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Thread
from typing import Any, Literal

import torch
from torch import Tensor
from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo, IPCTrainerWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_common import uid_init_process_group
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

from powermean.contracts.rollout import ChannelRequest, IpcBuffer, PublishRequest
from trainer.failures import TrainingError
from trainer.weights.files import Target
from trainer.weights.peer import Weights

Handles = dict[str, tuple[Any, ...]]  # by the GPU's UUID, arguments of torch's rebuild_cuda_tensor

_POLL_S = 0.02
_REFUSAL_S = 1.0  # by then a service that refuses to open a channel has answered


class VllmPeer:
    """See trainer.weights.peer.Peer."""

    def __init__(self, method: Literal["nccl", "ipc"], workers: int = 1) -> None:
        """`workers`: vLLM's processes, one for each GPU of the engine. ipc is for one."""
        self._method = method
        self._workers = workers
        self._source = _Source()
        self._client: _Client | None = None
        self._sender: Any = None

    def open(self, target: Target, job_id: str, attempt: int, timeout_s: float) -> None:
        nccl_id = _new_nccl_id() if self._method == "nccl" else None
        request = ChannelRequest(
            job_id=job_id,
            attempt=attempt,
            method=self._method,
            nccl_id=base64.b64encode(nccl_id).decode() if nccl_id is not None else None,
        )
        client = self._client = _Client(lambda: target.open_channel(request, timeout_s))

        def meet() -> None:
            self._sender = _sender(nccl_id, client, self._source, self._workers)

        self._bounded(meet, timeout_s)

    def publish(self, target: Target, request: PublishRequest, weights: Weights, timeout_s: float) -> object:
        assert self._client is not None
        self._source.weights = weights
        self._client.publish = lambda buffer: target.publish(
            request.model_copy(update={"buffer": buffer}), timeout_s
        )
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()  # NCCL's sender reads on streams that wait for nothing
        if self._method == "ipc":  # everything at once: one publish is one update
            size = sum(weight.numel() * weight.itemsize for _, weight in weights)
            self._sender.packed_buffer_size_bytes = size
        try:
            self._bounded(self._sender.send_weights, timeout_s)
        finally:
            self._source.weights = ()
        return self._client.answer

    def close(self) -> None:
        if self._sender is not None:
            self._sender.shutdown()

    def _bounded(self, act: Callable[[], None], timeout_s: float) -> None:
        """Run `act` until it ends, the service refuses or time is up; NCCL's own calls have no deadline."""
        assert self._client is not None
        errors: list[BaseException] = []
        device = torch.accelerator.current_device_index() if torch.accelerator.is_available() else None

        def run() -> None:
            try:
                if device is not None:
                    torch.accelerator.set_device_index(device)  # each thread has its own current GPU
                act()
            except BaseException as error:  # noqa: BLE001 (raised in the thread that waits)
                errors.append(error)

        thread = Thread(target=run, name=f"{self._method}-sender", daemon=True)
        thread.start()
        end = time.monotonic() + timeout_s
        while thread.is_alive() and self._client.error is None and time.monotonic() < end:
            thread.join(_POLL_S)
        if self._client.error is not None:
            raise self._client.error
        if errors:
            raise _failed(self._method, str(errors[0])) from errors[0]
        if thread.is_alive():
            raise _failed(self._method, f"not done after {timeout_s:.0f} s")


class _Client:
    """What vLLM's senders send to a vLLM server. `error`: why the service refused."""

    def __init__(self, open_channel: Callable[[], object]) -> None:
        self._open = open_channel
        self.publish: Callable[[IpcBuffer | None], object] | None = None
        self.answer: object = None
        self.error: Exception | None = None

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._ask(self._open)

    def start_weight_update(self) -> None:
        """Part of the publish."""

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        assert isinstance(update_info, dict)  # lists are for several workers
        publish, handles = self.publish, update_info.get("ipc_handles")
        assert publish is not None
        self._ask(lambda: publish(_buffer(handles) if handles is not None else None))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Part of the publish."""

    def _ask(self, call: Callable[[], object]) -> None:
        try:
            self.answer = call()
        except Exception as error:
            self.error = error
            raise


class _Source(WeightSource):
    """The weights of the current publish."""

    weights: Weights = ()

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, weight.dtype, tuple(weight.shape)) for name, weight in self.weights]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self.weights)


class _IpcSender(IPCTrainerWeightTransferEngine):
    """Rank 0's alone: vLLM's would gather handles from all ranks of the job, which wait for commands."""

    def _all_gather_and_merge_handles(self, handles: list[Handles]) -> list[Handles]:
        return handles

    @staticmethod
    def _post_send_sync() -> None:
        torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]


def _sender(nccl_id: bytes | None, client: _Client, source: _Source, workers: int) -> Any:
    """vLLM's sender: through CUDA IPC, or as rank 0 of an NCCL group; the others are vLLM's workers.

    The two find each other by an id that the service passes on. vLLM's alternative is a store without
    authentication, from which its worker would unpickle what it finds.
    """
    if nccl_id is None:
        return _IpcSender.trainer_init(IPCTrainerInitInfo(rank=0, packed=True), client=client, source=source)
    sender = NCCLTrainerWeightTransferEngine(client=client, source=source, packed=True)
    with ThreadPoolExecutor(1) as beside:
        joined = beside.submit(client.init_weight_transfer_engine, {})
        if wait([joined], timeout=_REFUSAL_S).done:  # without a peer NCCL's call would never return
            joined.result()
        device = torch.accelerator.current_device_index()
        sender.model_update_group = uid_init_process_group(nccl_id, 0, 1 + workers, device)
        joined.result()
    return sender


def _new_nccl_id() -> bytes:
    return bytes(NCCLLibrary().ncclGetUniqueId())


def _buffer(handles: Handles) -> IpcBuffer:
    """From the handles of a flat tensor of bytes."""
    ((gpu, arguments),) = handles.items()
    memory, size, offset, _, counter, counter_offset, event, wait = arguments[7:]
    return IpcBuffer(
        gpu=gpu,
        size=size,
        memory=base64.b64encode(memory).decode(),
        offset=offset,
        counter=base64.b64encode(counter).decode(),
        counter_offset=counter_offset,
        event=base64.b64encode(event).decode(),
        wait=bool(wait),
    )


def _failed(method: str, why: str) -> TrainingError:
    return TrainingError(
        "transfer_failed",
        f"the weights could not be sent through the {method} channel: {why}",
        path="rollout.publish",
        remedy="set rollout.publish to shm or store if this happens again",
        retryable=True,
    )

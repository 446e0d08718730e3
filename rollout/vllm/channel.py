"""Weights sent straight into vLLM's worker through its weight-transfer endpoints: gloo, NCCL or CUDA IPC."""

import base64
import importlib
import pickle
from dataclasses import dataclass
from importlib.metadata import entry_points
from math import prod
from typing import Any, Literal

from powermean.contracts.rollout import ChannelMethod, ChannelRequest, IpcBuffer, PublishRequest, WeightTensor
from rollout.engine import EngineError
from rollout.vllm.model_folder import ModelFolder, renames
from rollout.vllm.plugin import GLOO_BACK_END
from rollout.vllm.server import VllmServer

_CORRUPT = "weights_corrupt"  # in the message of rollout.gloo.Receiver
_BYTES = {"float32": 4, "bfloat16": 2}


def offered(wanted: Literal["auto", "nccl", "ipc"], *, on_gpu: bool) -> ChannelMethod | None:
    """The channel that a vLLM server is started with; None means weights from files only.

    `auto` is gloo on a CPU, if our backend is installed, and none on a GPU.
    """
    if wanted == "auto":
        return "gloo" if not on_gpu and _registered() else None
    if not on_gpu:
        raise EngineError(
            500, "channel_unsupported", f"{wanted} needs a GPU", remedy="Leave --transfer out on a CPU."
        )
    return wanted


@dataclass(frozen=True)
class Update:
    """What vLLM's worker is told before a publish."""

    version: int
    info: dict[str, Any]


class Channel:
    """The channel from one trainer. Its calls come one at a time."""

    def __init__(self, server: VllmServer, model: ModelFolder) -> None:
        self._server = server
        self._model = model
        self._opened: tuple[int, int] | None = None  # the server's start, and the attempt

    @property
    def method(self) -> ChannelMethod | None:
        return self._server.options.transfer

    def open(self, request: ChannelRequest) -> None:
        """Connect to the trainer, which must do its part at the same time. An earlier channel is closed.

        Raises EngineError: channel_failed if they did not connect, engine_timeout, engine_died.
        """
        start = self._server.starts
        self._opened = None
        try:
            self._server.call(
                "open the channel", "/init_weight_transfer_engine", body={"init_info": self._meeting(request)}
            )
        except EngineError as error:
            if error.code == "engine_timeout":  # the worker is in a call that may never return
                self._server.kill(f"opening a {request.method} channel failed: {error}")
            if error.code != "engine_error":
                raise
            raise EngineError(
                503,
                "channel_failed",
                f"the {request.method} channel could not be opened: {error}",
                remedy="Open it again, or publish with method store if it keeps failing.",
            ) from error
        self._opened = (start, request.attempt)

    def update(self, request: PublishRequest) -> Update:
        """The announced tensors, checked. Raises EngineError (channel_closed, weights_mismatch)."""
        if self._opened != (self._server.starts, request.attempt):
            raise EngineError(
                409,
                "channel_closed",
                "no channel is open to this attempt: vLLM may have restarted",
                remedy="POST /v1/channel, then publish again.",
            )
        changed = renames(self._model, _shapes(request.tensors))
        for tensor in request.tensors:
            if tensor.dtype != self._server.options.dtype:
                raise _mismatch(f"{tensor.name} is {tensor.dtype}, the engine {self._server.options.dtype}")
        info: dict[str, Any] = {
            "names": [changed.get(tensor.name, tensor.name) for tensor in request.tensors],
            "dtype_names": [tensor.dtype for tensor in request.tensors],
            "shapes": [list(tensor.shape) for tensor in request.tensors],
        }
        if request.method == "gloo":
            info |= {"version": request.version, "sha256": request.sha256}
        if request.method == "ipc":
            if request.buffer is None:
                raise EngineError(422, "invalid", "method ipc needs a buffer", path="buffer")
            sizes = [prod(tensor.shape) * _BYTES[tensor.dtype] for tensor in request.tensors]
            if sum(sizes) > request.buffer.size:
                raise _mismatch(f"{sum(sizes)} bytes of tensors in a buffer of {request.buffer.size}")
            info |= {"tensor_sizes": sizes, "ipc_handles_pickled": _handles(request.buffer)}
        return Update(request.version, info)

    def receive(self, update: Update) -> None:
        """Load the weights and name their version. After an error the model may mix two versions."""
        call = self._server.call
        call("start the update", "/start_weight_update")
        try:
            call("receive weights", "/update_weights", body={"update_info": update.info})
        except EngineError as error:
            if _CORRUPT not in str(error):
                raise
            remedy = "Publish again: they were changed in transit."
            raise EngineError(503, _CORRUPT, str(error), remedy=remedy) from error
        call("finish the update", "/finish_weight_update", body={"weight_version": str(update.version)})

    def _meeting(self, request: ChannelRequest) -> dict[str, Any]:
        if request.method == "gloo":
            limit = self._server.deadlines.sync_step
            return {"host": request.host, "port": request.port, "timeout_s": limit}
        if request.method == "nccl":  # the trainer is rank 0, then come this engine's workers
            return {
                "nccl_unique_id_b64": request.nccl_id,
                "rank_offset": 1,
                "world_size": 1 + self._server.options.tensor_parallel,
                "packed": True,
            }
        return {"packed": True}


def _registered() -> bool:
    return any(point.name == GLOO_BACK_END for point in entry_points(group="vllm.general_plugins"))


def _shapes(tensors: tuple[WeightTensor, ...]) -> dict[str, tuple[int, ...]]:
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    if len(shapes) < len(tensors):
        raise _mismatch("a tensor occurs twice")
    return shapes


def _handles(buffer: IpcBuffer) -> str:
    """In the form that vLLM expects over HTTP: torch's reduce_tensor of a flat byte tensor, pickled.

    The pickle is built here from checked numbers, so that no client can make vLLM load its own.
    """
    torch = importlib.import_module("torch")  # here on purpose: vLLM has it, and this process seldom needs it
    arguments = (
        *(torch.Tensor, torch.Size([buffer.size]), (1,), 0, torch.storage.TypedStorage, torch.uint8),
        0,  # the GPU's number; the worker replaces it with its own
        *(base64.b64decode(buffer.memory), buffer.size, buffer.offset, False),
        *(base64.b64decode(buffer.counter), buffer.counter_offset),
        *(base64.b64decode(buffer.event), buffer.wait),
    )
    return base64.b64encode(pickle.dumps({buffer.gpu: arguments})).decode()


def _mismatch(message: str) -> EngineError:
    return EngineError(
        409,
        "weights_mismatch",
        message,
        remedy="Publish all weights of the model that the engine was started with.",
    )

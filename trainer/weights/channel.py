"""Sends new weights straight into the engine's memory: gloo on CPUs, vLLM's NCCL and CUDA IPC on GPUs.

Both sides of a channel work at the same time: one thread asks the rollout service to receive the weights
while another sends them. The service's answer decides; no wait is longer than the given time.
"""

import importlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from powermean.contracts.rollout import (
    ChannelMethod,
    ChannelRequest,
    HoldRequest,
    PublishRequest,
    WeightTensor,
)
from rollout.client import EngineRefusedError
from rollout.gloo import Sender, TransferError, tensors_sha256
from trainer.failures import TrainingError
from trainer.learner.lora import served_weights
from trainer.weights.files import Target
from trainer.weights.peer import Peer, Weights

POLL_S = 0.005
_CLOSED = "channel_closed"

Result = TypeVar("Result")


@dataclass
class ChannelWriter:
    """See trainer.weights.files.Publisher. Channels stay open; a broken one is replaced."""

    job_id: str
    attempt: int
    method: ChannelMethod
    dtype: torch.dtype  # of the engine's weights
    connect: Callable[[Target], Peer]
    sleeps: bool = False  # the engine, while the trainer makes a version
    call_ranks: Callable[[], object] = lambda: None  # to `take_part`, where the model is sharded
    from_the_start: bool = field(default=False, init=False)
    _weights: Weights = field(default=(), init=False)
    _peers: dict[Target, Peer] = field(default_factory=dict, init=False)  # one channel for each replica

    def write(self, model: nn.Module, version: int) -> PublishRequest:
        """Keep the weights, copied only if the engine's type or gloo needs another form.

        Raises TrainingError (publish_dtype) for a weight that is not a floating-point number.
        """
        device = torch.device("cpu") if self.method == "gloo" else None
        self.call_ranks()
        with closing(served_weights(model, self.dtype)) as weights:
            self._weights = [(name, _ready(name, weight, self.dtype, device)) for name, weight in weights]
        return PublishRequest(
            job_id=self.job_id,
            attempt=self.attempt,
            version=version,
            method=self.method,
            tensors=tuple(
                WeightTensor(name=name, dtype=_type_name(self.dtype), shape=tuple(weight.shape))
                for name, weight in self._weights
            ),
            sha256=tensors_sha256(weight for _, weight in self._weights) if self.method == "gloo" else None,
        )

    def publish(self, target: Target, request: PublishRequest, timeout_s: float) -> object:
        """Send the weights; opens a channel if none is open or the engine no longer knows it."""
        known = target in self._peers
        try:
            return self._send(target, request, timeout_s)
        except EngineRefusedError as refusal:
            if not known or refusal.code != _CLOSED:
                raise
            return self._send(target, request, timeout_s)

    def discard(self, version: int) -> None:
        """Release the weights."""
        self._weights = ()

    def hold_request(self, version: int) -> HoldRequest | None:
        """See trainer.weights.files.Publisher."""
        if not self.sleeps:
            return None
        return HoldRequest(job_id=self.job_id, attempt=self.attempt, version=version)

    def close(self) -> None:
        """Close the channels."""
        for target in list(self._peers):
            self._close(target)

    def _send(self, target: Target, request: PublishRequest, timeout_s: float) -> object:
        """Other threads meanwhile send to other targets."""
        try:
            if target not in self._peers:
                self._peers[target] = self.connect(target)
                self._peers[target].open(target, self.job_id, self.attempt, timeout_s)
            return self._peers[target].publish(target, request, self._weights, timeout_s)
        except BaseException:
            self._close(target)
            raise

    def _close(self, target: Target) -> None:
        if (peer := self._peers.pop(target, None)) is not None:
            peer.close()


class GlooPeer:
    """Weights over TCP between CPUs."""

    def __init__(self, address: str) -> None:
        """`address`: this host's, as the engine reaches it; the only one it listens on."""
        self._address = address
        self._sender: Sender | None = None

    def open(self, target: Target, job_id: str, attempt: int, timeout_s: float) -> None:
        sender = self._sender = Sender(self._address, timeout_s)
        request = ChannelRequest(
            job_id=job_id, attempt=attempt, method="gloo", host=self._address, port=sender.port
        )

        def meet(answered: Callable[[], bool]) -> None:
            if _awaited(sender.is_met, answered, timeout_s):
                sender.meet()

        self._beside(lambda: target.open_channel(request, timeout_s), meet)

    def publish(self, target: Target, request: PublishRequest, weights: Weights, timeout_s: float) -> object:
        sender = self._sender
        assert sender is not None

        def send(answered: Callable[[], bool]) -> None:
            if _awaited(lambda: sender.is_awaited(request.version), answered, timeout_s):
                sender.send(weight for _, weight in weights)

        return self._beside(lambda: target.publish(request, timeout_s), send)

    def close(self) -> None:
        if self._sender is not None:
            self._sender.close()

    def _beside(self, ask: Callable[[], Result], act: Callable[[Callable[[], bool]], None]) -> Result:
        """Run `ask` and, at the same time, our part `act`, which is told when `ask` has ended."""
        with ThreadPoolExecutor(1, "publish") as pool:
            answer = pool.submit(ask)
            try:
                act(answer.done)
            except TransferError as error:
                self.close()  # so that the other side does not wait for us
                answer.result()  # the reason, if the service knows it
                raise TrainingError(
                    "transfer_failed",
                    f"the weights could not be sent through the gloo channel: {error}",
                    path="rollout.publish",
                    remedy="set rollout.publish to store if this happens again",
                    retryable=True,
                ) from error
            return answer.result()


def connector(
    method: ChannelMethod, address: Callable[[Target], str], workers: int = 1
) -> Callable[[Target], Peer]:
    """Returns a function that makes our end of a channel.

    `address`: this host's, as an engine reaches it. `workers`: processes of one engine that take weights, one
    for each of its GPUs. vLLM is imported only if its senders are needed, because that takes ten seconds.
    """
    if method == "gloo":
        return lambda target: GlooPeer(address(target))
    senders = importlib.import_module("trainer.weights.vllm_senders")
    return lambda _target: senders.VllmPeer(method, workers)


def _awaited(condition: Callable[[], bool], answered: Callable[[], bool], timeout_s: float) -> bool:
    """Wait for the condition; False if the service has already answered, which means it refused."""
    end = time.monotonic() + timeout_s
    while not condition():
        if answered():
            return False
        if time.monotonic() > end:
            raise TransferError(f"vLLM's worker was not ready within {timeout_s:.0f} s")
        time.sleep(POLL_S)
    return True


def _ready(name: str, weight: Tensor, dtype: torch.dtype, device: torch.device | None) -> Tensor:
    if not weight.is_floating_point():
        raise TrainingError(
            "publish_dtype",
            f"{name} is {weight.dtype}: a channel only carries float32 and bfloat16 weights",
            path="rollout.publish",
            remedy="set rollout.publish to auto, shm or store",
        )
    return weight.detach().to(device=device, dtype=dtype)


def _type_name(dtype: torch.dtype) -> Literal["float32", "bfloat16"]:
    return "bfloat16" if dtype == torch.bfloat16 else "float32"

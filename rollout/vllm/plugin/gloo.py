"""vLLM's end of the gloo channel: a weight-transfer backend for CPUs, where vLLM has none."""

from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from rollout.gloo import Announced, Receiver
from rollout.vllm.plugin.extension import refresh_packed_heads


@dataclass
class GlooInit(WeightTransferInitInfo):
    """Where the trainer listens."""

    host: str
    port: int
    timeout_s: float


@dataclass
class GlooUpdate(WeightTransferUpdateInfo):
    """The announced tensors, one entry each, and the hash of them all."""

    version: int
    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    sha256: str


class GlooWeightTransferEngine(WeightTransferEngine[GlooInit, GlooUpdate]):
    """Loads weights in checkpoint format as they arrive, layer by layer.

    They are in the model before their hash is known; vLLM is paused meanwhile, and the rollout service ends
    it if the update fails.
    """

    init_info_cls = GlooInit
    update_info_cls = GlooUpdate
    _receiver: Receiver | None = None

    def init_transfer_engine(self, init_info: GlooInit) -> None:
        """Connect to the trainer; an earlier channel is closed."""
        self.shutdown()
        self._receiver = Receiver(init_info.host, init_info.port, init_info.timeout_s)

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Like the base class, which would wait for an accelerator."""
        self.receive_weights(self.parse_update_info(update_info))

    @torch.no_grad()
    def receive_weights(self, update_info: GlooUpdate) -> None:
        """Raises TransferError and closes the channel, which also ends the trainer's call."""
        if self._receiver is None:
            raise RuntimeError("no channel was opened")
        told = zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True)
        announced = [Announced(name, getattr(torch, dtype), tuple(shape)) for name, dtype, shape in told]
        coming = self._receiver.receive(update_info.version, announced, update_info.sha256)
        try:
            model: Any = self.model  # every vLLM model has it
            model.load_weights(coming)
            for name, _ in coming:  # the hash is checked at the end of the tensors
                raise RuntimeError(f"the model did not load {name}")
        except BaseException:
            self.shutdown()
            raise

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)  # type: ignore[no-untyped-call]
        refresh_packed_heads(self.model)

    def shutdown(self) -> None:
        """Close the channel."""
        if self._receiver is not None:
            self._receiver.close()
            self._receiver = None

"""Methods that we add to vLLM's workers (`--worker-extension-cls`), called remotely.

vLLM makes the class below a base of its worker class, so `self` is that worker. Arguments come as strings.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from safetensors import safe_open
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.platforms import current_platform

from rollout.vllm.plugin import lora_products

# At each publish it warns of layers that hold nothing of their own: a tied output layer, rotary embeddings.
# That each weight is there has been checked.
logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)

if current_platform.is_cpu():  # vLLM imports this file before it loads the model and offers no other hook
    lora_products.install()


class WorkerExtension:
    """Loads published weights into the running model."""

    reload_weights: Callable[..., None]
    get_model: Callable[[], torch.nn.Module]

    @torch.no_grad()
    def powermean_load(self, paths: str, renamed: str) -> dict[str, float]:
        """Load safetensors files in place; their names and shapes have been checked.

        `paths`: JSON list; `renamed`: JSON object from names in the files to the model's own. Returns the
        duration in seconds. After an exception the model has weights of both versions.
        """
        started = time.monotonic()
        self.reload_weights(weights_iterator=_tensors(json.loads(paths), json.loads(renamed)))
        refresh_packed_heads(self.get_model())
        return {"seconds": time.monotonic() - started}


def refresh_packed_heads(model: Any) -> None:
    """Pack output layers again.

    On a CPU they compute with a packed copy of their weight. A layer tied to the embedding loads nothing
    itself, so vLLM's reload keeps the old copy, and log-probs silently come from mixed weights.
    """
    if not current_platform.is_cpu():
        return
    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)


def _tensors(paths: Sequence[str], renamed: Mapping[str, str]) -> Iterator[tuple[str, torch.Tensor]]:
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                yield renamed.get(name, name), file.get_tensor(name)

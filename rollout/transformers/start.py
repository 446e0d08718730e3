"""How `python -m rollout` starts the transformers engine."""

import torch
from torch.utils import deterministic

from rollout.engine import Fence
from rollout.settings import RolloutSettings
from rollout.transformers.engine import TransformersEngine, load_engine
from rollout.weights import WeightSource


def start(settings: RolloutSettings, fence: Fence, weights: WeightSource) -> TransformersEngine:
    """The engine of these settings, in a process of its own. Raises EngineError: see load_engine."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # otherwise some sums on a GPU depend on timing
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads such memory
    return load_engine(
        settings.model,
        device=settings.device,
        dtype={"float32": torch.float32, "bfloat16": torch.bfloat16}[settings.dtype],
        fence=fence,
        weights=weights,
        max_model_len=settings.max_model_len,
        max_batch_tokens=settings.batch_tokens,
    )

"""Registers our weight-transfer backend in vLLM: the entry point `vllm.general_plugins` in pyproject.toml."""

from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from rollout.vllm.plugin import GLOO_BACK_END


def register() -> None:
    """vLLM calls this in each of its processes, sometimes more than once."""
    if GLOO_BACK_END not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            GLOO_BACK_END, "rollout.vllm.plugin.gloo", "GlooWeightTransferEngine"
        )

"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft: the base model stays frozen.

An engine that serves whole models gets the merged weights W + (alpha / r) B A, one that takes adapters B and
A alone; checkpoints hold the adapter alone, the final model both.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers import PreTrainedModel

from powermean.contracts.job import LoraSpec
from powermean.contracts.rollout import AdapterShape
from trainer.failures import check_modules

_ADAPTER = "default"
_PREFIX = "base_model.model."


def attach(model: PreTrainedModel, spec: LoraSpec, name: str) -> PeftModel:
    """The model with a new adapter, which changes nothing yet; `name` is the base model's, for the export.

    Raises TrainingError (unknown_modules) where the model has no linear layers of these names.
    """
    linear = {path.rpartition(".")[2] for path, part in model.named_modules() if isinstance(part, nn.Linear)}
    linear -= {"lm_head"}
    check_modules(spec.target_modules, linear)
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=spec.dropout,
        target_modules=sorted(spec.target_modules or linear),
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)
    config.base_model_name_or_path = name  # peft takes the folder on this machine
    adapted.train(False)  # its new layers come in training mode, and drop
    return adapted


def has_dropout(model: nn.Module) -> bool:
    """Whether training passes are random: then pi_old has to come from a pass of its own."""
    return any(True for _ in _dropouts(model))


@contextmanager
def dropping(model: nn.Module) -> Iterator[None]:
    """The adapter's dropout is active for as long as the block lasts."""
    layers = list(_dropouts(model))
    for layer in layers:
        layer.train(True)
    try:
        yield
    finally:
        for layer in layers:
            layer.train(False)


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What training changes, by name: the adapter's weights, or the whole state of a model without one."""
    state = model.state_dict()
    if not isinstance(model, PeftModel):
        return state
    return {name: weight for name, weight in state.items() if ".lora_" in name}


def adapter_state(model: PeftModel) -> dict[str, Tensor]:
    """The adapter's weights under the names of peft's own files."""
    return {name.replace(f".{_ADAPTER}.", "."): weight for name, weight in trained_state(model).items()}


def adapter_shape(model: PeftModel) -> AdapterShape:
    """What these weights mean."""
    config = model.peft_config[_ADAPTER]
    assert isinstance(config, LoraConfig)
    assert config.target_modules is not None
    return AdapterShape(
        rank=config.r, alpha=config.lora_alpha, target_modules=tuple(sorted(config.target_modules))
    )


@torch.no_grad()
def served_state(model: nn.Module, merged_on: torch.device | None = None) -> dict[str, Tensor]:
    """The weights of the plain model that an engine serves: merged, under the base model's names.

    Merged layers are copies. They go to the device `merged_on` one by one, so that those of a GPU need not
    have room there all at once.
    """
    if not isinstance(model, PeftModel):
        return model.state_dict()
    merged = {
        path: (_weight(layer.get_base_layer()) + layer.get_delta_weight(_ADAPTER)).to(merged_on)
        for path, layer in model.named_modules()
        if isinstance(layer, LoraLinear)
    }
    served = {}
    for name, weight in model.state_dict().items():
        if ".lora_" in name:
            continue
        path, _, kind = name.rpartition(".base_layer.")
        if path and kind == "weight":
            weight = merged[path]
        served[(f"{path}.{kind}" if path else name).removeprefix(_PREFIX)] = weight
    return served


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _dropouts(model: nn.Module) -> Iterator[nn.Module]:
    for layer in model.modules():
        if isinstance(layer, LoraLinear):
            for part in layer.lora_dropout.values():
                if isinstance(part, nn.Dropout) and part.p > 0:
                    yield part

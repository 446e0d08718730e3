"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft: the base model stays frozen.

An engine that serves whole models gets the merged weights W + (alpha / r) B A, one that takes adapters B and
A alone; checkpoints hold the adapter alone, the final model both.
"""

from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from powermean.contracts.models import LoraSpec
from powermean.contracts.rollout import AdapterShape
from trainer.failures import check_modules, unknown_modules
from trainer.learner.model_state import named_weights, tied_names
from trainer.ranks.gradients import is_sharded
from trainer.ranks.sharding import whole

_ADAPTER = "default"
_PREFIX, _BASE, _LORA = "base_model.model.", ".base_layer.", ".lora_"


def attach(model: PreTrainedModel, spec: LoraSpec, name: str) -> PeftModel:
    """The model with a new adapter, which changes nothing yet; `name` is the base model's, for the export.

    Raises TrainingError (unknown_modules) where the model has no linear layers of these names, or only the
    parameters of fused experts, which can't be merged.
    """
    known = _linear_layers(model)
    check_modules(spec.target_modules, known)
    wanted = set(spec.target_modules) or _without_experts(model, spec, known)
    if not wanted:
        raise unknown_modules("has no linear layers for an adapter", known)
    config = _config(spec, wanted)
    adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)
    others = {
        path.rpartition(".")[2]
        for path, layer in adapted.named_modules()
        if isinstance(layer, BaseTunerLayer) and not isinstance(layer, LoraLinear)
    }
    if others:
        taken = wanted - set(config.target_modules or ())
        raise unknown_modules(
            f"has no linear layers named {', '.join(sorted(taken))} in its {', '.join(sorted(others))}, "
            "whose weights are fused",
            wanted - taken,
        )
    config.base_model_name_or_path = name  # peft takes the folder on this machine
    adapted.train(False)  # its new layers come in training mode, and drop
    return adapted


def _config(spec: LoraSpec, names: Collection[str]) -> LoraConfig:
    return LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=spec.dropout,
        target_modules=sorted(names),
        task_type="CAUSAL_LM",
    )


def _linear_layers(model: PreTrainedModel) -> set[str]:
    """Names of the model's linear layers, its output layer left out."""
    output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return {
        path.rpartition(".")[2]
        for path, part in model.named_modules()
        if isinstance(part, nn.Linear) and part is not output
    }


def _without_experts(model: PreTrainedModel, spec: LoraSpec, names: Collection[str]) -> set[str]:
    """The names that peft takes for linear layers alone: it gives some to fused experts, too.

    Which ones is up to peft and the architecture, so it is tried on a twin without weights.
    """
    if not names:
        return set()
    config = _config(spec, names)
    get_peft_model(without_weights(model.config), config)
    return set(config.target_modules or ())


def without_weights(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of that config on the meta device: layers and shapes, no memory."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(deepcopy(config))  # type: ignore[no-untyped-call]
    return model


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
    state = named_weights(model)
    if not isinstance(model, PeftModel):
        return state
    return {name: weight for name, weight in state.items() if _LORA in name}


def adapter_shape(model: PeftModel) -> AdapterShape:
    """What these weights mean."""
    config = model.peft_config[_ADAPTER]
    assert isinstance(config, LoraConfig)
    assert config.target_modules is not None
    return AdapterShape(
        rank=config.r, alpha=config.lora_alpha, target_modules=tuple(sorted(config.target_modules))
    )


def served_weights(
    model: nn.Module, dtype: torch.dtype | None = None
) -> Generator[tuple[str, Tensor], None, None]:
    """The weights of the plain model that an engine serves, one after the other, under the base model's
    names; those that are tied once, under the first.

    Those that an adapter is merged into are made when it is their turn, and so is a whole one of a sharded
    model, in `dtype` if it is given; all others are the model's own. A collective where the model is sharded.
    """
    return _in_step(model, _served(model, dtype))


def served_adapter(model: PeftModel) -> Generator[tuple[str, Tensor], None, None]:
    """The adapter's weights under the names of peft's own files. See `served_weights`."""
    return _in_step(
        model,
        (
            (name.replace(f".{_ADAPTER}.", "."), whole(weight.detach()))
            for name, weight in trained_state(model).items()
        ),
    )


def _in_step(
    model: nn.Module, weights: Iterable[tuple[str, Tensor]]
) -> Generator[tuple[str, Tensor], None, None]:
    """Ranks that hold parts of the model gather all of its weights, even if the one that sends them stops."""
    weights = iter(weights)
    try:
        for named in weights:  # noqa: UP028 (`yield from` would close it, too)
            yield named
    except GeneratorExit:
        if is_sharded(model):
            for _ in weights:
                pass
        raise


def _served(model: nn.Module, dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
    layers: dict[str, LoraLinear] = {}
    if isinstance(model, PeftModel):
        layers = {
            f"{path}{_BASE}weight": layer
            for path, layer in model.named_modules()
            if isinstance(layer, LoraLinear)
        }
    state = {name: weight for name, weight in named_weights(model).items() if _LORA not in name}
    tied = tied_names({name: weight for name, weight in state.items() if name not in layers})
    for name, weight in state.items():
        if name in layers:
            yield _served_name(name), _merged(layers[name])
        elif name not in tied:
            yield _served_name(name), _gathered(weight, dtype)


def _served_name(name: str) -> str:
    return name.replace(_BASE, ".").removeprefix(_PREFIX)


def _gathered(weight: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Rounded before it is sent: the numbers are the same, the bytes are fewer."""
    if isinstance(weight, DTensor) and dtype is not None and weight.is_floating_point():
        return whole(weight.detach().to(dtype))
    return whole(weight.detach())


@torch.no_grad()
def _merged(layer: LoraLinear) -> Tensor:
    """W + (alpha / r) B A"""
    base, low, high = (
        whole(_weight(part))
        for part in (layer.get_base_layer(), layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER])
    )
    change = (high.float() @ low.float()) * layer.scaling[_ADAPTER]
    merged: Tensor = base + (change.T if layer.fan_in_fan_out else change)
    return merged


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

"""The bytes that a layer is said to keep are those that autograd keeps."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Starcoder2Config,
)

from trainer.policy.chains import by_chains
from trainer.policy.token_tree import Attend, micro_batches
from trainer.policy.tree_attention import attend_by_trees
from trainer.preflight.kept_per_layer import Precision, Shape
from trainer.rollouts.batching import Trajectories

TOKENS, VOCABULARY = 40, 100
WIDTHS = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
FAMILIES: dict[str, Callable[[int], PreTrainedConfig]] = {
    "llama": lambda n: LlamaConfig(num_hidden_layers=n, **WIDTHS),
    "qwen2": lambda n: Qwen2Config(num_hidden_layers=n, **WIDTHS),
    "qwen3": lambda n: Qwen3Config(num_hidden_layers=n, head_dim=32, **WIDTHS),
    "mistral": lambda n: MistralConfig(num_hidden_layers=n, sliding_window=None, **WIDTHS),
    "granite": lambda n: GraniteConfig(num_hidden_layers=n, **WIDTHS),
    "starcoder2": lambda n: Starcoder2Config(num_hidden_layers=n, sliding_window=None, **WIDTHS),
    "gpt2": lambda n: GPT2Config(n_layer=n, n_embd=128, n_head=8, vocab_size=VOCABULARY),
    "opt": lambda n: OPTConfig(
        num_hidden_layers=n,
        hidden_size=128,
        ffn_dim=512,
        word_embed_proj_dim=128,
        num_attention_heads=8,
        vocab_size=VOCABULARY,
        dropout=0.0,
    ),
    "phi": lambda n: PhiConfig(
        num_hidden_layers=n,
        hidden_size=128,
        intermediate_size=512,
        num_attention_heads=8,
        vocab_size=VOCABULARY,
    ),
    "neox": lambda n: GPTNeoXConfig(
        num_hidden_layers=n,
        hidden_size=128,
        intermediate_size=512,
        num_attention_heads=8,
        vocab_size=VOCABULARY,
    ),
}


class _Attention(torch.autograd.Function):
    """Keeps what fused attention keeps: its inputs, its output and one number a query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:3]))
        return output

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError


def fused(query: Tensor, key: Tensor, value: Tensor, _scale: float | None) -> Tensor:
    """Attention's shape and memory, without its values."""
    kept: Tensor = _Attention.apply(query.to(value.dtype), key.to(value.dtype), value)  # type: ignore[no-untyped-call]
    return kept


def kept_bytes(
    config: PreTrainedConfig, precision: Precision, attend: Attend = fused, tokens: int = TOKENS
) -> int:
    """What autograd keeps of a pass over so many tokens, weights aside."""
    model = AutoModelForCausalLM.from_config(deepcopy(config)).train(False)
    if precision == "bfloat16":
        model = model.bfloat16()
    attend_by_trees(model)
    weights = {one.untyped_storage().data_ptr() for one in [*model.parameters(), *model.buffers()]}
    copies = {tuple(one.shape) for one in model.parameters()} | {
        tuple(one.shape[::-1]) for one in model.parameters()
    }
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights and tuple(tensor.shape) not in copies:
            kept[place] = tensor
        return tensor

    ids = torch.zeros(1, tokens, dtype=torch.int64)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"),
    ):
        model.base_model(
            input_ids=ids,
            position_ids=ids,
            attention_mask=torch.zeros(1, 1, 1, 1),
            use_cache=False,
            token_tree=attend,
        )
    return sum(one.untyped_storage().nbytes() for one in kept.values())


@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_keeps_what_is_said(family: str, precision: Precision) -> None:
    config = FAMILIES[family]
    one, three = (kept_bytes(config(layers), precision) for layers in (1, 3))
    names = AutoModelForCausalLM.from_config(config(1)).state_dict().keys()
    shape = Shape.of(config(1).to_dict(), names)
    assert shape is not None
    assert shape.kept(precision, compiled=False) == pytest.approx((three - one) / 2 / TOKENS, rel=0.15)


def test_chains_keep_their_own_keys_and_values() -> None:
    """A group of 8 x (40 + 41): the keys of a chain are its prompt's and its own."""
    prompt, completion, group = 40, 41, 8
    given = Trajectories([[1] * prompt] * group, [[row + 2] * completion for row in range(group)])
    (tree,) = micro_batches(given, 10_000)
    # The last token of a completion is predicted, never read.
    nodes, keys = prompt + group * (completion - 1), prompt + group * (prompt + completion - 1)
    assert tree.size == nodes
    one, three = (
        kept_bytes(FAMILIES["llama"](layers), "float32", by_chains(tree), nodes) for layers in (1, 3)
    )
    shape = Shape.of(FAMILIES["llama"](1).to_dict(), ["model.layers.0.mlp.gate_proj.weight"])
    assert shape is not None
    said = shape.kept("float32", compiled=False, paths=keys / nodes)
    assert said == pytest.approx((three - one) / 2 / nodes, rel=0.03)


def test_a_config_without_widths_has_no_shape() -> None:
    assert Shape.of({"model_type": "mystery", "vocab_size": 9}, ()) is None


def test_compiled_layers_keep_less() -> None:
    shape = Shape.of(LlamaConfig(**WIDTHS).to_dict(), ["model.layers.0.mlp.gate_proj.weight"])
    assert shape is not None
    for precision in ("float32", "autocast", "bfloat16"):
        assert shape.kept(precision, compiled=True) < shape.kept(precision, compiled=False)

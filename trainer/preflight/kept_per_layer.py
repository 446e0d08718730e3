"""Bytes that autograd keeps of a token in one decoder layer, from the model's config and its weights' names.

Counted tensor by tensor in transformers' layers, and compared with what autograd really keeps of a dozen
families (tests/trainer/preflight/test_kept_per_layer.py). D is the hidden size, Q, K and I the widths of
queries, keys and MLP:

                   float32       autocast      bfloat16      compiled
    RMSNorm        24 D          26 D          16 D          10 D, under autocast 12 D
    LayerNorm      16 D          16 D           8 D          the same
    attention       8 (Q + K)     4 (Q + K)     4 (Q + K)     4 (Q + K)
    q and k norms   8 (Q + K)     8 (Q + K)     6 (Q + K)     2 (Q + K)
    gated MLP      16 I           8 I           8 I           6 I
    plain MLP       4 to 20 I, by its activation; half of it in bfloat16

Autocast works with float32 residuals and norms, and bfloat16 products. What a compiler fuses, it computes
again in the backward pass.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Precision = Literal["float32", "autocast", "bfloat16"]

_NORMS = {"float32": 24, "autocast": 26, "bfloat16": 16}
_COMPILED_NORMS = {"float32": 20, "autocast": 12, "bfloat16": 10}
_LAYER_NORMS = {"float32": 16, "autocast": 16, "bfloat16": 8}
_SMALL_NORMS = {"float32": 8, "autocast": 8, "bfloat16": 6}
# Numbers that a plain MLP keeps, in widths of it. Activations written in Python keep each step.
_STEPS = {"relu": 1, "gelu_new": 5, "gelu_fast": 5, "gelu_python": 3, "quick_gelu": 3, "relu2": 3}
_NATIVE = 2


@dataclass(frozen=True)
class Shape:
    """A decoder's widths, and what its layers are made of."""

    layers: int
    hidden: int
    queries: int
    keys: int
    mlp: int
    vocabulary: int
    layer_norms: bool
    small_norms: bool  # of queries and keys
    mlp_steps: int | None  # of a plain MLP; None: gated

    @classmethod
    def of(cls, config: Mapping[str, Any], names: Collection[str]) -> "Shape | None":
        """From config.json and the names of the weights; None where the config doesn't say."""
        hidden, layers, heads, vocabulary = (
            _number(config, *found)
            for found in (
                ("hidden_size", "n_embd", "d_model"),
                ("num_hidden_layers", "n_layer", "num_layers"),
                ("num_attention_heads", "n_head", "num_heads"),
                ("vocab_size",),
            )
        )
        if hidden is None or layers is None or heads is None or vocabulary is None:
            return None
        head = _number(config, "head_dim") or hidden // heads
        activation = str(config.get("hidden_act") or config.get("activation_function"))
        gated = any("gate" in name for name in names)
        return cls(
            layers=layers,
            hidden=hidden,
            queries=heads * head,
            keys=(_number(config, "num_key_value_heads") or heads) * head,
            mlp=_number(config, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden,
            vocabulary=vocabulary,
            layer_norms=any(re.search(r"(norm|\bln_\w+)\.bias$", name) for name in names),
            small_norms=any(re.search(r"\bq_norm\b", name) for name in names),
            mlp_steps=None if gated else _STEPS.get(activation, _NATIVE),
        )

    def kept(self, precision: Precision, *, compiled: bool, paths: float | None = None) -> float:
        """Bytes a token in a layer.

        paths: keys that are gathered for a token where attention works on chains of tokens, on a CPU.
        """
        size = 4 if precision == "float32" else 2
        ends = self.queries + self.keys
        norms = (_COMPILED_NORMS if compiled else _NORMS)[precision]
        if self.layer_norms:
            norms = _LAYER_NORMS[precision]
        small = (size if compiled else _SMALL_NORMS[precision]) if self.small_norms else 0
        steps = self.mlp_steps if self.mlp_steps is not None else 3 if compiled else 4
        if compiled:
            steps = min(steps, 3)
        # Chains keep their own keys and values in place of the tree's, and the output in both orders.
        gathered = 0 if paths is None else size * (self.queries + 2 * self.keys * (paths - 1))
        return norms * self.hidden + (2 * size + small) * ends + gathered + steps * size * self.mlp


def _number(config: Mapping[str, Any], *names: str) -> int | None:
    return next((config[name] for name in names if isinstance(config.get(name), int)), None)

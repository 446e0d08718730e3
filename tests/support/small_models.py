"""Models of many families, small and of random weights."""

from copy import deepcopy

import torch
from torch import nn
from transformers import AutoModelForCausalLM as Causal
from transformers import (
    BloomConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    GPTJConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedModel,
    Qwen2Config,
    Starcoder2Config,
)

from tests.support.trajectories import VOCABULARY

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_GPT = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
}
_NO_SPECIAL = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
CONFIGS = {
    "tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "untied": Qwen2Config(**SMALL, tie_word_embeddings=False),
    "gpt2": GPT2Config(**_GPT),
    "scaled": CohereConfig(**SMALL, logit_scale=0.2),
    "divided": GraniteConfig(**SMALL, logits_scaling=3.0),
    "capped": Gemma2Config(
        **SMALL, head_dim=8, sliding_window=4, query_pre_attn_scalar=8, final_logit_softcapping=2.0
    ),
    "window": MistralConfig(**SMALL, sliding_window=3),
    "recurrent": MambaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=4,
        initializer_range=0.3,
        **_NO_SPECIAL,
    ),
    "alibi": BloomConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.3,
        **_NO_SPECIAL,
    ),
    "own attention": GPTJConfig(**_GPT, rotary_dim=4),
    "own attention, with SDPA": FalconConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,
        **_NO_SPECIAL,
    ),
    "opt": OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        ffn_dim=64,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
        init_std=0.3,
        dropout=0.5,
        **_NO_SPECIAL,
    ),
    "starcoder": Starcoder2Config(**SMALL, residual_dropout=0.5, embedding_dropout=0.5, sliding_window=None),
}


def small_model(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model of that config, the same each time; all of it works in float64 if that is its type."""
    torch.manual_seed(0)
    model: PreTrainedModel = Causal.from_config(deepcopy(CONFIGS[name])).to(dtype).train(False)
    if dtype == torch.float64:
        norms_in_float64(model)
    return model


def norms_in_float64(model: nn.Module) -> None:
    """transformers' norms work in float32 whatever the model's type: no law would hold to 1e-9."""
    for module in model.modules():
        for name, part in module.named_children():
            kind = type(part).__name__
            if kind == "Gemma2RMSNorm":
                norm: nn.Module = _rms_norm(1 + part.weight, part.eps)
            elif kind.endswith("RMSNorm"):
                norm = _rms_norm(part.weight, part.variance_epsilon)
            elif kind == "CohereLayerNorm":
                norm = nn.LayerNorm(len(part.weight), part.variance_epsilon, bias=False, dtype=torch.float64)
                norm.load_state_dict(part.state_dict())
            else:
                continue
            setattr(module, name, norm)


def _rms_norm(weight: torch.Tensor, eps: float) -> nn.RMSNorm:
    norm = nn.RMSNorm(len(weight), eps=eps, dtype=torch.float64)
    norm.load_state_dict({"weight": weight.detach().double()})
    return norm

"""GGUF files of models become plain Hugging Face folders.

The conversion needs numpy, gguf and tokenizers only (no torch): 134 million weights take about ten seconds.
Only Llama architectures are supported. Tensor names, and the order of query and key rows that is undone here,
are those of llama.cpp's converter.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

Array = NDArray[np.float32]

_CONTROL_TOKEN = 3  # llama.cpp's token types: 3 is a control token, such as <|im_end|>
_TENSOR_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(source: Path, pad_token_id: int, folder: Path) -> None:
    """Write the GGUF model as a float32 Hugging Face folder: config, weights, tokenizer, chat template.

    `folder` must exist. Raises ValueError for an unsupported architecture or tokenizer.
    """
    reader = gguf.GGUFReader(source)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    if facts["general.architecture"] != "llama" or facts["tokenizer.ggml.model"] != "gpt2":
        raise ValueError(f"{source.name}: only Llama models with a byte-level BPE tokenizer can be converted")
    heads = {"q": facts["llama.attention.head_count"], "k": facts["llama.attention.head_count_kv"]}
    tensors = {}
    for tensor in reader.tensors:
        name = _tensor_name(tensor.name)
        weights = np.ascontiguousarray(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        for letter, count in heads.items():
            if f"self_attn.{letter}_proj" in name:
                weights = _undo_permutation(weights, count)
        tensors[name] = weights
    _write_json(folder / "config.json", _config(facts, pad_token_id, tied="lm_head.weight" not in tensors))
    _write_json(folder / "generation_config.json", _generation_config(facts, pad_token_id))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(facts, pad_token_id, folder)
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _tensor_name(name: str) -> str:
    """llama.cpp's name of a tensor -> Hugging Face's. Raises ValueError for unknown names."""
    whole = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    if name in whole:
        return whole[name]
    match name.split("."):
        case ["blk", layer, part, kind] if part in _TENSOR_NAMES:
            return f"model.layers.{layer}.{_TENSOR_NAMES[part]}.{kind}"
    raise ValueError(f"unknown tensor {name}")


def _undo_permutation(weights: Array, heads: int) -> Array:
    """llama.cpp interleaves the two rotary halves of each head's rows; Hugging Face keeps them separate."""
    rows = weights.shape[0] // heads // 2
    return np.ascontiguousarray(
        weights.reshape(heads, rows, 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)
    )


def _config(facts: Mapping[str, object], pad_token_id: int, *, tied: bool) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "head_dim": facts["llama.rope.dimension_count"],
        "max_position_embeddings": facts["llama.context_length"],
        "rms_norm_eps": facts["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": facts["llama.rope.freq_base"]},
        "vocab_size": facts["llama.vocab_size"],
        "tie_word_embeddings": tied,
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "pad_token_id": pad_token_id,
    }


def _generation_config(facts: Mapping[str, object], pad_token_id: int) -> dict[str, object]:
    return {
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "pad_token_id": pad_token_id,
    }


def _write_tokenizer(facts: Mapping[str, object], pad_token_id: int, folder: Path) -> None:
    tokens, kinds, merges = (facts[f"tokenizer.ggml.{part}"] for part in ("tokens", "token_type", "merges"))
    assert isinstance(tokens, list)
    assert isinstance(kinds, list)
    assert isinstance(merges, list)
    pairs = [(left, right) for left, right in (merge.split(" ", 1) for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs))
    splitting: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if facts["tokenizer.ggml.pre"] == "smollm":  # each digit is a separate token
        splitting.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splitting)
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {
        f"{role}_token": tokens[int(str(index))]
        for role, index in (
            ("bos", facts["tokenizer.ggml.bos_token_id"]),
            ("eos", facts["tokenizer.ggml.eos_token_id"]),
            ("unk", facts["tokenizer.ggml.unknown_token_id"]),
            ("pad", pad_token_id),
        )
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": facts["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": facts["tokenizer.chat_template"],
        **named,
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")

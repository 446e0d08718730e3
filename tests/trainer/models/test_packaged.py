"""A GGUF file becomes the model that it was made from."""

import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from tests.support.tiny_model import tiny_config
from trainer.models.packaged import PackagedModel, convert

TOKENS = ["<|pad|>", "<|end|>", "1", "2", "+", "Ġ", "Ċ", "12", "++"]
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """llama.cpp's order of the rows of a query or key projection."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write_gguf(model: LlamaForCausalLM, path: Path, architecture: str = "llama") -> None:
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges(["1 2", "+ +"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    for name, weight in model.named_parameters():
        _, _, rest = name.partition("model.layers.")
        if not rest:
            found = {
                "model.embed_tokens.weight": "token_embd.weight",
                "model.norm.weight": "output_norm.weight",
            }
            writer.add_tensor(found[name], weight.detach().numpy())
            continue
        layer, _, part = rest.removesuffix(".weight").partition(".")
        if part == "self_attn.q_proj":
            weight = interleaved(weight, config.num_attention_heads)
        if part == "self_attn.k_proj":
            weight = interleaved(weight, config.num_key_value_heads)
        writer.add_tensor(f"blk.{layer}.{NAMES[part]}.weight", weight.detach().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config(vocab_size=len(TOKENS)))


def test_the_converted_model_computes_the_same(model: LlamaForCausalLM, tmp_path: Path) -> None:
    write_gguf(model, tmp_path / "x.gguf")
    (tmp_path / "out").mkdir()
    convert(tmp_path / "x.gguf", 0, tmp_path / "out")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids = torch.tensor([[2, 4, 3, 6, 7, 8]])
    assert torch.allclose(found(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5)
    assert found.config.tie_word_embeddings
    assert (found.config.pad_token_id, found.config.eos_token_id) == (0, 1)
    assert not hasattr(found.config, "quantization_config")


def test_the_tokenizer_splits_digits_and_keeps_special_tokens_whole(
    model: LlamaForCausalLM, tmp_path: Path
) -> None:
    write_gguf(model, tmp_path / "x.gguf")
    (tmp_path / "out").mkdir()
    convert(tmp_path / "x.gguf", 0, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("12++\n<|end|>").input_ids == [2, 3, 8, 6, 1]
    assert tokenizer.decode([2, 3, 8, 6, 1], skip_special_tokens=True) == "12++\n"
    assert tokenizer.pad_token_id == 0
    assert tokenizer.apply_chat_template([{"role": "user", "content": "1+2"}], tokenize=False) == "1+2"


def test_another_architecture_is_refused(model: LlamaForCausalLM, tmp_path: Path) -> None:
    write_gguf(model, tmp_path / "x.gguf", architecture="qwen2")
    with pytest.raises(ValueError, match="only Llama"):
        convert(tmp_path / "x.gguf", 0, tmp_path)


def test_a_package_is_found_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    wanted = PackagedModel("some_package", "some-package==1", "x.gguf", 0)
    assert wanted.gguf_file() is None
    (package / "x.gguf").write_bytes(b"")
    assert wanted.gguf_file() == package / "x.gguf"


@pytest.mark.slow
def test_only_a_conversion_imports_what_it_needs() -> None:
    """The package gguf takes as long as all the rest of the process that looks for a model."""
    script = "import sys, trainer.models.__main__; assert not {'gguf', 'numpy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)

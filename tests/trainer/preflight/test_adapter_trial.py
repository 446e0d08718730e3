"""An adapter is tried on the model's layers before the job is queued; no weights are needed for that."""

from pathlib import Path

import pytest
from transformers import (
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen3NextConfig,
)

from powermean.contracts.models import LoraSpec
from tests.support.small_models import SMALL
from trainer.failures import TrainingError
from trainer.learner.lora import attach, without_weights
from trainer.preflight.adapter_trial import try_adapter

# Experts' weights are fused into parameters, beside linear layers of the same names.
FUSED = Qwen3NextConfig(
    **SMALL | {"num_hidden_layers": 4},
    head_dim=8,
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    shared_expert_intermediate_size=32,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
)
WITHOUT_EXPERTS = {"q_proj", "k_proj", "v_proj", "o_proj", "in_proj_qkvz", "in_proj_ba", "out_proj"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
LLAMA = ATTENTION | {"gate_proj", "up_proj", "down_proj"}
GPT_NEOX = {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}  # its output layer is `embed_out`


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(**SMALL), LLAMA),
        (FUSED, WITHOUT_EXPERTS | {"shared_expert_gate"}),
        (MixtralConfig(**SMALL, num_local_experts=4), ATTENTION),
        (GPTNeoXConfig(vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4), GPT_NEOX),
    ],
    ids=["plain", "fused experts with linear layers", "fused experts", "another output layer"],
)
def test_by_default_all_linear_layers_are_adapted_that_can_be_merged(
    config: PreTrainedConfig, expected: set[str], tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path)
    try_adapter(tmp_path, LoraSpec(rank=4))
    adapted = attach(without_weights(config), LoraSpec(rank=4), "some/model")
    assert set(adapted.peft_config["default"].target_modules or ()) == expected


def test_fused_experts_are_refused_by_name(tmp_path: Path) -> None:
    FUSED.save_pretrained(tmp_path)
    with pytest.raises(TrainingError, match="down_proj in its experts") as caught:
        try_adapter(tmp_path, LoraSpec(target_modules=("q_proj", "down_proj")))
    assert caught.value.code == "unknown_modules"
    assert caught.value.path == "model.lora.target_modules"
    assert "q_proj" in str(caught.value.remedy)


def test_a_model_without_linear_layers_is_to_be_trained_whole(tmp_path: Path) -> None:
    """GPT-2's layers are its own kind."""
    GPT2Config(n_embd=32, n_layer=2, n_head=4).save_pretrained(tmp_path)
    with pytest.raises(TrainingError, match="no linear layers for an adapter") as caught:
        try_adapter(tmp_path, LoraSpec())
    assert caught.value.remedy == "train the whole model: leave out model.lora"


def test_a_model_that_transformers_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(TrainingError) as caught:
        try_adapter(tmp_path, LoraSpec())
    assert caught.value.code == "unknown_model"

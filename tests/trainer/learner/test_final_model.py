"""What a run ends with: the base model's folder with new weights, whatever files it came with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM

from powermean.contracts.models import LoraSpec
from tests.support.tiny_model import char_tokenizer, tiny_config
from trainer.failures import TrainingError
from trainer.learner.final_model import save_model, try_saving
from trainer.learner.lora import attach
from trainer.policy.loading import load_policy
from trainer.policy.policy import Policy

# Files that transformers reads, and refuses to write.
STRICT = [
    {"temperature": 0.9, "top_p": 0.6, "eos_token_id": 1, "pad_token_id": 0},  # Llama 2 and Vicuna ship such
    {"top_k": 20, "eos_token_id": 1, "pad_token_id": 0},
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "base"
    LlamaForCausalLM(tiny_config()).save_pretrained(folder)
    char_tokenizer().save_pretrained(folder)
    return folder


def loaded(folder: Path) -> Policy:
    return load_policy(folder, device=torch.device("cpu"), dtype=torch.float32, temperature=1.0)


@pytest.mark.parametrize("generation", STRICT)
def test_a_generation_config_that_can_only_be_read_is_kept_as_it_is(
    source: Path, tmp_path: Path, generation: dict[str, object]
) -> None:
    (source / "generation_config.json").write_text(json.dumps(generation))
    with pytest.raises(ValueError, match="invalid"):
        GenerationConfig.from_pretrained(source).save_pretrained(tmp_path / "refused")
    policy = loaded(source)
    try_saving(policy, source, tmp_path / "tried")
    save_model(policy, source, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "generation_config.json").read_text()) == generation
    assert policy.plain_model.generation_config.eos_token_id == 1


@pytest.mark.slow
def test_the_folder_has_the_base_models_tokenizer_and_loads(source: Path, tmp_path: Path) -> None:
    (source / "generation_config.json").unlink(missing_ok=True)
    (source / "model.safetensors.index.json").write_text("{}")  # of the base model's weights
    target = tmp_path / "model"
    save_model(loaded(source), source, target)
    assert not (target / "model.safetensors.index.json").exists()
    assert not (target / "generation_config.json").exists()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (target / name).read_bytes() == (source / name).read_bytes()
    assert AutoTokenizer.from_pretrained(target)("1+2=").input_ids == char_tokenizer()("1+2=").input_ids
    torch.testing.assert_close(
        loaded(target).plain_model.state_dict(), loaded(source).plain_model.state_dict(), rtol=0, atol=0
    )


def test_what_cant_be_saved_is_said_before_the_first_step(source: Path, tmp_path: Path) -> None:
    policy = loaded(source)
    policy.plain_model.config.origin = object()  # nothing that JSON has a word for
    with pytest.raises(TrainingError) as caught:
        try_saving(policy, source, tmp_path / "tried")
    assert caught.value.code == "unsavable_model"


def test_trying_writes_no_weights_and_leaves_the_model_alone(source: Path, tmp_path: Path) -> None:
    plain = loaded(source)
    model = attach(plain.plain_model, LoraSpec(rank=4), "some/model")
    policy = replace(plain, model=model)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    try_saving(policy, source, tmp_path / "tried")
    assert not [*(tmp_path / "tried").rglob("*.safetensors")]
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)

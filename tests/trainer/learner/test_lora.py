"""An adapter trains alone, is served merged, and comes back from a checkpoint and from its export."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from powermean.contracts.models import LoraSpec
from powermean.contracts.training import OptimizerSpec
from tests.support.tiny_model import char_tokenizer, tiny_config
from trainer.failures import TrainingError
from trainer.learner import checkpoint
from trainer.learner.checkpoint import Progress
from trainer.learner.final_model import ADAPTER_FOLDER, save_model
from trainer.learner.lora import (
    adapter_shape,
    attach,
    dropping,
    has_dropout,
    served_adapter,
    served_weights,
    trained_state,
)
from trainer.learner.model_state import unique_weights
from trainer.learner.optimizer import make_optimizer
from trainer.policy.loading import make_policy

IDS = torch.arange(1, 13).reshape(2, 6)
SPEC = LoraSpec(rank=4, alpha=8)


def base(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(tiny_config())


def adapted(spec: LoraSpec = SPEC, seed: int = 0) -> PeftModel:
    return (
        attach(base(), spec, "some/model")
        if seed == 0
        else _changed(attach(base(), spec, "some/model"), seed)
    )


def _changed(model: PeftModel, seed: int) -> PeftModel:
    """An adapter that does something."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=random))
    return model


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS).logits
    return found


def test_a_new_adapter_changes_nothing_and_is_all_that_trains() -> None:
    model = adapted()
    torch.testing.assert_close(logits(model), logits(base()), rtol=0, atol=0)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == set(trained_state(model)) != set()
    assert all(".lora_" in name for name in trained)


def test_what_is_served_is_the_merged_model_under_the_base_models_names() -> None:
    model = adapted(seed=1)
    plain = base(seed=5)
    missing, unexpected = plain.load_state_dict(dict(served_weights(model)), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-5, atol=1e-5)
    assert (logits(model) - logits(base())).abs().max() > 0.1


def test_the_adapter_alone_is_what_peft_would_save(tmp_path: Path) -> None:
    model = attach(base(), LoraSpec(rank=4, alpha=8, target_modules=("v_proj", "q_proj")), "some/model")
    model.save_pretrained(str(tmp_path))
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert saved.keys() == dict(served_adapter(model)).keys()
    for name, weight in served_adapter(model):
        assert torch.equal(weight, saved[name]), name
    shape = adapter_shape(model)
    assert (shape.rank, shape.alpha, shape.target_modules) == (4, 8.0, ("q_proj", "v_proj"))


def test_a_plain_model_is_served_as_it_is() -> None:
    model = base()
    assert model.state_dict().keys() == trained_state(model).keys()
    state = unique_weights(model.state_dict())
    for (name, weight), (found, served) in zip(state, served_weights(model), strict=True):
        assert (name, weight.data_ptr()) == (found, served.data_ptr())


def test_unknown_modules_are_named() -> None:
    with pytest.raises(TrainingError, match="no linear layers named c_attn") as caught:
        attach(base(), LoraSpec(target_modules=("c_attn", "q_proj")), "some/model")
    assert caught.value.error.path == "model.lora.target_modules"
    assert "q_proj" in str(caught.value.error.remedy)


def test_chosen_modules_are_adapted_and_no_others() -> None:
    model = attach(base(), LoraSpec(target_modules=("q_proj", "v_proj")), "some/model")
    layers = {name.split(".lora_")[0].rpartition(".")[2] for name in trained_state(model)}
    assert layers == {"q_proj", "v_proj"}


def test_dropout_acts_only_where_asked() -> None:
    spec = LoraSpec(rank=4, alpha=8, dropout=0.5)
    model = _changed(attach(base(), spec, "some/model"), 1).train(False)
    assert has_dropout(model)
    assert not has_dropout(adapted())
    torch.testing.assert_close(logits(model), logits(model), rtol=0, atol=0)
    with dropping(model):
        noisy = logits(model)
        assert not torch.equal(noisy, logits(model))
    torch.testing.assert_close(logits(model), logits(model), rtol=0, atol=0)


def test_a_checkpoint_holds_the_adapter_alone(tmp_path: Path) -> None:
    model = adapted(seed=1)
    optimizer = make_optimizer(model, OptimizerSpec(learning_rate=1e-2))
    model(input_ids=IDS).logits.square().mean().backward()
    optimizer.step()
    checkpoint.save(tmp_path, model, optimizer, Progress(step=1))
    assert (tmp_path / "model.safetensors").stat().st_size < 100_000
    again = adapted(seed=7)
    checkpoint.load(tmp_path, again, make_optimizer(again, OptimizerSpec(learning_rate=1e-2)))
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)


def test_the_export_loads_merged_and_as_an_adapter(tmp_path: Path) -> None:
    model = adapted(seed=1)
    policy = make_policy(base(), dtype=torch.float32, temperature=1.0)
    char_tokenizer().save_pretrained(source := tmp_path / "base")
    target = tmp_path / "model"
    save_model(type(policy)(model, 1.0, torch.float32, policy.device, by_tree=True), source, target)
    merged = AutoModelForCausalLM.from_pretrained(target, local_files_only=True)
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-5, atol=1e-5)
    loaded = PeftModel.from_pretrained(base(), str(target / ADAPTER_FOLDER))
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-6, atol=1e-6)
    config = (target / ADAPTER_FOLDER / "adapter_config.json").read_text()
    assert '"some/model"' in config
    assert str(tmp_path) not in config

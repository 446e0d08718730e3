"""Weights that are missing or of other shapes are an error with the field's path, not random numbers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, MixtralConfig

from tests.support.small_models import CONFIGS, SMALL, small_model
from tests.support.tiny_engines import save_tiny_model
from trainer.failures import TrainingError
from trainer.policy.loading import load_policy
from trainer.policy.model_files import check_weights

GATE = "model.layers.0.mlp.gate_proj.weight"
State = dict[str, Tensor]


def changed(folder: Path, change: Callable[[State], State]) -> Path:
    """A tiny model whose file was changed; its header is a sound one."""
    save_tiny_model(folder, tied=False)
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_models_as_transformers_saves_them_fit(name: str, tmp_path: Path) -> None:
    small_model(name).save_pretrained(tmp_path)
    check_weights(tmp_path)


def test_fused_experts_fit_though_their_files_have_other_names(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(MixtralConfig(**SMALL, num_local_experts=2))
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() - model.state_dict().keys()
    check_weights(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state | {GATE: torch.zeros(3, 5)}, f"{GATE} has shape [3, 5] instead of [128, 64]"),
        (lambda state: state | {GATE: torch.tensor(1.0)}, f"{GATE} has shape [] instead of [128, 64]"),
        (
            lambda state: {name: weight for name, weight in state.items() if name != GATE},
            f"{GATE} is missing",
        ),
        (
            lambda state: {f"other.{name}": weight for name, weight in state.items()},
            "lm_head.weight and 20 more are missing, other.lm_head.weight and 20 more are of no use",
        ),
    ],
    ids=["another shape", "no shape", "missing", "other names"],
)
def test_what_does_not_fit_is_named(
    change: Callable[[State], State], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = changed(tmp_path, change)
    for check in (check_weights, lambda folder: load_policy(folder, **CPU)):  # in validation and in a run
        with pytest.raises(TrainingError) as caught:
            check(folder)
        assert (caught.value.code, caught.value.path) == ("model_mismatch", "model")
        assert str(caught.value).startswith(
            f"the weights in {folder} are not those of its config.json: {said}"
        )
        assert caught.value.remedy


CPU = {"device": torch.device("cpu"), "dtype": torch.float32, "temperature": 1.0}


def test_weights_that_nobody_asks_for_do_no_harm(tmp_path: Path) -> None:
    check_weights(changed(tmp_path, lambda state: state | {"vision.weight": torch.zeros(3)}))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_said_to_be_none(value: float, tmp_path: Path) -> None:
    folder = changed(tmp_path, lambda state: state | {GATE: torch.full_like(state[GATE], value)})
    check_weights(folder)  # their header is a sound one
    with pytest.raises(TrainingError) as caught:
        load_policy(folder, **CPU)
    assert (caught.value.code, caught.value.path) == ("model_not_finite", "model")


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", ["{}", "[]", '{"model_type": "llama", "num_attention_heads": 0}', '{"model_type": "t5"}']
)
def test_a_config_that_no_model_can_be_built_from_is_an_unknown_model(config: str, tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(TrainingError) as caught:
        check_weights(tmp_path)
    assert (caught.value.code, caught.value.path) == ("unknown_model", "model")

"""Which way of scoring a loaded model takes. Layers are compiled where they can be, and stay as they were
where not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.support.small_models import small_model
from tests.support.tiny_model import tiny_config
from trainer.failures import TrainingError
from trainer.policy.loading import load_policy, make_policy
from trainer.policy.token_tree import sort_rows, token_tree
from trainer.rollouts.batching import Trajectories

ROWS = Trajectories([[1, 2, 3]] * 3 + [[4]], [[5, 6], [5, 7, 8], [5, 6], [9]])


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config())


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ("window", "not all of its layers attend to every token before"),
        ("capped", "not all of its layers attend to every token before"),
        ("recurrent", "not all of its layers attend to every token before"),
        ("alibi", "its attention can't be replaced"),
        ("own attention", "its attention can't be replaced"),
        ("own attention, with SDPA", "its attention can't be replaced"),
    ],
)
def test_a_model_that_takes_no_tree_is_loaded_all_the_same_and_the_log_says_why_once(
    config: str, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever kind of attention it has; its numbers are held in test_policy.py."""
    small_model(config).save_pretrained(tmp_path)
    caplog.set_level("INFO", logger="trainer")
    policy = load_policy(tmp_path, device=torch.device("cpu"), dtype=torch.float32, temperature=1.0)
    for tree in policy.batches(ROWS, 5):
        policy.score(tree)
    assert not policy.by_tree
    assert [record.message for record in caplog.records if record.name.startswith("trainer")] == [
        f"prompts and completions are padded, and what they share is computed again: {why}"
    ]


def test_a_model_that_takes_trees_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small_model("tied").save_pretrained(tmp_path)
    caplog.set_level("INFO", logger="trainer")
    assert load_policy(tmp_path, device=torch.device("cpu"), dtype=torch.float32, temperature=1.0).by_tree
    assert not [record for record in caplog.records if record.name.startswith("trainer")]


def broken_compiler(layer: Callable[..., object], **_options: object) -> Callable[..., object]:
    def fails(*_given: object, **_named: object) -> object:
        raise RuntimeError("no C compiler\nand a long traceback")

    return fails


def test_layers_that_do_not_compile_stay_as_they_were(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "compile", broken_compiler)
    policy = make_policy(model(), dtype=torch.float32, temperature=1.0, compiled="try")
    plain = make_policy(model(), dtype=torch.float32, temperature=1.0)
    tree = token_tree(ROWS, sort_rows(ROWS))
    assert torch.equal(policy.score(tree).log_probs, plain.score(tree).log_probs)
    assert "are not compiled: no C compiler" in caplog.text
    assert "traceback" not in caplog.text


def test_who_asks_for_compiled_layers_gets_them_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", broken_compiler)
    with pytest.raises(TrainingError, match="no C compiler") as caught:
        make_policy(model(), dtype=torch.float32, temperature=1.0, compiled="on")
    assert caught.value.error.code == "compile_failed"
    assert caught.value.error.path == "training.compile"


def test_padded_rows_are_not_compiled(caplog: pytest.LogCaptureFixture) -> None:
    make_policy(small_model("recurrent"), dtype=torch.float32, temperature=1.0, compiled="try")
    assert "are not compiled" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers_change_nothing_but_rounding(checkpointing: bool) -> None:
    found = []
    for compiled in ("off", "on"):
        torch.manual_seed(0)
        policy = make_policy(
            model(),
            dtype=torch.float32,
            temperature=1.0,
            compiled=compiled,
            gradient_checkpointing=checkpointing,
        )
        trees = policy.batches(ROWS, 5)
        log_probs = [policy.score(tree).log_probs.flatten() for tree in trees]
        weights = [weight for weight in policy.model.parameters() if weight.requires_grad]
        gradients = torch.autograd.grad(torch.cat(log_probs).square().sum(), weights)
        found.append((torch.cat(log_probs).detach(), torch.cat([one.flatten() for one in gradients])))
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-4)


class Noisy(torch.nn.Module):
    """Draws random numbers in evaluation mode, too."""

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return given + torch.randn_like(given)


def test_a_model_that_is_random_in_evaluation_mode_is_refused() -> None:
    noisy = model()
    noisy.model.norm = torch.nn.Sequential(noisy.model.norm, Noisy())
    with pytest.raises(TrainingError, match="two passes over the same tokens differ") as caught:
        make_policy(noisy, dtype=torch.float32, temperature=1.0)
    assert caught.value.code == "random_model"


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["opt", "starcoder"])
def test_dropout_under_any_name_is_off_when_scoring_and_when_layers_are_computed_again(
    name: str, checkpointing: bool
) -> None:
    """Both have a dropout of 0.5, under names of their own."""
    tree = token_tree(ROWS, sort_rows(ROWS))
    plain = make_policy(small_model(name), dtype=torch.float32, temperature=1.0)
    policy = make_policy(
        small_model(name), dtype=torch.float32, temperature=1.0, gradient_checkpointing=checkpointing
    )
    assert plain.by_tree == policy.by_tree
    given = tree if policy.by_tree else next(policy.batches(ROWS, 100))
    with torch.no_grad():
        expected = plain.score(given).log_probs
    for _ in range(2):
        assert torch.equal(policy.score(given).log_probs, expected)
    assert not policy.model.training

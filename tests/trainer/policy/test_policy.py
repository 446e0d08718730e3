"""Log-probs of the policy are those of a plain forward pass, in value and gradient, however computed."""

from dataclasses import astuple, replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from powermean.contracts.models import LoraSpec
from tests.support.law_settings import at_most
from tests.support.learners import rollouts
from tests.support.small_models import small_model
from tests.support.trajectories import VOCABULARY, plain_scores, trajectories
from trainer.failures import TrainingError
from trainer.learner.lora import attach
from trainer.learner.training_batch import without
from trainer.policy import tree_attention
from trainer.policy.loading import make_policy, resolve_device, resolve_dtype
from trainer.policy.policy import Policy
from trainer.policy.token_tree import sort_rows, token_tree
from trainer.rollouts.batching import Trajectories

# Of the largest: the plain way's own rounding is about as large.
RELATIVE = {torch.float64: 1e-9, torch.float32: 1e-5}


@cache
def policy_of(
    name: str,
    dtype: torch.dtype = torch.float32,
    temperature: float = 1.0,
    checkpointing: bool = False,
    lora: bool = False,
) -> Policy:
    policy = make_policy(
        small_model(name, dtype),
        dtype=dtype,
        temperature=temperature,
        gradient_checkpointing=checkpointing,
    )
    if lora:
        model = attach(policy.model, LoraSpec(rank=2, alpha=4), "model")
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
        policy = replace(policy, model=model)
    return policy


def gradient(policy: Policy, loss: Tensor) -> Tensor:
    trained = [weight for weight in policy.model.parameters() if weight.requires_grad]
    found = torch.autograd.grad(loss, trained, allow_unused=True)
    return torch.cat([one.flatten() for one in found if one is not None])


def assert_near(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> None:
    largest = float(theirs.detach().abs().max())
    assert float((ours - theirs).detach().abs().max()) <= RELATIVE[dtype] * max(largest, 1e-3)


def assert_plain(policy: Policy, rows: Trajectories, most_tokens: int = 10_000) -> None:
    """Log-probs, entropy and the gradient of a weighted sum are those of one trajectory a row."""
    if not any(rows.completions):
        return
    weighted: list[Tensor] = []
    plainly: list[Tensor] = []
    for tree in policy.batches(rows, most_tokens):
        scores = policy.score(tree, entropy=True)
        expected = plain_scores(policy.model, rows, tree.rows.tolist(), policy.temperature)
        assert_near(scores.log_probs, expected[0], policy.dtype)
        assert scores.entropy is not None
        assert_near(scores.entropy, expected[1].detach(), policy.dtype)
        weights = torch.randn(expected[0].shape, generator=torch.Generator().manual_seed(2))
        weighted.append((scores.log_probs * weights).sum())
        plainly.append((expected[0] * weights).sum())
    ours, theirs = (gradient(policy, torch.stack(sums).sum()) for sums in (weighted, plainly))
    assert_near(ours, theirs, policy.dtype)


CASES = {
    "tied": {"name": "tied"},
    "untied, temperature": {"name": "untied", "temperature": 0.7},
    "gpt2": {"name": "gpt2"},
    "divided logits": {"name": "divided"},
    "lora": {"name": "tied", "lora": True},
    "checkpointing": {"name": "untied", "checkpointing": True},
}
IN_FLOAT32 = CASES | {"scaled logits": {"name": "scaled"}}  # Cohere rotates in float32 whatever the type


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "case"),
    [
        *(pytest.param(torch.float64, case, id=f"float64, {name}") for name, case in CASES.items()),
        *(pytest.param(torch.float32, case, id=f"float32, {name}") for name, case in IN_FLOAT32.items()),
    ],
)
@at_most(15)
@given(rows=trajectories(), most_tokens=st.sampled_from([10, 10_000]))
def test_law_a_tree_scores_as_one_trajectory_a_row(
    dtype: torch.dtype, case: dict[str, Any], rows: Trajectories, most_tokens: int
) -> None:
    policy = policy_of(**case, dtype=dtype)
    assert policy.by_tree
    assert_plain(policy, rows, most_tokens)


def left_out() -> Trajectories:
    """A batch with trajectories that left it: of a group one, of another all."""
    given_ = rollouts()
    rows = without(given_, torch.tensor([1, 4, 5, 6, 7])).trajectories(range(len(given_.tokens)))
    return Trajectories(
        *([[token % VOCABULARY for token in line] for line in part] for part in astuple(rows))
    )


TWICE = [5, 6, 7]
SHAPES = {
    "unequal prompts": Trajectories([[1, 2, 3, 4]] * 2 + [[5, 6]] * 2, [[7, 8], [9, 1], [7, 8], [3, 2]]),
    "prompts that begin alike": Trajectories([[1, 2, 3], [1, 2, 4], [1, 2]], [[5, 6], [5, 6], [3, 6]]),
    "unequal completions": Trajectories([[1, 2]] * 3, [[3, 4, 5, 6, 7], [8, 9], [4, 4, 4]]),
    "duplicates": Trajectories([[1, 2]] * 4, [TWICE, [8, 9], TWICE, TWICE]),
    "one begins another": Trajectories([[1, 2]] * 4, [TWICE, TWICE[:1], TWICE[:2], [*TWICE, 8]]),
    "a prompt of one token": Trajectories([[1]] * 3, [[2, 3], [4, 5, 6], [2, 7]]),
    "completions of one token": Trajectories([[1, 2, 3]] * 3, [[4], [5], [4]]),
    "an empty completion": Trajectories([[1, 2]] * 3, [[], [3, 4], []]),
    "left out": left_out(),
}


@pytest.mark.parametrize("dtype", RELATIVE, ids=str)
@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("head", ["tied", "untied"])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_scores_as_one_trajectory_a_row(
    shape: str, head: str, lora: bool, dtype: torch.dtype
) -> None:
    """Log-probs, entropy and gradients; the laws above and below draw such shapes together."""
    assert_plain(policy_of(head, dtype, lora=lora), SHAPES[shape])


PADDED = ["capped", "window", "recurrent", "alibi", "own attention", "own attention, with SDPA"]


@pytest.mark.slow
@pytest.mark.parametrize("config", [*PADDED, "tied"])
@at_most(10)
@given(rows=trajectories())
def test_law_padded_rows_score_as_one_trajectory_a_row(config: str, rows: Trajectories) -> None:
    assert_plain(replace(policy_of(config), by_tree=False), rows)


def test_rows_are_padded_on_the_right() -> None:
    """On the left, a padded query would see no key: some kernels' gradients are NaN there."""
    policy, masks = replace(policy_of("tied"), by_tree=False), list[Tensor]()
    decoder = policy.plain_model.base_model
    hook = decoder.register_forward_pre_hook(
        lambda _module, _given, named: masks.append(named["attention_mask"]), with_kwargs=True
    )
    rows = SHAPES["unequal prompts"]
    policy.score(token_tree(rows, sort_rows(rows)))
    hook.remove()
    assert [mask.tolist() for mask in masks] == [[[1] * 5] * 2 + [[1, 1, 1, 0, 0]] * 2]


@at_most(10)
@given(rows=trajectories())
def test_law_chains_of_any_size_score_alike(rows: Trajectories) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_attention, "DENSE_UP_TO", 0)
        assert_plain(policy_of("tied", torch.float64), rows)


@pytest.mark.parametrize(
    ("config", "by_tree"),
    [
        ("tied", True),
        ("untied", True),
        ("gpt2", True),
        ("opt", True),
        ("starcoder", True),
        *((config, False) for config in PADDED),
    ],
)
def test_trees_are_taken_where_the_model_can_have_them(
    config: str, by_tree: bool, caplog: pytest.LogCaptureFixture
) -> None:
    policy_of.cache_clear()
    caplog.set_level("INFO")
    assert policy_of(config).by_tree is by_tree
    assert ("are padded" in caplog.text) is not by_tree


def test_a_model_whose_logits_are_no_layers_is_refused() -> None:
    model = small_model("tied")
    plain = model.forward

    def doubled(*args: object, **named: object) -> object:
        output = plain(*args, **named)
        output.logits = 2 * output.logits
        return output

    model.forward = doubled
    with pytest.raises(TrainingError, match="log-probs can't be had from its hidden states") as caught:
        make_policy(model, dtype=torch.float32, temperature=1.0)
    assert caught.value.error.code == "unknown_model"


@pytest.mark.parametrize("config", ["untied", "opt", "starcoder", "gpt2"])
def test_gradient_checkpointing_changes_no_number_and_no_gradient(config: str) -> None:
    """Whatever dropout the model declares, and under whatever name."""
    rows = Trajectories([[1, 2, 3]] * 3 + [[4]], [[5, 6], [5, 7, 8], [5, 6], [9]])
    tree = token_tree(rows, sort_rows(rows))
    found = []
    for checkpointing in (False, True):
        policy = policy_of(config, checkpointing=checkpointing)
        log_probs = policy.score(tree).log_probs
        found.append((log_probs.detach(), gradient(policy, log_probs.sum())))
        assert torch.equal(policy.score(tree).log_probs, log_probs)
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-5)


def test_checkpointing_keeps_less() -> None:
    """What autograd keeps of a long row."""
    rows = Trajectories([[1, 2]] * 4, [torch.randint(0, 12, (50,)).tolist() for _ in range(4)])
    tree = token_tree(rows, sort_rows(rows))
    kept = []
    for checkpointing in (False, True):
        sizes: list[int] = []
        policy = policy_of("tied", checkpointing=checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: (sizes.append(tensor.numel()), tensor)[1], lambda tensor: tensor
        ):
            policy.score(tree)
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3


def test_bfloat16_keeps_float32_weights_and_stays_near() -> None:
    exact = policy_of("tied")
    rough = replace(exact, dtype=torch.bfloat16)
    rows = Trajectories([[1, 2, 3]] * 3 + [[4]], [[5, 6], [5, 7, 8], [5, 6], [9]])
    tree = token_tree(rows, sort_rows(rows))
    found = rough.score(tree, entropy=True)
    assert found.log_probs.dtype == torch.float32
    assert found.entropy is not None
    assert found.entropy.dtype == torch.float32
    assert {weight.dtype for weight in rough.model.parameters()} == {torch.float32}
    difference = found.log_probs - exact.score(tree).log_probs
    assert 0 < float(difference.detach().abs().max()) < 0.25


def test_a_gpu_that_is_not_there_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError) as caught:
        resolve_device("auto", gpus=1)
    assert caught.value.error.code == "cuda_unavailable"
    assert caught.value.error.path == "resources.gpus"
    assert resolve_device("auto", gpus=0) == torch.device("cpu")


def test_auto_dtype_follows_the_device() -> None:
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert resolve_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16

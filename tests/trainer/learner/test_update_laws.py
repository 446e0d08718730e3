"""An update is the same however its trajectories are computed and in whatever order they come, in float64.

Nothing that is shared may be counted once too few or too often: a batch with duplicates and shared beginnings
is held, computed as trees, to one trajectory a pass; and to itself in another order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from powermean.contracts.algorithms import AlgorithmSpec, Dapo, DrGrpo, Grpo, Pmpo
from powermean.contracts.models import LoraSpec
from tests.support.law_settings import at_most
from tests.support.learners import learner, weights
from trainer.learner.training_batch import TrainingBatch
from trainer.objectives import mismatch
from trainer.rollouts.batching import Rollouts

pytestmark = pytest.mark.slow

SIZE, LONGEST = 4, 4  # completions of a group, tokens of one
RELATIVE = 1e-9
ALGORITHMS: dict[str, AlgorithmSpec] = {
    "pmpo, token ratios": Pmpo(importance_sampling_correction="token"),
    "pmpo, kl": Pmpo(beta=0.1),
    "grpo, sequence ratios": Grpo(importance_sampling_correction="sequence"),
    "dapo": Dapo(overlong_buffer=2),
    "dr_grpo": DrGrpo(),
}


@dataclass(frozen=True)
class Graded:
    """Rollouts with their rewards [N], which of them take part [N], and the groups of each update."""

    rollouts: Rollouts
    rewards: Tensor
    present: Tensor
    minibatches: tuple[tuple[int, ...], ...]

    def permuted(self, groups: Sequence[int], within: Sequence[int]) -> "Graded":
        """The groups in another order, and each group's trajectories too."""
        rows = torch.tensor([group * SIZE + place for group in groups for place in within])
        moved = {group: place for place, group in enumerate(groups)}
        r = self.rollouts
        return Graded(
            Rollouts(
                prompts=tuple(r.prompts[group] for group in groups),
                tokens=r.tokens[rows],
                mask=r.mask[rows],
                sampler_log_probs=r.sampler_log_probs[rows],
                truncated=r.truncated[rows],
                weight_version=r.weight_version[rows],
            ),
            self.rewards[rows],
            self.present[rows],
            tuple(tuple(moved[group] for group in batch) for batch in self.minibatches),
        )


@st.composite
def graded(draw: st.DrawFn) -> Graded:
    """Three groups of four: duplicates, beginnings of others, empty ones; some left out."""
    token = st.integers(0, 18)
    prompts = tuple(tuple(draw(st.lists(token, min_size=1, max_size=3))) for _ in range(3))
    completions: list[list[int]] = []
    for _ in prompts:
        long = draw(st.lists(token, min_size=2, max_size=LONGEST))
        others = st.one_of(st.just(long), st.just(long[:-1]), st.lists(token, max_size=LONGEST))
        completions += [long, *(draw(others) for _ in range(SIZE - 1))]
    mask = torch.tensor([[t < len(line) for t in range(LONGEST)] for line in completions])
    tokens = torch.tensor([line + [0] * (LONGEST - len(line)) for line in completions])
    chance = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    rewards = torch.tensor(draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=12, max_size=12)))
    rewards[0], rewards[1] = 0.0, 1.0  # the first group has spread, whatever is drawn
    present = torch.ones(12, dtype=torch.bool)
    present[draw(st.lists(st.integers(2, 11), max_size=2))] = False
    return Graded(
        Rollouts(
            prompts=prompts,
            tokens=tokens,
            mask=mask,
            sampler_log_probs=(-1 - torch.rand(mask.shape, generator=chance)) * mask,
            truncated=torch.zeros(12, dtype=torch.bool),
            weight_version=torch.zeros(12, dtype=torch.int64),
        ),
        rewards,
        present,
        ((0, 1), (2,), (0, 2)),
    )


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    """What a batch holds for the updates is of the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def recorded(
    of: AlgorithmSpec, given_: Graded, tokens: int, *, by_tree: bool, lora: LoraSpec | None = None
) -> dict[str, Tensor]:
    """All that three updates give: numbers by trajectory [N] or token [N, T], of the batch [], gradients."""
    one = learner(of, tokens, dtype=torch.float64, lora=lora)
    one.policy = replace(one.policy, by_tree=by_tree)
    if one.reference is not None:  # another model, or the penalty's gradient would start at 0
        with torch.no_grad():
            one.reference.plain_model.model.norm.weight *= 1.1
        one.reference = replace(one.reference, by_tree=by_tree)
    rollouts, rewards = given_.rollouts, given_.rewards
    shaped = one.algorithm.shape_rewards(rewards, rollouts.lengths, LONGEST)
    batch = TrainingBatch.start(
        7,
        rollouts,
        advantages=one.algorithm.advantages(shaped, rollouts.group),
        kept=one.algorithm.keep(rewards, rollouts.group) & given_.present,
        rewards=rewards,
        progress=0.5,
        max_new_tokens=LONGEST,
        recorded=len(rewards),
    )
    found: dict[str, Tensor] = {}

    def keep_gradient(*_given: object) -> None:
        gradients = [weight.grad for weight in one.policy.model.parameters() if weight.grad is not None]
        found[f"{len(found)} gradient"] = torch.cat([gradient.flatten() for gradient in gradients])

    one.optimizer.register_step_pre_hook(keep_gradient)
    one.score_start(batch, given_.minibatches[:2])  # those of the first epoch
    for number, groups in enumerate(given_.minibatches):
        report = one.update(batch, groups, number)
        found |= {f"{number} {name}": values for name, values in report.values.items()}
        for name in ("loss", "grad_norm", "distance_to_grpo", "kl", "trajectories", "tokens_trained"):
            value = getattr(report, name)
            found[f"{number} {name}, of the update"] = torch.tensor(
                torch.nan if value is None else float(value)
            )
        for name in ("log_ratio", "weight", "clipped"):
            seen = torch.full(rollouts.mask.shape, torch.nan)
            for part in report.tokens:
                values = getattr(part, name).double()
                seen[part.rows, : values.shape[1]] = torch.where(
                    rollouts.mask[part.rows, : values.shape[1]], values, torch.nan
                )
            found[f"{number} {name}, by token"] = seen
    found |= {"entropy": batch.entropy, "old log-probs": batch.old_log_probs, "weights": weights(one)}
    gap = mismatch(batch.start_log_probs, rollouts.sampler_log_probs, batch.rollouts.mask, "token", 2.0)
    found |= {f"mismatch, {name}": torch.tensor(value) for name, value in gap.metrics.items()}
    for name in ("kl", "kl_truncated", "token_ratio", "sequence_ratio", "applied"):
        found[f"mismatch, {name}, by trajectory"] = getattr(gap, name)
    return found


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert torch.equal(ours[name].isnan(), expected.isnan()), name
        # Records of tokens are float32.
        relative = 1e-6 if name.endswith("by token") else RELATIVE
        largest = max(float(expected.nan_to_num(0).abs().max()), 1e-3)
        off = float((ours[name] - expected).nan_to_num(0).abs().max())
        assert off <= relative * largest, f"{name}: {off:.1e} of {largest:.1e}"


@pytest.mark.parametrize("name", ALGORITHMS)
@at_most(6)
@given(case=graded(), tokens=st.sampled_from([1, 8, 1000]))
def test_law_trees_give_an_update_what_one_trajectory_a_pass_gives(
    name: str, case: Graded, tokens: int
) -> None:
    plain = recorded(ALGORITHMS[name], case, 1, by_tree=False)
    assert_same(recorded(ALGORITHMS[name], case, tokens, by_tree=True), plain)


@pytest.mark.parametrize("name", ALGORITHMS)
@at_most(6)
@given(
    case=graded(),
    tokens=st.sampled_from([8, 1000]),
    groups=st.permutations(range(3)),
    within=st.permutations(range(SIZE)),
)
def test_law_the_order_of_groups_and_trajectories_changes_nothing(
    name: str, case: Graded, tokens: int, groups: list[int], within: list[int]
) -> None:
    expected = recorded(ALGORITHMS[name], case, tokens, by_tree=True)
    found = recorded(ALGORITHMS[name], case.permuted(groups, within), tokens, by_tree=True)
    rows = torch.tensor([group * SIZE + place for group in groups for place in within])
    by_row = {key for key, values in expected.items() if values.dim() and len(values) == len(rows)}
    assert {"entropy", "old log-probs", "1 p", "1 weight, by token"} <= by_row
    assert_same(found, {key: v[rows] if key in by_row else v for key, v in expected.items()})


@at_most(6)
@given(case=graded(), tokens=st.sampled_from([1, 1000]))
def test_law_an_adapters_updates_are_the_same_too(case: Graded, tokens: int) -> None:
    lora, spec = LoraSpec(rank=2, alpha=4), Pmpo()
    plain = recorded(spec, case, 1, by_tree=False, lora=lora)
    assert_same(recorded(spec, case, tokens, by_tree=True, lora=lora), plain)

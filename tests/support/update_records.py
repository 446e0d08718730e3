"""All that some updates of a batch give, to hold one way of computing them to another. In float64."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from powermean.contracts.algorithms import AlgorithmSpec, Dapo, DrGrpo, Grpo, Pmpo
from powermean.contracts.models import LoraSpec
from tests.support.learners import learner, weights
from trainer.learner.leading import Leading
from trainer.learner.learner import Learner
from trainer.learner.training_batch import TrainingBatch
from trainer.objectives import mismatch
from trainer.rollouts.batching import Rollouts

SIZE, LONGEST = 4, 4  # completions of a group, tokens of one
RELATIVE = 1e-9
ALGORITHMS: dict[str, AlgorithmSpec] = {
    "pmpo, token ratios": Pmpo(importance_sampling_correction="token"),
    "pmpo, kl, entropy": Pmpo(beta=0.1, kl_target=0.05, kl_horizon=20, entropy_coefficient=0.1),
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


def recorded(
    of: AlgorithmSpec, given_: Graded, tokens: int, *, by_tree: bool, lora: LoraSpec | None = None
) -> dict[str, Tensor]:
    """All that three updates give: numbers by trajectory [N] or token [N, T], of the batch [], gradients."""
    return records_of(a_learner(of, tokens, by_tree=by_tree, lora=lora), given_)


def a_learner(of: AlgorithmSpec, tokens: int, *, by_tree: bool, lora: LoraSpec | None = None) -> Learner:
    """A tiny one in float64. Its reference is another model, or the penalty's gradient would start at 0."""
    one = learner(of, tokens, dtype=torch.float64, lora=lora)
    one.policy = replace(one.policy, by_tree=by_tree)
    if one.reference is not None:
        with torch.no_grad():
            one.reference.plain_model.model.norm.weight *= 1.1
        one.reference = replace(one.reference, by_tree=by_tree)
    return one


def records_of(one: Learner, given_: Graded) -> dict[str, Tensor]:
    """See `recorded`. Where there are other ranks, they follow."""
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
    every = Leading(one)
    every.begin(batch)
    every.score_start(batch, given_.minibatches[:2])  # those of the first epoch
    for number, groups in enumerate(given_.minibatches):
        report = every.update(batch, groups, number)
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

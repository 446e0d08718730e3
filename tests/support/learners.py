"""Small learners with tiny random models, and batches for them."""

from collections.abc import Container
from copy import deepcopy
from dataclasses import replace
from itertools import count
from typing import Literal

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from powermean.contracts.algorithms import Pmpo
from powermean.contracts.models import LoraSpec
from powermean.contracts.training import OptimizerSpec
from tests.support.small_models import norms_in_float64
from tests.support.tiny_model import tiny_config
from trainer.learner.learner import Learner
from trainer.learner.lora import attach
from trainer.learner.optimizer import MasterWeights, make_optimizer
from trainer.learner.training_batch import TrainingBatch
from trainer.objectives import build_algorithm
from trainer.policy.loading import make_policy
from trainer.policy.policy import Policy, Scores
from trainer.policy.token_tree import TokenTree, sort_rows, token_tree
from trainer.ranks.sharding import whole
from trainer.rollouts.batching import Rollouts

GROUPS, SIZE, LONGEST = 4, 4, 5


def rollouts() -> Rollouts:
    """Prompts of 2 to 5 tokens, completions of 1 to 5."""
    chance = torch.Generator().manual_seed(0)
    count = GROUPS * SIZE
    lengths = torch.randint(1, LONGEST + 1, (count,), generator=chance)
    mask = torch.arange(LONGEST) < lengths[:, None]
    return Rollouts(
        prompts=tuple(tuple(torch.randint(0, 19, (n,), generator=chance).tolist()) for n in (2, 5, 3, 4)),
        tokens=torch.randint(0, 19, (count, LONGEST), generator=chance) * mask,
        mask=mask,
        sampler_log_probs=-torch.rand(count, LONGEST, generator=chance) * mask,
        truncated=torch.zeros(count, dtype=torch.bool),
        weight_version=torch.zeros(count, dtype=torch.int64),
    )


def rewards() -> Tensor:
    """Group 1 has no spread."""
    given = torch.randint(0, 2, (GROUPS * SIZE,), generator=torch.Generator().manual_seed(3)).double()
    given[0], given[1], given[4:8] = 0.0, 1.0, 1.0
    return given


def learner(
    algorithm: object = None,
    micro_batch_tokens: int = 1024,
    *,
    dtype: torch.dtype = torch.float32,
    bfloat16_weights: bool = False,
    checkpointing: bool = False,
    lora: LoraSpec | None = None,
    **changes: object,
) -> Learner:
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config()).to(dtype)
    if dtype == torch.float64:
        norms_in_float64(model)
    work = torch.bfloat16 if bfloat16_weights else dtype
    policy = make_policy(model, dtype=work, temperature=1.0, gradient_checkpointing=checkpointing)
    if lora is not None:
        policy = replace(policy, model=attach(model, lora, "tiny"))
    # A large eps: without it AdamW turns the rounding of a gradient near 0 into a whole step.
    spec = OptimizerSpec(**({"learning_rate": 1e-2, "warmup_updates": 0, "eps": 1e-2} | changes))
    built = build_algorithm(algorithm or Pmpo())
    reference = None
    if built.beta:
        reference = replace(policy, model=deepcopy(policy.model))
    masters = MasterWeights(policy.model) if bfloat16_weights else None
    return Learner(
        policy=policy,
        reference=reference,
        algorithm=built,
        spec=spec,
        optimizer=make_optimizer(policy.model, spec, masters),
        micro_batch_tokens=micro_batch_tokens,
        masters=masters,
        pad_token_id=0,
    )


def training_batch(
    algorithm: object,
    given: Rollouts | None = None,
    old_policy: Literal["trainer", "sampler"] = "trainer",
) -> TrainingBatch:
    given = given or rollouts()
    return TrainingBatch.start(
        7,
        given,
        advantages=algorithm.advantages(rewards(), given.group),
        kept=algorithm.keep(rewards(), given.group),
        rewards=rewards(),
        progress=0.5,
        max_new_tokens=LONGEST,
        old_policy=old_policy,
    )


def sampled_by(policy: Policy) -> Rollouts:
    """The rollouts with the log-probs of that policy as the engine's."""
    given = rollouts()
    trajectories = given.trajectories(range(GROUPS * SIZE))
    tree = token_tree(trajectories, sort_rows(trajectories))
    log_probs = torch.zeros_like(given.sampler_log_probs)
    with torch.no_grad():
        log_probs[tree.rows, : tree.width] = policy.score(tree).log_probs
    return replace(given, sampler_log_probs=log_probs)


def weights(of: Learner) -> Tensor:
    """All of them. A collective where ranks hold the model together."""
    return torch.cat([whole(weight.detach()).flatten() for weight in of.policy.model.parameters()])


def counted(of: Learner, monkeypatch: pytest.MonkeyPatch) -> list[TokenTree]:
    """All batches that go through the policy from now on."""
    seen: list[TokenTree] = []
    score = Policy.score

    def counting(self: Policy, tree: TokenTree, *, entropy: bool = False) -> Scores:
        seen.append(tree)
        return score(self, tree, entropy=entropy)

    monkeypatch.setattr(Policy, "score", counting)
    return seen


def poison(batch_rows: set[int], value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the log-probs of some rows come out as `value`, as long as they hold tokens."""
    score = Policy.score

    def broken(self: Policy, tree: TokenTree, *, entropy: bool = False) -> Scores:
        scores = score(self, tree, entropy=entropy)
        hit = torch.tensor([row in batch_rows for row in tree.rows.tolist()])[:, None] & tree.mask_of_tokens()
        return replace(scores, log_probs=torch.where(hit, value, scores.log_probs))

    monkeypatch.setattr(Policy, "score", broken)


def fail_in(
    passes: Container[int],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception = torch.OutOfMemoryError("CUDA out of memory.\nWith many lines of advice"),
) -> None:
    """Fail in the backward pass of micro-batches with these numbers, from 0 on."""
    score, number = Policy.score, count()

    def fail(_gradient: torch.Tensor) -> None:
        raise error

    def broken(policy: Policy, tree: TokenTree, *, entropy: bool = False) -> Scores:
        found = score(policy, tree, entropy=entropy)
        if next(number) in passes:
            found.log_probs.register_hook(fail)
        return found

    monkeypatch.setattr(Policy, "score", broken)

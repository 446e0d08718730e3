"""A step's rollout batch as the optimiser sees it, and what is known of it so far."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.rollouts.batching import Rollouts

_SENT_FACTS = (
    "step",
    "progress",
    "max_new_tokens",
    "mean_reward",
    "reward_std",
    "old_policy",
    "recorded",
)
_SENT_ROLLOUTS = ("tokens", "mask", "sampler_log_probs", "truncated")


@dataclass
class TrainingBatch:
    """A step's rollout batch as the optimiser sees it: dropped trajectories have no tokens left.

    What the host decides by is on the CPU, what the objective works on is on the policy's device.
    """

    step: int
    rollouts: Rollouts  # CPU
    advantages: Tensor  # [N] float64, CPU
    advantages_on_device: Tensor  # [N] float64
    penalties: Tensor  # [N] float64, CPU: what the algorithm took off the rewards
    progress: float  # of the training, in [0, 1]
    max_new_tokens: int
    mean_reward: float
    reward_std: float
    old_policy: Literal["trainer", "sampler"]
    usable: Tensor  # [N] bool, CPU: log-probs are finite
    scored: Tensor  # [N] bool, CPU: the log-probs at the start of the step are known
    old_log_probs: Tensor  # [N, T] float32, device: pi_old; NaN where not scored
    start_log_probs: Tensor  # [N, T] float32, device: of the trainer at the start of the step; NaN if unknown
    reference_log_probs: Tensor  # [N, T] float32, device: of the initial model; NaN where not scored
    sampler_log_probs: Tensor  # [N, T] float32, device
    entropy: Tensor  # [N] float64, device: mean over tokens, NaN where not scored
    recorded: int  # trajectories, from the first on, whose tokens are recorded
    moved: bool = False  # an optimiser step was taken: the weights are not those of the start any more

    @classmethod
    def start(
        cls,
        step: int,
        rollouts: Rollouts,
        *,
        advantages: Tensor,
        penalties: Tensor | None = None,
        kept: Tensor,
        rewards: Tensor,
        progress: float,
        max_new_tokens: int,
        recorded: int = 0,
        old_policy: Literal["trainer", "sampler"] = "trainer",
        device: torch.device | None = None,
    ) -> "TrainingBatch":
        """A batch nobody has scored yet. advantages, kept (bool), rewards: [N]; what isn't kept leaves it.

        pi_old is the trainer's own, still to be scored, or that of the weights which sampled each token.
        """
        return cls._unscored(
            without(rollouts, (~kept).nonzero()[:, 0]),
            torch.where(rollouts.mask, rollouts.sampler_log_probs, torch.nan),
            device,
            step=step,
            advantages=advantages,
            penalties=torch.zeros_like(advantages) if penalties is None else penalties,
            progress=progress,
            max_new_tokens=max_new_tokens,
            mean_reward=float(rewards.mean()),
            reward_std=float(rewards.std()),
            old_policy=old_policy,
            recorded=recorded,
        )

    @classmethod
    def _unscored(
        cls, rollouts: Rollouts, sampled: Tensor, device: torch.device | None, **given: Any
    ) -> "TrainingBatch":
        start = torch.full(rollouts.tokens.shape, torch.nan, device=device)
        sampled = sampled.to(start.device)
        advantages = given["advantages"]
        return cls(
            rollouts=rollouts,
            advantages_on_device=advantages.to(start.device),
            usable=torch.ones_like(advantages, dtype=torch.bool),
            scored=torch.zeros_like(advantages, dtype=torch.bool),
            old_log_probs=start if given["old_policy"] == "trainer" else sampled,
            start_log_probs=start,
            reference_log_probs=torch.full_like(start, torch.nan),
            sampler_log_probs=sampled,
            entropy=torch.full(advantages.shape, torch.nan, dtype=torch.float64, device=start.device),
            **given,
        )

    def message(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A batch nobody has scored yet, for other ranks: JSON and tensors, which `of_message` reads."""
        rollouts = self.rollouts
        return {name: getattr(self, name) for name in _SENT_FACTS}, {
            "prompts": torch.tensor([token for prompt in rollouts.prompts for token in prompt]),
            "prompt_lengths": torch.tensor([len(prompt) for prompt in rollouts.prompts]),
            "sampled": self.sampler_log_probs,
            "advantages": self.advantages,
        } | {name: getattr(rollouts, name) for name in _SENT_ROLLOUTS}

    @classmethod
    def of_message(
        cls, facts: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device
    ) -> "TrainingBatch":
        """The batch as rank 0 has it, without what only its records need."""
        prompts = torch.split(tensors["prompts"], tensors["prompt_lengths"].tolist())
        of_rollouts: dict[str, Any] = {name: tensors[name] for name in _SENT_ROLLOUTS}
        of_rollouts["weight_version"] = torch.zeros(len(tensors["tokens"]), dtype=torch.int64)
        rollouts = Rollouts(prompts=tuple(tuple(prompt.tolist()) for prompt in prompts), **of_rollouts)
        return cls._unscored(
            rollouts,
            tensors["sampled"],
            device,
            advantages=tensors["advantages"],
            penalties=torch.zeros_like(tensors["advantages"]),
            **{name: facts[name] for name in _SENT_FACTS},
        )

    def drop(self, rows: Tensor) -> bool:
        """Take trajectories whose log-probs are not finite out of the batch and its denominators.

        False when none with an advantage is left: others were never scored.
        """
        self.usable[rows] = False
        self.rollouts = without(self.rollouts, rows)
        for known in (self.start_log_probs, self.old_log_probs, self.entropy):
            known[rows.to(known.device)] = torch.nan
        return bool((self.rollouts.mask.any(-1) & (self.advantages != 0)).any())

    def pending(self, rows: Tensor) -> bool:
        """Whether the next pass over these rows gives the trainer's log-probs at the start of the step.

        Where they are pi_old, whatever comes first must do; else only what the weights of the start give.
        """
        unknown = bool((~self.scored[rows]).any())
        return unknown and not (self.moved and self.old_policy == "sampler")


def without(rollouts: Rollouts, rows: Tensor) -> Rollouts:
    """The rollouts with some trajectories [n] emptied: no token counts, none reaches the model."""
    mask, tokens = rollouts.mask.clone(), rollouts.tokens.clone()
    mask[rows] = False
    tokens[rows] = 0
    return replace(rollouts, mask=mask, tokens=tokens)

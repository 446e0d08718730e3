"""One optimiser step on a minibatch of groups, and the log-probs that it starts from.

Groups in which no completion has an advantage cost no forward and no backward pass; they still count in the
denominators. pi_old of a step's first minibatch comes free from its own first forward pass, when the
weights are those at the start of the step. Where the sampler's log-probs are pi_old nothing is scored at all.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from powermean.contracts.job import OptimizerSpec
from trainer.learner.lora import dropping, has_dropout
from trainer.learner.policy import Policy, Scores
from trainer.learner.training_batch import TrainingBatch, non_finite
from trainer.learner.update_report import RECORDED, SeenTokens, UpdateReport
from trainer.objectives import (
    Algorithm,
    BatchFacts,
    DistanceParts,
    LossOutput,
    batch_facts,
    finite_rows,
    kl_penalty,
)
from trainer.rollouts.batching import GroupBatch, group_batch, micro_batches


@dataclass
class Learner:
    """The policy and how it is changed. `updates` counts the optimiser steps of the whole run."""

    policy: Policy
    reference: Policy | None  # the initial model, where the objective has a KL term
    algorithm: Algorithm
    spec: OptimizerSpec
    optimizer: torch.optim.Optimizer
    micro_batch_groups: int
    pad_token_id: int
    updates: int = 0

    def active(self, batch: TrainingBatch, groups: Sequence[int]) -> list[int]:
        """The groups that cost a forward and backward pass."""
        trained = batch.rollouts.mask.any(-1)
        if self.algorithm.beta == 0:
            trained &= batch.advantages != 0
        return [group for group in groups if trained[batch.rollouts.rows([group])].any()]

    @property
    def first_pass_scores(self) -> bool:
        """Whether the first minibatch's own forward pass gives its pi_old: not where dropout is at work."""
        return not has_dropout(self.policy.model)

    def score_start(self, batch: TrainingBatch, dealt: Sequence[Sequence[int]]) -> None:
        """Score an epoch's minibatches (groups each) under the weights at the start of the step.

        That is pi_old where it did not come with the rollouts, and the reference where there is one. The
        first minibatch that costs a pass is left out where its own first forward pass gives the same.
        """
        first = next((groups for groups in dealt if self.active(batch, groups)), None)
        for groups in dealt:
            if groups is not first or not self.first_pass_scores:
                self.score(batch, groups)
            self.score_reference(batch, groups)

    @torch.no_grad()
    def score(self, batch: TrainingBatch, groups: Sequence[int]) -> None:
        """Fill in pi_old and the entropy of these groups, under the present weights.

        Nothing to do where pi_old came with the rollouts.
        """
        pending = self.active(batch, groups) if batch.old_policy == "trainer" else []
        while pending:
            some, pending = pending[: self.micro_batch_groups], pending[self.micro_batch_groups :]
            micro = group_batch(batch.rollouts, some, self.pad_token_id)
            try:
                self._remember(batch, micro, self.policy.score(micro, entropy=True))
            except _NonFiniteError as found:
                batch.drop(found.rows)
                pending = self.active(batch, some) + pending

    @torch.no_grad()
    def score_reference(self, batch: TrainingBatch, groups: Sequence[int]) -> None:
        """Fill in the initial model's log-probs, where the objective asks for them."""
        if self.reference is None:
            return
        for micro in self._micro_batches(batch, self.active(batch, groups)):
            log_probs = self.reference.score(micro).log_probs.cpu()
            batch.reference_log_probs[micro.rows, : log_probs.shape[1]] = log_probs

    def update(self, batch: TrainingBatch, groups: Sequence[int], number: int) -> UpdateReport:
        """One optimiser step on a minibatch; none if no trajectory in it has an advantage.

        `number` is the update's place in the step. Raises TrainingError (non_finite_loss) naming the step.
        """
        while True:
            try:
                seen = self._accumulate(batch, groups)
                break
            except _NonFiniteError as found:
                self.optimizer.zero_grad(set_to_none=True)
                batch.drop(found.rows)
        grad_norm = None
        rate = learning_rate(self.spec, self.updates)
        if seen.passes:
            grad_norm = self._step(rate)
            if grad_norm is None:
                raise non_finite(batch.step, f"the gradient of update {number} is not finite")
            batch.moved = True
        return UpdateReport(
            update=number,
            rows=batch.rollouts.rows(groups),
            values=seen.values,
            loss=seen.loss,
            grad_norm=grad_norm,
            learning_rate=rate,
            distance_to_grpo=seen.distance.value,
            kl=seen.kl if self.reference is not None else None,
            trajectories=seen.facts.trajectories,
            tokens_trained=seen.facts.tokens,
            tokens=seen.tokens,
        )

    def _accumulate(self, batch: TrainingBatch, groups: Sequence[int]) -> "_Seen":
        """Forward and backward over the minibatch: gradients of the whole minibatch's loss add up."""
        facts = batch_facts(
            batch.rollouts.mask[batch.rollouts.rows(groups)], batch.max_new_tokens, batch.reward_std
        )
        seen = _Seen(count=len(batch.advantages), facts=facts)
        for micro in self._micro_batches(batch, self.active(batch, groups)):
            remember = batch.pending(micro.rows) and (batch.old_policy == "trainer" or self.first_pass_scores)
            with dropping(self.policy.model):
                scores = self.policy.score(micro, entropy=remember)
            if remember:
                self._remember(batch, micro, scores)
            self._learn(batch, micro, scores.log_probs, facts, seen)
        return seen

    def _learn(
        self, batch: TrainingBatch, micro: GroupBatch, log_probs: Tensor, facts: BatchFacts, seen: "_Seen"
    ) -> None:
        """Backward pass of one micro-batch. log_probs [B, T] with gradients."""
        device, width = log_probs.device, log_probs.shape[1]
        mask = micro.mask.to(device)
        old = batch.old_log_probs[micro.rows, :width].to(device)
        log_ratio = torch.where(mask, log_probs - old, 0.0)
        finite = finite_rows(log_ratio.detach(), mask)
        if not finite.all():
            raise _NonFiniteError(micro.rows[~finite.cpu()])
        advantages = batch.advantages[micro.rows].to(device)
        sampled = batch.rollouts.sampler_log_probs[micro.rows, :width].to(device)
        weight = self.algorithm.importance_sampling_ratio(old, sampled, mask)
        output = self.algorithm.loss(
            log_ratio,
            mask,
            advantages,
            facts,
            progress=batch.progress,
            mean_reward=batch.mean_reward,
            importance_sampling_ratio=weight,
        )
        loss, penalty = output.loss, 0.0
        if self.reference is not None:
            reference = batch.reference_log_probs[micro.rows, :width].to(device)
            term = kl_penalty(log_probs, reference, mask, self.algorithm.beta, facts.tokens)
            loss, penalty = loss + term, float(term.detach())
        loss.backward()  # type: ignore[no-untyped-call]
        seen.distance += self.algorithm.distance_to_grpo(
            log_ratio.detach(), mask, advantages, facts, output.trajectories["p"], batch.mean_reward, weight
        )
        seen.add(micro.rows, output, penalty, self.algorithm.beta)
        trained = micro.mask.any(-1) & (batch.advantages[micro.rows] != 0)
        seen.record(micro.rows, trained & (micro.rows < batch.recorded), log_ratio.detach(), output)

    def _remember(self, batch: TrainingBatch, micro: GroupBatch, scores: Scores) -> None:
        """Keep the trainer's log-probs (pi_old, unless the sampler's are) and the entropy.

        Raises if they are not finite.
        """
        log_probs = scores.log_probs.detach().cpu()
        finite = finite_rows(log_probs, micro.mask)
        if not finite.all():
            raise _NonFiniteError(micro.rows[~finite])
        batch.start_log_probs[micro.rows, : log_probs.shape[1]] = log_probs
        if scores.entropy is not None:
            entropy = torch.where(micro.mask, scores.entropy.cpu(), 0.0).double()
            batch.entropy[micro.rows] = entropy.sum(-1) / micro.mask.sum(-1)

    def _step(self, rate: float) -> float | None:
        """Clip the gradients, then step. Their norm before; None (and no step) if it is not finite."""
        parameters = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.spec.max_grad_norm))
        if not math.isfinite(norm):
            return None
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        return norm

    def _micro_batches(self, batch: TrainingBatch, groups: Sequence[int]) -> Iterator[GroupBatch]:
        return micro_batches(batch.rollouts, groups, self.micro_batch_groups, self.pad_token_id)


def learning_rate(spec: OptimizerSpec, updates: int) -> float:
    """The rate of the next optimiser step after `updates` of them: a linear rise from 0, then constant."""
    return spec.learning_rate * min(1.0, (updates + 1) / (spec.warmup_updates + 1))


def make_optimizer(model: nn.Module, spec: OptimizerSpec) -> torch.optim.Optimizer:
    """AdamW; biases and norms don't decay."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in weights if w.dim() >= 2], "weight_decay": spec.weight_decay},
        {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=spec.learning_rate,
        betas=spec.betas,
        eps=spec.eps,
        fused=True,
    )


class _NonFiniteError(Exception):
    """Trajectories [n] of the rollout batch turned out not finite."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__(f"{len(rows)} trajectories are not finite")
        self.rows = rows


@dataclass
class _Seen:
    """What the micro-batches of one update add up to."""

    count: int  # N
    facts: BatchFacts
    values: dict[str, Tensor] = field(default_factory=dict)  # [N] float64, NaN where not seen
    loss: float = 0.0
    kl: float = 0.0
    passes: int = 0
    distance: DistanceParts = field(default_factory=DistanceParts)
    tokens: list[SeenTokens] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in RECORDED:
            self.values[name] = torch.full((self.count,), torch.nan, dtype=torch.float64)

    def add(self, rows: Tensor, output: LossOutput, penalty: float, beta: float) -> None:
        for name in RECORDED:
            self.values[name][rows] = output.trajectories[name].double().cpu()
        self.loss += float(output.recorded_loss) + penalty
        self.kl += penalty / beta if beta else 0.0
        self.passes += 1

    def record(self, rows: Tensor, kept: Tensor, log_ratio: Tensor, output: LossOutput) -> None:
        """Copy to the CPU what the objective saw of the tokens of those rows [B] that are `kept` [B] bool."""
        if kept.any():
            here = kept.to(log_ratio.device)
            self.tokens.append(
                SeenTokens(
                    rows=rows[kept],
                    log_ratio=log_ratio[here].float().cpu(),
                    weight=output.token_weights[here].float().cpu(),
                    clipped=output.clipped[here].cpu(),
                )
            )

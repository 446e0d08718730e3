"""One optimiser step on a minibatch of groups, and the log-probs that it starts from.

Groups in which no completion has an advantage cost no forward and no backward pass; they still count in the
denominators. pi_old of a step's first minibatch comes free from its own first forward pass, when the
weights are those at the start of the step. Where the sampler's log-probs are pi_old nothing is scored at all.

With several ranks each has the whole batch, computes its share of a minibatch's trajectories, and knows
afterwards what the others found: they take the same optimiser step (docs/ranks.md).
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from powermean.contracts.training import OptimizerSpec
from trainer.failures import is_out_of_memory, sharded_out_of_memory
from trainer.learner import diagnosis
from trainer.learner.lora import dropping, has_dropout
from trainer.learner.optimizer import MasterWeights, UpdatePlan, learning_rate
from trainer.learner.seen import Seen
from trainer.learner.training_batch import TrainingBatch
from trainer.learner.update_report import UpdateReport
from trainer.objectives import Algorithm, BatchFacts, batch_facts, finite_rows, kl_penalty
from trainer.policy.policy import Policy, Scores
from trainer.policy.token_tree import TokenTree
from trainer.ranks.exchange import Ranks
from trainer.ranks.gradients import is_sharded, sum_gradients
from trainer.ranks.sharding import last_pass
from trainer.ranks.share_out import share_out
from trainer.rollouts.batching import Trajectories

log = logging.getLogger(__name__)

DIAGNOSED = 8  # trajectories that are looked at when all went wrong


@dataclass(frozen=True)
class Share:
    """What this rank computes of some groups."""

    rows: Tensor  # [n] the groups' trajectories that reach a model, on any rank
    mine: range  # places in `rows`

    @property
    def own(self) -> Tensor:
        return self.rows[self.mine.start : self.mine.stop]


@dataclass
class Learner:
    """The policy and how it is changed. `updates` counts the optimiser steps of the whole run."""

    policy: Policy
    reference: Policy | None  # the initial model, where the objective has a KL term
    algorithm: Algorithm
    spec: OptimizerSpec
    optimizer: torch.optim.Optimizer
    micro_batch_tokens: int
    pad_token_id: int
    micro_batch_groups: int | None = None  # most groups of a micro-batch, whatever their tokens
    may_lower: bool = False  # micro_batch_tokens, once, when memory runs out
    masters: MasterWeights | None = None  # of a policy in bfloat16
    plan: UpdatePlan = field(default_factory=UpdatePlan)
    updates: int = 0
    beta: float = field(init=False)  # of the KL penalty, which may be adapted
    ranks: Ranks = field(default_factory=Ranks)
    tell: Callable[[int, int], object] = field(default=lambda number, of: None, repr=False)  # micro-batches

    def __post_init__(self) -> None:
        self.beta = self.algorithm.beta

    def active(self, batch: TrainingBatch, groups: Sequence[int]) -> list[int]:
        """The groups that cost a forward and backward pass."""
        trained = batch.rollouts.mask.any(-1)
        if self.algorithm.beta == 0 and self.algorithm.entropy_coefficient == 0:
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
        first = next((place for place, groups in enumerate(dealt) if self.active(batch, groups)), None)
        for place, groups in enumerate(dealt):
            if place != first or not self.first_pass_scores:
                self.score(batch, groups)
            self.score_reference(batch, groups)

    @torch.no_grad()
    def score(self, batch: TrainingBatch, groups: Sequence[int]) -> None:
        """Fill in pi_old and the entropy of these groups, under the present weights.

        Nothing to do where pi_old came with the rollouts.
        """
        if batch.old_policy == "sampler":
            return
        share = self._share(batch, groups)
        finite = torch.ones_like(batch.usable)
        trees, missing = self._micro_batches(batch, share.own)
        for tree in self._on_device(trees):
            scores = self.policy.score(tree, entropy=True)
            self._remember(batch, tree, scores)
            finite[tree.rows] = finite_rows(scores.log_probs, tree.mask_of_tokens()).cpu()
        self.keep_pace(self.policy, missing)
        self._exchange_scores(batch, share)
        self._drop(batch, self.ranks.any(~finite).nonzero()[:, 0])

    @torch.no_grad()
    def score_reference(self, batch: TrainingBatch, groups: Sequence[int]) -> None:
        """Fill in the initial model's log-probs, where the objective asks for them."""
        if self.reference is None:
            return
        share, known = self._share(batch, groups), batch.reference_log_probs
        trees, missing = self._micro_batches(batch, share.own)
        for tree in self._on_device(trees):
            _fill(known, tree, self.reference.score(tree).log_probs)
        self.keep_pace(self.reference, missing)
        if not self.ranks.world.alone:  # else the host would wait for the GPU
            known[share.rows] = self.ranks.merged(known[share.rows], share.mine)

    def update(self, batch: TrainingBatch, groups: Sequence[int], number: int) -> UpdateReport:
        """One optimiser step on a minibatch; none if no trajectory in it has an advantage.

        `number` is the update's place in the step. Raises TrainingError (non_finite_loss) naming the step.
        """
        share = self._share(batch, groups)
        while True:
            scored, gives_scores = batch.scored.clone(), self._gives_scores(batch, share.rows)
            seen, facts = self._accumulated(batch, groups, share)
            broken = self.ranks.any(seen.broken())
            if not broken.any():
                break
            self._undo(batch, scored)
            self._drop(batch, broken.nonzero()[:, 0])
            share = self._share(batch, groups)
        if gives_scores:
            self._exchange_scores(batch, share)
        seen = seen.of_all(self.ranks, share.rows, share.mine, batch.rollouts.tokens.shape[1])
        grad_norm, loss = None, float(seen.loss)
        rate = learning_rate(self.spec, self.updates, self.plan.place(batch.step, number), self.plan.total)
        if len(share.rows):
            if not math.isfinite(loss):
                raise diagnosis.non_finite_loss(batch.step, number, moved=self.updates > 0)
            grad_norm = self._step(rate)
            if grad_norm is None:
                weights = self.master_weights or dict(self.policy.model.named_parameters())
                raise diagnosis.non_finite_gradient(batch.step, number, weights, moved=self.updates > 0)
            batch.moved = True
        kl, beta = (float(seen.kl), self.beta) if self.reference is not None else (None, None)
        if kl is not None and len(share.rows) and self.algorithm.beta_control is not None:
            self.beta = self.algorithm.beta_control.after(self.beta, kl, facts.trajectories)
        return UpdateReport(
            update=number,
            rows=batch.rollouts.rows(groups),
            values=seen.values(),
            loss=loss,
            grad_norm=grad_norm,
            learning_rate=rate,
            distance_to_grpo=seen.distance.value,
            kl=kl,
            beta=beta,
            trajectories=facts.trajectories,
            tokens_trained=facts.tokens,
            tokens=seen.tokens_on_cpu(),
        )

    @property
    def master_weights(self) -> Mapping[str, Tensor]:
        """Float32 copies of a bfloat16 model's weights, by name; none of a float32 model's."""
        return {} if self.masters is None else self.masters.by_name

    def _accumulated(
        self, batch: TrainingBatch, groups: Sequence[int], share: Share
    ) -> tuple[Seen, BatchFacts]:
        """Forward and backward over the minibatch: gradients of the whole minibatch's loss add up.

        Where memory runs out, on any rank, once with smaller micro-batches on all of them.
        """
        scored, message = batch.scored.clone(), None
        try:
            found = self._accumulate(batch, groups, share)
        except Exception as error:
            if not (self.may_lower and is_out_of_memory(error)):
                raise
            if is_sharded(self.policy.model):
                raise sharded_out_of_memory(self.micro_batch_tokens) from error
            message = str(error).split("\n")[0]
        # Out of the except block: the error holds the tensors of the pass that failed.
        if not self.ranks.any_of(message is not None):
            return found
        self.may_lower = False
        self.micro_batch_tokens //= 2
        log.warning(
            "out of memory (%s): micro-batches of %d tokens from now on",
            message or "on another rank",
            self.micro_batch_tokens,
        )
        self._undo(batch, scored)
        if self.policy.device.type == "cuda":
            torch.cuda.empty_cache()
        return self._accumulate(batch, groups, share)

    def _undo(self, batch: TrainingBatch, scored: Tensor) -> None:
        """Forget a pass that is done again in other micro-batches: its gradients, and the pi_old it gave.

        Log-probs of other micro-batches are rounded otherwise: ratios would not start at exactly 1.
        """
        self.optimizer.zero_grad(set_to_none=True)
        batch.scored = scored

    def _accumulate(
        self, batch: TrainingBatch, groups: Sequence[int], share: Share
    ) -> tuple[Seen, BatchFacts]:
        facts = batch_facts(
            batch.rollouts.mask[batch.rollouts.rows(groups)], batch.max_new_tokens, batch.reward_std
        )
        seen = Seen(count=len(batch.advantages), beta=self.beta)
        trees, missing = self._micro_batches(batch, share.own)
        with dropping(self.policy.model):  # the backward pass may compute layers again
            for number, tree in enumerate(self._on_device(trees), 1):
                self.tell(number, len(trees) + missing)
                last_pass(self.policy.model, number == len(trees) + missing)
                remember = self._gives_scores(batch, tree.rows)
                scores = self.policy.score(tree, entropy=remember or self.algorithm.entropy_coefficient > 0)
                if remember:
                    self._remember(batch, tree, scores)
                self._learn(batch, tree, scores, facts, seen)
            self.keep_pace(self.policy, missing)
        return seen, facts

    def _learn(
        self, batch: TrainingBatch, tree: TokenTree, scores: Scores, facts: BatchFacts, seen: Seen
    ) -> None:
        """Backward pass of one micro-batch. `scores` with gradients."""
        log_probs = scores.log_probs
        mask, rows, width = tree.mask_of_tokens(), tree.places, tree.width
        old, sampled = batch.old_log_probs[rows, :width], batch.sampler_log_probs[rows, :width]
        log_ratio = torch.where(mask, log_probs - old, 0.0)
        output = self.algorithm.loss(
            log_ratio,
            mask,
            batch.advantages_on_device[rows],
            facts,
            progress=batch.progress,
            mean_reward=batch.mean_reward,
            importance_sampling_ratio=self.algorithm.importance_sampling_ratio(old, sampled, mask),
        )
        loss, penalty = output.loss, None
        if self.reference is not None:
            reference = batch.reference_log_probs[rows, :width]
            penalty = kl_penalty(log_probs, reference, mask, self.beta, facts.tokens)
            loss, penalty = loss + penalty, penalty.detach()
        if self.algorithm.entropy_coefficient > 0:
            assert scores.entropy is not None
            bonus = self.algorithm.entropy_coefficient * scores.entropy.sum() / facts.tokens
            loss, seen.loss = loss - bonus, seen.loss - bonus.detach()
        loss.backward()  # type: ignore[no-untyped-call]
        log_ratio = log_ratio.detach()
        seen.add(tree.rows, output, penalty, finite_rows(log_ratio, mask))
        recorded = (tree.rows < batch.recorded) & (batch.advantages[tree.rows] != 0)
        seen.record(tree.rows, recorded, log_ratio, output)

    def _remember(self, batch: TrainingBatch, tree: TokenTree, scores: Scores) -> None:
        """Keep the trainer's log-probs (pi_old, unless the sampler's are) and the entropy."""
        _fill(batch.start_log_probs, tree, scores.log_probs.detach())
        batch.scored[tree.rows] = True
        if scores.entropy is not None:
            sums = scores.entropy.detach().double().sum(-1)
            batch.entropy[tree.places] = sums / tree.mask_of_tokens().sum(-1)

    def _gives_scores(self, batch: TrainingBatch, rows: Tensor) -> bool:
        """Whether a training pass over these rows gives the trainer's log-probs at the start of the step."""
        return batch.pending(rows) and (batch.old_policy == "trainer" or self.first_pass_scores)

    def _exchange_scores(self, batch: TrainingBatch, share: Share) -> None:
        """What each rank has remembered of its trajectories, all ranks do: others may train on them next."""
        if not self.ranks.world.alone:  # see score_reference
            for known in (batch.start_log_probs, batch.entropy):
                known[share.rows] = self.ranks.merged(known[share.rows], share.mine)
        batch.scored[share.rows] = True

    def _drop(self, batch: TrainingBatch, rows: Tensor) -> None:
        """Raises TrainingError (non_finite_loss) when no trajectory that could be learnt from is left."""
        if not len(rows):
            return
        given = batch.rollouts.trajectories(rows.tolist()[:DIAGNOSED])
        if not batch.drop(rows):
            tree = next(self.policy.batches(given, self.micro_batch_tokens))
            raise diagnosis.non_finite_log_probs(batch.step, self.policy, tree, moved=self.updates > 0)

    def _step(self, rate: float) -> float | None:
        """Clip the gradients of all ranks, then step. Their norm before; None (and no step) if not finite."""
        parameters = self._trained
        sum_gradients(self.ranks, parameters)
        total = nn.utils.get_total_norm(w.grad for w in parameters if w.grad is not None)
        if isinstance(total, DTensor):
            total = total.full_tensor()
        norm = float(total)
        if not math.isfinite(norm):
            return None
        nn.utils.clip_grads_with_norm_(parameters, self.spec.max_grad_norm, total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.masters is not None:
            self.masters.write_back()
        self.updates += 1
        return norm

    @property
    def _trained(self) -> list[Tensor]:
        return [weight for group in self.optimizer.param_groups for weight in group["params"]]

    def _share(self, batch: TrainingBatch, groups: Sequence[int]) -> Share:
        """What of these groups costs a pass, and this rank's part of it."""
        rollouts = batch.rollouts
        rows = rollouts.rows(self.active(batch, groups))
        rows = rows[rollouts.mask[rows].any(-1)]
        prompts = torch.tensor([len(prompt) for prompt in rollouts.prompts])[rows // rollouts.group_size]
        costs = rollouts.lengths[rows] + prompts / rollouts.group_size
        world = self.ranks.world
        return Share(rows, share_out(costs.tolist(), world.size)[world.rank])

    def _on_device(self, trees: Sequence[TokenTree]) -> Iterator[TokenTree]:
        """The micro-batches, one after the other."""
        for tree in trees:
            self.ranks.place.passes += 1
            yield tree.to(self.policy.device)

    def _micro_batches(self, batch: TrainingBatch, rows: Tensor) -> tuple[list[TokenTree], int]:
        """These rows as micro-batches in the host's memory; how many more of them another rank has."""
        found = []
        _, counts = torch.unique_consecutive(rows // batch.rollouts.group_size, return_counts=True)
        size = self.micro_batch_groups or max(1, len(counts))
        for part in torch.split(rows, [int(some.sum()) for some in torch.split(counts, size)]):
            given = batch.rollouts.trajectories(part.tolist())
            found += [tree.numbered(part) for tree in self.policy.batches(given, self.micro_batch_tokens)]
        return found, self.ranks.most(len(found)) - len(found)

    def keep_pace(self, policy: Policy, passes: int) -> None:
        """Passes over a token that count for nothing: with sharded weights each pass takes all ranks."""
        for left in reversed(range(passes)):
            self.ranks.place.passes += 1
            last_pass(policy.model, left == 0)
            given = Trajectories([[self.pad_token_id]], [[self.pad_token_id]])
            tree = next(policy.batches(given, self.micro_batch_tokens))
            log_probs = policy.score(tree.to(policy.device)).log_probs
            if log_probs.requires_grad:
                log_probs.backward(torch.zeros_like(log_probs))  # type: ignore[no-untyped-call]


def _fill(place: Tensor, tree: TokenTree, values: Tensor) -> None:
    """Put values [B, T] of a tree's rows into [N, T'], NaN on padding."""
    place[tree.places, : tree.width] = torch.where(tree.mask_of_tokens(), values, torch.nan)

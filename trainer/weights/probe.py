"""Verifies that the engine serves the trainer's weights: both score the same completions."""

from collections.abc import Sequence
from typing import Protocol

import torch

from powermean.contracts.rollout import GenerateRequest, GenerateResponse, Sampling
from trainer.failures import TrainingError
from trainer.policy.policy import Policy
from trainer.policy.token_tree import sort_rows, token_tree
from trainer.rollouts.batching import Rollouts, collate
from trainer.rollouts.sampling import time_limit

PROBE_PROMPTS = 2
PROBE_COMPLETIONS = 2
PROBE_TOKENS = 8
# In bfloat16 two correct implementations differ by this much in a token's log-prob.
BFLOAT16_TOLERANCE = 0.5


class Probed(Protocol):
    """An engine that may have replicas: each of them is probed."""

    def generate_on_each(self, request: GenerateRequest, timeout_s: float) -> list[GenerateResponse]: ...


def probe(
    engine: Probed, policy: Policy, prompts: Sequence[tuple[int, ...]], sampling: Sampling, pad_token_id: int
) -> float:
    """Largest |log-prob of the engine - log-prob of the policy| over a few new completions of each replica,
    in nats."""
    limited = sampling.model_copy(update={"max_new_tokens": min(PROBE_TOKENS, sampling.max_new_tokens)})
    request = GenerateRequest(prompts=tuple(prompts[:PROBE_PROMPTS]), n=PROBE_COMPLETIONS, sampling=limited)
    answers = engine.generate_on_each(request, time_limit(request))
    completions = [group for answer in answers for group in answer.completions]
    return largest_difference(policy, collate(request.prompts * len(answers), completions, pad_token_id))


@torch.no_grad()
def largest_difference(policy: Policy, rollouts: Rollouts) -> float:
    """max |log-prob of the engine - log-prob of the policy| over all tokens, in nats; NaN if one is."""
    given = rollouts.trajectories(range(len(rollouts.tokens)))
    if not (order := sort_rows(given)):
        return 0.0
    tree = token_tree(given, order)
    ours = policy.score(tree).log_probs.cpu()
    difference = ours - rollouts.sampler_log_probs[tree.rows, : tree.width]
    return float(torch.where(tree.mask_of_tokens(), difference, 0.0).abs().max())


def check(difference: float, tolerance: float, dtype: torch.dtype, version: int) -> None:
    """Raises TrainingError (publish_mismatch) if the difference exceeds the tolerance of spec and type."""
    allowed = max(tolerance, BFLOAT16_TOLERANCE) if dtype == torch.bfloat16 else tolerance
    if not difference <= allowed:
        raise TrainingError(
            "publish_mismatch",
            f"after publishing version {version} the rollout service's log-probs differ from the trainer's "
            f"by {difference:.3g}, more than {allowed:g}",
            path="rollout.logprob_tolerance",
            remedy="the engine does not serve the weights it was sent: report this with the attempt's log",
            retryable=True,
        )

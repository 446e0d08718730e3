"""Proof that the engine serves the trainer's weights: both score the same completions."""

from collections.abc import Sequence

import torch

from powermean.contracts.rollout import Sampling
from trainer.failures import TrainingError
from trainer.learner.policy import Policy
from trainer.rollouts.batching import Rollouts, group_batch
from trainer.rollouts.sampling import Engine, complete_prompts

PROBE_PROMPTS = 2
PROBE_COMPLETIONS = 2
PROBE_TOKENS = 8
# In bfloat16 two correct implementations differ by this much in a token's log-prob.
BFLOAT16_TOLERANCE = 0.5


def probe(
    engine: Engine, policy: Policy, prompts: Sequence[tuple[int, ...]], sampling: Sampling, pad_token_id: int
) -> float:
    """Largest |log-prob of the engine - log-prob of the policy| over a few new completions, in nats."""
    limited = sampling.model_copy(update={"max_new_tokens": min(PROBE_TOKENS, sampling.max_new_tokens)})
    rollouts = complete_prompts(
        engine, prompts[:PROBE_PROMPTS], count=PROBE_COMPLETIONS, sampling=limited, pad_token_id=pad_token_id
    )
    return largest_difference(policy, rollouts, pad_token_id)


@torch.no_grad()
def largest_difference(policy: Policy, rollouts: Rollouts, pad_token_id: int) -> float:
    """max |log-prob of the engine - log-prob of the policy| over all tokens, in nats; NaN if one is."""
    batch = group_batch(rollouts, range(len(rollouts.prompts)), pad_token_id)
    ours = policy.score(batch).log_probs.cpu()
    difference = torch.where(batch.mask, ours - rollouts.sampler_log_probs[batch.rows, : ours.shape[1]], 0.0)
    return float(difference.abs().max())


def check(difference: float, tolerance: float, dtype: torch.dtype, version: int) -> None:
    """Raises TrainingError (publish_mismatch) when the difference exceeds what spec and type allow."""
    allowed = max(tolerance, BFLOAT16_TOLERANCE) if dtype == torch.bfloat16 else tolerance
    if not difference <= allowed:
        raise TrainingError(
            "publish_mismatch",
            f"after publishing version {version} the rollout service's log-probs differ from the trainer's "
            f"by {difference:.3g}, more than {allowed:g}",
            path="rollout.logprob_tolerance",
            remedy="the engine does not serve the weights it was sent: report it with the attempt's log",
            retryable=True,
        )

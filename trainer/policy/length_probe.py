"""Whether a model computes a row otherwise when a longer one is beside it.

Some encode positions by the longest row of a call (LongRoPE's factors, dynamic NTK scaling): an engine that
generates token by token and a trainer that scores whole rows then work with two different models.
"""

import torch

from trainer.failures import length_dependent
from trainer.policy.loading import AGREEMENT
from trainer.policy.policy import Policy
from trainer.policy.token_tree import sort_rows, token_tree
from trainer.rollouts.batching import Trajectories

SHORT = 6  # tokens of the row that is scored twice


@torch.no_grad()
def difference_beside(policy: Policy, longest: int) -> float:
    """Largest difference, in nats, of a short row's log-probs alone and beside one of `longest` tokens."""
    vocabulary = int(policy.plain_model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    ids = (torch.arange(1, max(longest, SHORT) + 2) * 7 % vocabulary).tolist()
    short, long = (ids[: SHORT // 2], ids[SHORT // 2 : SHORT]), (ids[1:longest], ids[longest : longest + 1])
    found = []
    for rows in ([short], [short, long]):
        prompts, completions = zip(*rows, strict=True)
        given = Trajectories(prompts, completions)
        order = sort_rows(given)
        scores = policy.score(token_tree(given, order)).log_probs
        found.append(scores[order.index(0), : len(short[1])])
    return float((found[0] - found[1]).abs().max())


def refuse_length_dependence(policy: Policy, longest: int) -> None:
    """Raises TrainingError (length_dependent_model) where a row of `longest` tokens changes a short one."""
    apart = difference_beside(policy, longest)
    if not apart <= AGREEMENT[policy.dtype]:
        raise length_dependent(
            f"a short row's log-probs change by {apart:.2g} nats beside a row of {longest} tokens"
        )

"""How many tokens a micro-batch may have: a constant on a CPU, on a GPU what its free memory holds."""

import logging

import torch
from torch.distributed.tensor import DTensor

from trainer.defaults import CPU_TOKENS, LEAST_GPU_TOKENS, MOMENT_BYTES
from trainer.policy.policy import Policy
from trainer.rollouts.batching import Trajectories

log = logging.getLogger(__name__)

MOST_TOKENS = 65_536  # the same on a GPU
SHARE = 0.8  # of the free memory: allocators leave gaps, and trees of other shapes need a little more
ROW_TOKENS = 256
# Tokens: from two sizes follow what a token takes and what is there anyway.
TRIED = (LEAST_GPU_TOKENS, 4 * LEAST_GPU_TOKENS)


def micro_batch_tokens(policy: Policy, optimizer: torch.optim.Optimizer, state: str) -> int:
    """Tokens of a micro-batch that fits where the policy is, before its optimiser has taken a step.

    `state`: how that keeps its moments, as in optimizer.state.
    """
    if policy.device.type != "cuda":
        return CPU_TOKENS
    small, large = (peak_bytes(policy, optimizer, size) for size in TRIED)
    weights = [weight for weight in policy.model.parameters() if weight.requires_grad]
    trained = sum((w.to_local() if isinstance(w, DTensor) else w).numel() for w in weights)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(policy.device)
    tokens = fitting_tokens(small, large, free - int(MOMENT_BYTES[state] * trained))
    log.info("micro-batches of up to %d tokens, %.1f GiB of the GPU are free", tokens, free / 2**30)
    return tokens


def fitting_tokens(small: int, large: int, free: int) -> int:
    """Tokens whose pass takes SHARE of `free` bytes, where passes of TRIED tokens took `small`, `large`."""
    per_token = max(1.0, (large - small) / (TRIED[1] - TRIED[0]))
    anyway = small - per_token * TRIED[0]
    return int(max(TRIED[0], min(MOST_TOKENS, (SHARE * free - anyway) / per_token)))


def peak_bytes(policy: Policy, optimizer: torch.optim.Optimizer, tokens: int) -> int:
    """What a forward and backward pass over so many tokens allocates at most, gradients included.

    None of these is left for the first update to add to.
    """
    vocabulary = int(policy.plain_model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    rows = tokens // ROW_TOKENS
    ids = torch.arange(rows * ROW_TOKENS) * 7919 % vocabulary
    given = Trajectories([[row % vocabulary] for row in range(rows)], ids.view(rows, ROW_TOKENS).tolist())
    before = torch.cuda.memory_allocated(policy.device)
    torch.cuda.reset_peak_memory_stats(policy.device)
    for tree in policy.batches(given, tokens + rows):
        log_probs = policy.score(tree, entropy=True).log_probs
        log_probs.sum().backward()  # type: ignore[no-untyped-call]
    peak = torch.cuda.max_memory_allocated(policy.device) - before
    optimizer.zero_grad(set_to_none=True)
    return peak

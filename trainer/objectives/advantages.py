"""From rewards to advantages, within the group of completions that share a prompt. All float64."""

import torch
from torch import Tensor

STD_FLOOR = 1e-4  # added to the standard deviation, as TRL does


def standardised(rewards: Tensor, group: Tensor) -> Tensor:
    """(R - mean) / (std + 1e-4) within each group, std with ddof = 1 (GRPO, arXiv 2402.03300; floor as in
    TRL).

    rewards [N] float64, group [N] int64 (any ids) -> [N]. Groups without spread get exactly 0.
    """
    centred = mean_centred(rewards, group)
    index, count = _groups(rewards, group)
    squares = torch.zeros_like(count).index_add_(0, index, centred.square())
    deviation = (squares / (count - 1).clamp(min=1)).sqrt()
    return centred / (deviation + STD_FLOOR)[index]


def mean_centred(rewards: Tensor, group: Tensor) -> Tensor:
    """R - mean within each group (Dr. GRPO, arXiv 2503.20783). Groups without spread get exactly 0."""
    index, count = _groups(rewards, group)
    mean = torch.zeros_like(count).index_add_(0, index, rewards) / count
    # A mean of equal numbers may round away from them; such a group must not train at all.
    return torch.where(has_spread(rewards, group), rewards - mean[index], 0.0)


def has_spread(rewards: Tensor, group: Tensor) -> Tensor:
    """Bool [N]: the completion's group has two different rewards (DAPO's filter, arXiv 2503.14476)."""
    index, count = _groups(rewards, group)
    lowest = torch.zeros_like(count).scatter_reduce_(0, index, rewards, "amin", include_self=False)
    highest = torch.zeros_like(count).scatter_reduce_(0, index, rewards, "amax", include_self=False)
    return (highest > lowest)[index]


def overlong_penalty(lengths: Tensor, longest: int, buffer: int, penalty: float) -> Tensor:
    """What DAPO adds to the reward of a long completion (arXiv 2503.14476, soft overlong punishment), <= 0.

    0 up to `longest - buffer` tokens, then linear down to -penalty at `longest`. lengths [N] -> [N] float64.
    """
    if buffer <= 0:
        return torch.zeros(lengths.shape, dtype=torch.float64, device=lengths.device)
    over = (lengths.double() - (longest - buffer)) / buffer
    return -penalty * over.clamp(0.0, 1.0)


def _groups(rewards: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Place of each completion's group [N], and the groups' sizes (float64)."""
    if rewards.shape != group.shape or rewards.dim() != 1:
        raise ValueError(f"rewards {tuple(rewards.shape)} and group {tuple(group.shape)} must be [N]")
    if not torch.isfinite(rewards).all():
        raise ValueError("rewards must be finite: a grader that fails gives 0, not NaN")
    _, index, count = torch.unique(group, return_inverse=True, return_counts=True)
    return index, count.to(torch.float64)

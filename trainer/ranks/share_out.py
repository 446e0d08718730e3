"""Which trajectories of a minibatch each rank trains on."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


def share_out(costs: Sequence[float], ranks: int) -> list[range]:
    """Cut trajectories, in order of group, into one run for each rank; a run may be empty.

    costs: tokens of each, above 0. A trajectory goes to the rank in whose equal part of the line of tokens
    its middle lies: no rank has more than the mean and the largest trajectory. Runs are contiguous, so at
    most `ranks - 1` groups are divided, and only their prompts are computed more than once.
    """
    ends = list(accumulate(costs))
    middles = [end - cost / 2 for end, cost in zip(ends, costs, strict=True)]
    total = ends[-1] if ends else 0.0
    cuts = [bisect_left(middles, total * rank / ranks) for rank in range(1, ranks)]
    return [range(*pair) for pair in zip([0, *cuts], [*cuts, len(costs)], strict=True)]

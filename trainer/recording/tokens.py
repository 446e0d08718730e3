"""Token records of a step: what each update saw of each token of the recorded trajectories."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from powermean.contracts.token_records import TrajectoryTokens, UpdateTokens
from trainer.learner.update_report import SeenTokens
from trainer.rollouts.batching import Rollouts

LONGEST_CHARACTER = 4  # bytes of UTF-8, each a separate token at worst


def recorded_rows(wanted: Literal["all", "none"] | int, groups: int, group_size: int) -> int:
    """How many trajectories are recorded, from the first on: whole groups, and at least one for a number."""
    if wanted == "none":
        return 0
    if wanted == "all":
        return groups * group_size
    return min(groups, max(1, wanted // group_size)) * group_size


def token_records(
    rollouts: Rollouts,
    count: int,
    old_log_probs: Tensor,
    seen: Sequence[tuple[int, Sequence[SeenTokens]]],
    decode: Callable[[Sequence[int]], str],
) -> list[TrajectoryTokens]:
    """Records of the first `count` trajectories.

    `old_log_probs` [N, T], NaN where not scored; `seen` has what each update saw, by its number.
    """
    updates: list[list[UpdateTokens]] = [[] for _ in range(count)]
    lengths = rollouts.lengths[:count].tolist()
    for update, parts in seen:
        for part in parts:
            for place, row in enumerate(part.rows.tolist()):
                length = lengths[row]
                updates[row].append(
                    UpdateTokens.model_construct(  # our own numbers, and many of them: no validation
                        update=update,
                        log_ratio=tuple(part.log_ratio[place, :length].tolist()),
                        weight=tuple(part.weight[place, :length].tolist()),
                        clipped=tuple(part.clipped[place, :length].tolist()),
                    )
                )
    records = []
    for row, length in enumerate(lengths):
        ids = rollouts.tokens[row, :length].tolist()
        old = old_log_probs[row, :length]
        records.append(
            TrajectoryTokens.model_construct(
                index=row,
                token_ids=tuple(ids),
                pieces=tuple(pieces(ids, decode)),
                sampler_log_probs=tuple(rollouts.sampler_log_probs[row, :length].tolist()),
                old_log_probs=None if torch.isnan(old).any() else tuple(old.tolist()),
                updates=tuple(updates[row]),
            )
        )
    return records


def pieces(token_ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """The text of each token; a character made by several tokens goes to the last of them.

    Invalid UTF-8 becomes U+FFFD. Nothing is held back longer than one character can take, so the time is
    linear whatever the policy samples.
    """
    found = []
    start = read = 0  # decoding restarts at the last complete token, so that spaces come out right
    for end in range(1, len(token_ids) + 1):
        before, text = decode(token_ids[start:read]), decode(token_ids[start:end])
        unfinished = text.endswith("\ufffd") and end - read < LONGEST_CHARACTER
        if unfinished and end < len(token_ids):
            found.append("")
            continue
        found.append(text[len(before) :])
        start, read = read, end
    return found

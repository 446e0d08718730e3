"""Hypothesis strategies for prompts with completions, and how a model scores them the plain way."""

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from trainer.rollouts.batching import Trajectories

VOCABULARY = 12
token_ids = st.integers(0, VOCABULARY - 1)


@st.composite
def trajectories(draw: st.DrawFn, min_rows: int = 1) -> Trajectories:
    """Some groups: prompts of 1 to 6 tokens that may begin alike, and completions of 0 to 5.

    Some completions are there twice, some are the beginning of another.
    """
    system = draw(st.lists(token_ids, max_size=3))
    prompts, completions = [], []
    for _ in range(draw(st.integers(1, 3))):
        prompt = [*system, *draw(st.lists(token_ids, min_size=1, max_size=3))]
        drawn = draw(st.lists(st.lists(token_ids, max_size=5), min_size=1, max_size=4))
        longest = max(drawn, key=len)
        drawn += draw(st.lists(st.sampled_from([longest, longest[: len(longest) // 2]]), max_size=2))
        prompts += [prompt] * len(drawn)
        completions += drawn
    if len(prompts) < min_rows:
        prompts, completions = prompts * min_rows, completions * min_rows
    return Trajectories(prompts, completions)


def plain_scores(model: nn.Module, given: Trajectories, rows: Sequence[int], temperature: float) -> Tensor:
    """[2, B, T]: log-probs and entropy of the rows' completion tokens, one row a pass; 0 beyond its end."""
    width = max((len(given.completions[row]) for row in rows), default=0)
    found = []
    for row in rows:
        prompt, completion = list(given.prompts[row]), list(given.completions[row])
        ids = torch.tensor([prompt + completion])
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / temperature
        log_softmax = logits.log_softmax(-1)
        log_probs = log_softmax.gather(-1, ids[0, len(prompt) :, None])[:, 0]
        entropy = -(log_softmax.exp() * log_softmax).sum(-1)
        missing = width - len(completion)
        found.append(torch.stack([nn.functional.pad(one, (0, missing)) for one in (log_probs, entropy)]))
    return torch.stack(found, dim=1)

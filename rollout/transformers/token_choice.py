"""From logits to tokens and the log-probs of the distribution that they were drawn from.

Inverse transform sampling on two levels: the draw selects a block of the vocabulary, then a token within the
block. Only the sums of blocks need a pass over the vocabulary, and it is in float32. Cumulative sums are over
integers: they are exact, whatever the order in which a GPU adds.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

_BLOCK = 512  # tokens
_ROWS_AT_ONCE = 64  # limits the size of float32 copies of the logits
_ONE = 2**60  # a probability of 1 as an integer; sums near it fit 64 bits


@dataclass(frozen=True)
class Chosen:
    """Tokens and their log-probs, in tensors of one shape."""

    tokens: Tensor  # int64
    log_probs: Tensor  # float32, nats; not finite where the logits held no distribution


def choose(logits: Tensor, temperature: float, draws: Tensor, rows: Tensor | None = None) -> Chosen:
    """Draw from softmax(logits / temperature) over the whole vocabulary; greedy at temperature 0.

    logits [R, V]; draws [B] float64, uniform in [0, 1); rows [B]: the row of logits that each draw is for;
    None: one draw a row. A token depends on its own logits and draw alone, so what shares a batch with it
    cannot change it. At temperature 0 the log-probs are those at temperature 1. Never waits for the device.
    """
    if rows is None:
        rows = torch.arange(len(logits), device=logits.device)
    scale = temperature or 1.0
    parts = [_masses(part, scale) for part in torch.split(logits, _ROWS_AT_ONCE)]
    top = torch.cat([part[0] for part in parts])[rows]
    masses = torch.cat([part[1] for part in parts])[rows]
    total = masses.sum(-1, dtype=torch.float64)
    if temperature == 0:
        tokens = logits.argmax(-1)[rows]
    else:
        block, rest = _invert(masses / total[:, None], draws)
        places = block[:, None] * _BLOCK + torch.arange(_BLOCK, device=logits.device)
        real = places < logits.shape[1]
        inside = logits[rows[:, None], places.clamp(max=logits.shape[1] - 1)].float() / scale
        weights = (inside - top[:, None]).exp() * real
        token, _ = _invert(weights / masses.gather(1, block[:, None]).double(), rest)
        tokens = places.gather(1, token[:, None])[:, 0].clamp(max=logits.shape[1] - 1)
    return Chosen(tokens, (logits[rows, tokens].float() / scale - top - total.log()).float())


def _masses(logits: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Each row's largest of logits / scale [R], and block sums [R, N] of exp(logits / scale - largest)."""
    scaled = logits.float() / scale
    top = scaled.amax(-1, keepdim=True)
    weights = pad(scaled.sub_(top).exp_(), (0, -logits.shape[1] % _BLOCK))
    return top[:, 0], weights.view(len(logits), -1, _BLOCK).sum(-1)


def _invert(weights: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """The first place where the cumulative weight exceeds the draw's share of the total: its weight isn't 0.
    Then how far into that place's weight the draw reaches, as a fraction of it.

    weights [B, N] float64 with a sum near 1; draws [B].
    """
    parts = (weights * _ONE).long()
    ends = parts.cumsum(-1)
    target = torch.minimum((draws * ends[:, -1]).long(), ends[:, -1] - 1)[:, None]
    place = (ends <= target).sum(-1, keepdim=True).clamp(max=weights.shape[1] - 1)
    size = parts.gather(1, place)
    into = target - (ends.gather(1, place) - size)
    return place[:, 0], (into.double() / size)[:, 0]

"""The sampling loop: rows grow until they end. How a model makes their next tokens is left to a decoder."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Protocol

import torch
from torch import Tensor

from rollout.counting import Finished, nobody
from rollout.engine import CancelledError, EngineError
from rollout.transformers.stopping import Stopping
from rollout.transformers.token_choice import Chosen


class Decoder(Protocol):
    """Completions that grow together, one per row.

    stride: most tokens that one call of `advance` makes. A row that ends within them wastes the rest.
    fullness: rows that have ended are dropped once no more than this share of the rows goes on.
    """

    stride: int
    fullness: float

    def advance(self, draws: Tensor) -> Chosen:
        """The next tokens [B, k] of each row, drawn by draws [B, k] (k <= stride)."""

    def keep(self, kept: Sequence[int]) -> None:
        """Drop all rows but these."""


@dataclass
class Sampled:
    """One sampled completion."""

    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    stopped: bool = False


@torch.inference_mode()
def sample_batch(
    decoder: Decoder, draws: Tensor, stopping: Stopping, cancelled: Event, finished: Finished = nobody
) -> list[Sampled]:
    """A completion for each row of a new decoder.

    draws [B, max_new_tokens] float64 in [0, 1): all the randomness there is. Raises CancelledError within a
    stride of `cancelled` being set, and EngineError (not_finite). `finished` is told of rows that end.
    """
    results = [Sampled() for _ in range(len(draws))]
    rows = list(range(len(draws)))  # which result each of the decoder's rows belongs to
    told = 0  # how many have ended
    for start in range(0, draws.shape[1], decoder.stride):
        if cancelled.is_set():
            raise CancelledError
        chosen = decoder.advance(draws[rows, start : start + decoder.stride])
        tokens, log_probs = chosen.tokens.tolist(), chosen.log_probs.tolist()
        for row, new, new_log_probs in zip(rows, tokens, log_probs, strict=True):
            if not results[row].stopped:
                _extend(results[row], new, new_log_probs, stopping)
        ended = sum(result.stopped for result in results)
        finished(ended - told)
        told = ended
        going = [place for place, row in enumerate(rows) if not results[row].stopped]
        if not going:
            break
        if len(going) <= decoder.fullness * len(rows) and len(going) < len(rows):
            decoder.keep(going)
            rows = [rows[place] for place in going]
    finished(len(results) - told)
    return results


def _extend(result: Sampled, tokens: list[int], log_probs: list[float], stopping: Stopping) -> None:
    """Append the tokens up to the completion's end. Raises EngineError (not_finite)."""
    if not all(map(math.isfinite, log_probs)):
        raise EngineError(
            500,
            "not_finite",
            "the model's logits are not finite: its weights have diverged",
            remedy="Lower optimizer.learning_rate or optimizer.max_grad_norm, and start from a checkpoint.",
        )
    seen = len(result.token_ids)
    result.token_ids += tokens
    if (size := stopping.end(result.token_ids, seen)) is not None:
        result.stopped = True
        del result.token_ids[size:]
    result.log_probs += log_probs[: len(result.token_ids) - seen]

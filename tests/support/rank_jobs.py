"""What tests have ranks do (tests/support/rank_crew.py)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from powermean.contracts.algorithms import AlgorithmSpec
from powermean.contracts.models import LoraSpec
from tests.support.learners import weights
from tests.support.update_records import Graded, a_learner, records_of
from trainer.learner.leading import Following
from trainer.learner.learner import Learner
from trainer.ranks.exchange import END, Ranks, follow


@contextmanager
def float64() -> Iterator[None]:
    """What a batch holds for the updates is of the default type."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def updates(
    ranks: Ranks, of: AlgorithmSpec, given: Graded, tokens: int, lora: LoraSpec | None = None
) -> dict[str, Tensor]:
    """Three updates of a batch: rank 0's records, or the weights of another rank."""
    with float64():
        one = a_learner(of, tokens, by_tree=True, lora=lora)
        return _led(ranks, one, given)


def _led(ranks: Ranks, one: Learner, given: Graded) -> dict[str, Tensor]:
    one.ranks = ranks
    if not ranks.world.leads:
        follow(ranks, Following(one).duties)
        return {"weights": weights(one)}
    found = records_of(one, given)
    ranks.tell(END)
    return found

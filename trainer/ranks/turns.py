"""Ranks of a node load whole models in turns, where its host has no room for all of them at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil

from trainer.ranks.exchange import Ranks

SHARE = 0.8  # of the host's free memory, for what is loaded at the same time


def turns(local_size: int, needed: int, free: int | None) -> int:
    """In how many turns the ranks of a node load, each `needed` bytes, with `free` ones (None: unknown).

    One at a time is the least: a host that can't hold one copy can't be helped by waiting.
    """
    if free is None:
        return 1
    return ceil(local_size / max(1, int(SHARE * free // max(1, needed))))


@contextmanager
def my_turn(ranks: Ranks, of: int) -> Iterator[None]:
    """This rank's turn, one of so many. All ranks must come here, with the same number."""
    mine = ranks.world.local_rank % of
    for _ in range(mine):
        ranks.wait_for_all()
    yield
    for _ in range(of - 1 - mine):
        ranks.wait_for_all()

"""Seeds for everything random, derived from the job's seed and a purpose, so streams are independent."""

import hashlib
from typing import Literal

import torch

Purpose = Literal["rollout", "minibatch", "evaluation", "probe", "rank"]


def derive_seed(seed: int, purpose: Purpose, *numbers: int) -> int:
    """A seed in [0, 2^63) that depends on all arguments."""
    text = ":".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: Purpose, *numbers: int) -> torch.Generator:
    """A CPU generator seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *numbers))

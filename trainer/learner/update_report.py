"""What one optimiser step saw of its minibatch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from powermean.contracts.trajectories import TrajectoryUpdate

_OTHERS = ("update", "epoch", "minibatch", "p", "p_reason")
UPDATE_FIELDS = tuple(name for name in TrajectoryUpdate.model_fields if name not in _OTHERS)
RECORDED = (*UPDATE_FIELDS, "p", "overflow_tokens")  # of the objective's numbers per trajectory


@dataclass(frozen=True)
class SeenTokens:
    """A micro-batch as its objective saw it; only rows that are recorded."""

    rows: Tensor  # [n] int64: rows in the rollout batch
    log_ratio: Tensor  # [n, T] float32
    weight: Tensor  # [n, T] float32
    clipped: Tensor  # [n, T] bool


@dataclass(frozen=True)
class UpdateReport:
    """What one optimiser step saw. `values` hold [N], NaN for trajectories that were not in the minibatch."""

    update: int
    rows: Tensor  # [n] int64: trajectories of the minibatch
    values: Mapping[str, Tensor]  # name -> [N] float64
    loss: float
    grad_norm: float | None  # None: no trajectory had an advantage, so no optimiser step was taken
    learning_rate: float
    distance_to_grpo: float | None
    kl: float | None
    beta: float | None  # that the update was taken with
    trajectories: int  # with tokens, in the minibatch
    tokens_trained: int  # completion tokens of the minibatch
    tokens: Sequence[SeenTokens] = ()  # of the trajectories that are recorded token by token

"""Ranks that hold whole models must hold the same one, or each would train another."""

import torch
from torch import nn

from trainer.failures import TrainingError
from trainer.ranks.exchange import Ranks
from trainer.ranks.gradients import is_sharded


@torch.no_grad()
def refuse_different_weights(ranks: Ranks, model: nn.Module) -> None:
    """Raises TrainingError (models_differ), by sums over each weight. Parts of a sharded model do differ."""
    if ranks.world.alone or is_sharded(model):
        return
    weights = list(model.parameters())
    sums = torch.stack([weight.sum(dtype=torch.float64).cpu() for weight in weights])
    if not torch.equal(ranks.largest(sums), -ranks.largest(-sums)):
        raise TrainingError(
            "models_differ",
            "the ranks have loaded different weights for the same model",
            path="model",
            remedy="give all nodes the same model folder (POWERMEAN_MODEL_ROOTS)",
        )

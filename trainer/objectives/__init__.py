"""Policy objectives: pure functions over tensors (symbols: docs/notation.md, algorithm: docs/pmpo.md)."""

from trainer.objectives.catalogue import build_algorithm
from trainer.objectives.kernel import Algorithm, Distance, LossOutput, batch_facts, finite_rows
from trainer.objectives.reference_kl import k3, kl_penalty
from trainer.objectives.sampler_mismatch import Mismatch, mismatch, raw_weights, sampling_kl, truncated
from trainer.objectives.surrogates import BatchFacts

__all__ = [
    "Algorithm",
    "BatchFacts",
    "Distance",
    "LossOutput",
    "Mismatch",
    "batch_facts",
    "build_algorithm",
    "finite_rows",
    "k3",
    "kl_penalty",
    "mismatch",
    "raw_weights",
    "sampling_kl",
    "truncated",
]

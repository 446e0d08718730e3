"""Random and adversarial micro-batches for the objectives' laws, and their textbook formulas in float64."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import TypeAdapter
from torch import Tensor

from powermean.contracts.algorithms import AlgorithmSpec
from trainer.objectives import Algorithm, BatchFacts, LossOutput, batch_facts, build_algorithm


@dataclass(frozen=True)
class Batch:
    x: Tensor  # [B, T] float64
    mask: Tensor  # [B, T] bool
    advantages: Tensor  # [B] float64

    @property
    def facts(self) -> BatchFacts:
        return batch_facts(self.mask, reward_std=0.5)


def log_ratios(largest: float) -> st.SearchStrategy[float]:
    """Log-ratios with clusters of equal values: ties and spikes are where things go wrong."""
    return st.one_of(
        st.floats(-largest, largest, allow_nan=False, allow_subnormal=False),
        st.sampled_from([0.0, -largest, largest, 0.01, -0.01]),
    )


@st.composite
def batches(
    draw: st.DrawFn, largest: float = 2.0, rows: tuple[int, int] = (1, 5), tokens: tuple[int, int] = (1, 9)
) -> Batch:
    """B x T log-ratios within +-largest, any mask with at least one token, advantages of both signs and 0."""
    shape = (draw(st.integers(*rows)), draw(st.integers(*tokens)))
    x = draw(hnp.arrays(np.float64, shape, elements=log_ratios(largest)))
    mask = draw(hnp.arrays(np.bool_, shape, elements=st.booleans()))
    mask[0, 0] = True
    signs = st.sampled_from([-1.5, -0.5, 0.0, 0.5, 1.0, 2.0])
    advantages = draw(hnp.arrays(np.float64, shape[0], elements=signs))
    return Batch(torch.from_numpy(x), torch.from_numpy(mask), torch.from_numpy(advantages))


def away_from_kinks(batch: Batch, *bounds: float, gap: float = 1e-3) -> Batch:
    """No log-ratio within `gap` of a bound, where the loss has no derivative."""
    x = batch.x.clone()
    for bound in bounds:
        x = torch.where((x - bound).abs() < gap, bound + 2 * gap, x)
    return replace(batch, x=x)


def algorithm(name: str, **fields: object) -> Algorithm:
    """With its defaults, and the given fields; `power_mean` has no default p."""
    if name == "power_mean":
        fields = {"p": -0.7} | fields
    return build_algorithm(TypeAdapter(AlgorithmSpec).validate_python({"name": name} | fields))


def run(built: Algorithm, batch: Batch, **more: object) -> tuple[LossOutput, Tensor]:
    """The loss of the whole batch and its gradient [B, T]."""
    leaf = batch.x.clone().requires_grad_()
    settings = {"progress": 0.3, "mean_reward": 0.4} | more
    out = built.loss(leaf, batch.mask, batch.advantages, batch.facts, **settings)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(out.loss, leaf)
    return out, gradient


def same(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def clipped(batch: Batch, low: float, high: float) -> Tensor:
    """min(x, high) for A >= 0, max(x, -low) for A < 0: a differentiable textbook version, padding 0."""
    held = batch.x.clamp(-20, 20)
    one_side = torch.where(
        (batch.advantages >= 0)[:, None],
        torch.minimum(held, torch.tensor(high, dtype=held.dtype)),
        torch.maximum(held, torch.tensor(-low, dtype=held.dtype)),
    )
    return torch.where(batch.mask, one_side, 0.0)


def textbook_log_mean(x: Tensor, mask: Tensor, p: Tensor) -> Tensor:
    """log M_p [B] by the definition (log-sum-exp; plain mean at p = 0), for trajectories with tokens."""
    tokens = mask.sum(-1).double()
    geometric = (x * mask).sum(-1) / tokens
    safe = torch.where(p == 0, 1.0, p)
    lse = torch.logsumexp((safe[:, None] * x).masked_fill(~mask, -torch.inf), dim=-1)
    return torch.where(p == 0, geometric, (lse - tokens.log()) / safe)


def textbook(batch: Batch, p: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """-(1/B) sum A M_p of the clipped ratios and its gradient, by the definition and autograd."""
    leaf = batch.x.clone().requires_grad_()
    some = batch.mask.any(-1)
    ratios = clipped(replace(batch, x=leaf), low, high)
    means = textbook_log_mean(ratios[some], batch.mask[some], p[some]).exp()
    loss = -(batch.advantages[some] * means).sum() / some.sum()
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss, gradient


def long_log_mean(x: np.ndarray, p: float) -> np.longdouble:
    """log M_p of one trajectory in extended precision; about the mean, since a small p cancels digits."""
    wide = x.astype(np.longdouble)
    if p == 0 or abs(p) < 1e-15:
        return wide.mean()
    scaled = (wide - wide.mean()) * np.longdouble(p)
    top = max(scaled.max(), 0)
    if top > 30:
        return wide.mean() + (top + np.log(np.exp(scaled - top).mean())) / np.longdouble(p)
    return wide.mean() + np.log1p(np.expm1(scaled).mean()) / np.longdouble(p)


def long_weights(x: np.ndarray, p: float) -> np.ndarray:
    """W(p) of one trajectory in extended precision."""
    scaled = x.astype(np.longdouble) * np.longdouble(p)
    terms = np.exp(scaled - scaled.max())
    return terms / terms.sum()


def long_ess(x: np.ndarray, p: float) -> np.longdouble:
    """N(p) of one trajectory in extended precision."""
    weights = long_weights(x, p)
    return 1 / (len(x) * (weights**2).sum())

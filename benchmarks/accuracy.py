"""Worst errors of log M_p, W, N and p from float32 and bfloat16 log-ratios: `python benchmarks/accuracy.py`.

Each family of trajectories is worked by the product's functions and, from the same numbers, by the
definitions in NumPy's extended precision (p by bisection). bfloat16 log-ratios are judged twice: against
themselves, which is what the kernel adds, and against the numbers they were rounded from.

    log M_p   absolute error
    W         largest error of a token weight, as a share of the trajectory's largest weight
    N         absolute error
    N(p)-N*   miss of the target at the solved p, as a share of 1 - N(1)
    p         absolute error of the solved exponent, the clip fraction given

The bounds here are what docs/pmpo.md states and tests/trainer/objectives/test_accuracy.py holds.
"""

import argparse
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.objectives.effective_sample_size import evaluate, interpolated_deficit, solve_exponent
from trainer.objectives.power_mean import centre, power_mean

Wide = NDArray[Any]  # of np.longdouble, which NumPy's annotations lose in arithmetic

ROWS = 16
WIDTHS = (2, 8, 512, 4096)
BISECTIONS = 50
ORDINARY = (0.01, 0.1, 0.4, 1.0)  # standard deviations of log-ratios as training makes them
ROUNDING = "rounding to bfloat16"  # bfloat16 log-ratios against the numbers that they were rounded from


@dataclass(frozen=True)
class Errors:
    """Worst errors over some trajectories; see the module's docstring."""

    log_mean: float
    weights: float
    ess: float
    target: float
    p: float

    def __or__(self, other: "Errors") -> "Errors":
        return Errors(*map(max, astuple(self), astuple(other)))


# Inputs of float32 or bfloat16, against the definitions on the same numbers.
BOUNDS = Errors(log_mean=3e-6, weights=3e-6, ess=1e-6, target=3e-6, p=2e-5)
# The same without single ratios that are e^20 away from all others: where training happens.
ORDINARY_BOUNDS = Errors(log_mean=1e-6, weights=1e-6, ess=3e-7, target=1e-6, p=1e-6)


def families(width: int, seed: int) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Log-ratios [ROWS, width] within +-20: as training makes them, and as bad as they can be."""
    generator = np.random.default_rng((seed, width))
    shape = (ROWS, width)
    for spread in ORDINARY:
        yield f"normal, s = {spread}", generator.normal(scale=spread, size=shape)
    yield "heavy tails", generator.standard_t(2, size=shape)
    yield "uniform", generator.uniform(-20, 20, size=shape)
    yield "two clusters", generator.choice([-20.0, 20.0], size=shape)
    yield "near -15", -15 + generator.normal(scale=1e-2, size=shape)
    for spike in (-20.0, 20.0):
        lone = generator.normal(scale=0.01, size=shape)
        lone[:, 0] = spike
        yield f"one at {spike:.0f}", lone


def definition(x: Wide, p: Wide) -> tuple[Wide, Wide, Wide]:
    """log M_p [R], W [R, T] and N [R] as defined, for p > 0."""
    mean = x.mean(-1)
    scaled = (x - mean[:, None]) * p[:, None]
    top = scaled.max(-1)
    terms = np.exp(scaled - top[:, None])
    weights = terms / terms.sum(-1, keepdims=True)
    ess = 1 / (x.shape[-1] * (weights**2).sum(-1))
    return mean + (top + np.log(terms.mean(-1))) / p, weights, ess


def root(x: Wide, target: Wide) -> Wide:
    """p in [0, 1] where N(p) is the target, by bisection."""
    low, high = np.zeros_like(target), np.ones_like(target)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        too_even = definition(x, middle)[2] > target
        low, high = np.where(too_even, middle, low), np.where(too_even, high, middle)
    root_: Wide = (low + high) / 2
    return root_


def errors(
    values: torch.Tensor, truth: Wide, p: NDArray[np.float32], fractions: NDArray[np.float64]
) -> Errors:
    """Errors of the product on `values` [R, T] (float32 or bfloat16) with respect to `truth` [R, T]."""
    x = values.clamp(-20, 20).float()  # as the kernel widens it
    centred = centre(x, torch.ones_like(x), torch.full((len(x),), float(x.shape[-1])))
    found = power_mean(centred, torch.from_numpy(p).double(), largest_p=1.0)
    log_mean, weights, ess = definition(truth, p.astype(np.longdouble))

    z, tokens, f = centred.z.double(), centred.tokens.double(), torch.from_numpy(fractions)
    deficit = interpolated_deficit(f, evaluate(z, tokens, torch.ones_like(tokens)).deficit)
    solved = solve_exponent(z, tokens, deficit, (1 - f).sqrt()).numpy().astype(np.longdouble)
    deficit_at_1 = 1 - definition(truth, np.ones_like(log_mean))[2]
    target = 1 - (1 - fractions) * deficit_at_1
    miss = np.abs(definition(truth, solved)[2] - target) / deficit_at_1
    largest = weights.max(-1, keepdims=True)
    return Errors(
        log_mean=float(np.abs(found.log_mean.numpy() - log_mean).max()),
        weights=float((np.abs(found.weights.numpy() - weights) / largest).max()),
        ess=float(np.abs(found.ess.numpy() - ess).max()),
        target=float(miss.max()),
        p=float(np.abs(solved - root(truth, target)).max()),
    )


def measure(width: int, seed: int) -> dict[str, dict[str, Errors]]:
    """family -> kind of input -> errors. bfloat16 is judged against itself and against the unrounded."""
    generator = np.random.default_rng((seed, width, 1))
    found: dict[str, dict[str, Errors]] = {}
    for family, drawn in families(width, seed):
        exact = np.clip(drawn, -20, 20)
        p = generator.uniform(0, 1, size=ROWS).astype(np.float32)
        p[:4] = 1.0, 1e-1, 1e-3, 1e-6
        fractions = generator.uniform(0.01, 0.99, size=ROWS)
        narrow = torch.from_numpy(exact).float()
        coarse = narrow.bfloat16()
        kinds = {
            "float32": (narrow, narrow.double().numpy()),
            "bfloat16": (coarse, coarse.double().numpy()),
            ROUNDING: (coarse, exact),
        }
        found[family] = {}
        for kind, (values, truth) in kinds.items():
            some = (values.amax(-1) > values.amin(-1)).numpy()  # rounding may leave equal ratios: no p then
            if some.any():
                wide = truth[some].astype(np.longdouble)
                found[family][kind] = errors(values[some], wide, p[some], fractions[some])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{'family':18} {'T':>5} {'input':22} {'log M_p':>9} {'W':>9} {'N':>9} {'N(p)-N*':>9} {'p':>9}")
    worst: dict[tuple[str, str], Errors] = {}
    for width in WIDTHS:
        for family, kinds in measure(width, options.seed).items():
            for kind, found in kinds.items():
                print(f"{family:18} {width:5} {kind:22} {numbers(found)}", flush=True)
                for group in ("worst", "worst of normal")[: 1 + family.startswith("normal")]:
                    worst[group, kind] = worst.get((group, kind), found) | found
    for (group, kind), found in sorted(worst.items()):
        print(f"{group:18} {'':5} {kind:22} {numbers(found)}")
    print(f"{'bound, normal':18} {'':5} {'float32, bfloat16':22} {numbers(ORDINARY_BOUNDS)}")
    print(f"{'bound':18} {'':5} {'float32, bfloat16':22} {numbers(BOUNDS)}")


def numbers(found: Errors) -> str:
    """The five errors, in the table's order."""
    return " ".join(f"{getattr(found, field.name):9.1e}" for field in fields(found))


if __name__ == "__main__":
    main()

"""What PMPO's exponent costs: `python benchmarks/objective.py`.

The isolated loss, forward and backward, of PMPO against (a) the same loss with p fixed at 1, recording the
same numbers, (b) a bare p = 1 loss by autograd that records nothing, and the solver against (c) SciPy's
brentq in a loop over trajectories. Every trajectory has clipped tokens, so every one is solved: the worst
case. Rounds are interleaved and the median is taken; ratios hold better than times on a busy machine. The
last column is the solver's accuracy there: the worst |N(p) - N*| / (1 - N(1)), N by definition in float64.
benchmarks/update_step.py measures the same cost inside a real update, benchmarks/accuracy.py all errors.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from powermean.contracts.algorithms import Pmpo, PowerMean
from trainer.objectives import Algorithm, BatchFacts, batch_facts, build_algorithm

SHAPES = ((32, 8), (64, 512), (64, 4096), (512, 512), (512, 4096))  # the first is the demo's micro-batch
CLIP = 0.4
SAMPLE = 8  # trajectories that brentq solves, its time scaled up to the batch; the accuracy is theirs too


def data(rows: int, width: int, spread: float, device: str) -> tuple[Tensor, Tensor, Tensor, BatchFacts]:
    generator = torch.Generator().manual_seed(rows + width)
    x = spread * torch.randn(rows, width, generator=generator)
    x[:, 0], x[:, 1] = 2 * CLIP, -2 * CLIP  # something binds in every trajectory
    lengths = torch.randint(width // 2, width + 1, (rows, 1), generator=generator)
    mask = torch.arange(width)[None] < lengths
    advantages = torch.randn(rows, generator=generator, dtype=torch.float64)
    return x.to(device), mask.to(device), advantages.to(device), batch_facts(mask)


def ours(algorithm: Algorithm, rows: int, width: int, spread: float, device: str) -> Callable[[], None]:
    x, mask, advantages, facts = data(rows, width, spread, device)
    leaf = x.requires_grad_()

    def once() -> None:
        leaf.grad = None
        algorithm.loss(leaf, mask, advantages, facts).loss.backward()  # type: ignore[no-untyped-call]

    return once


def bare(rows: int, width: int, spread: float, device: str) -> Callable[[], None]:
    x, mask, advantages, facts = data(rows, width, spread, device)
    leaf, tokens, a = x.requires_grad_(), mask.sum(-1), advantages.float()[:, None]

    def once() -> None:
        leaf.grad = None
        ratio = torch.exp(leaf)
        capped = torch.clamp(ratio, float(np.exp(-CLIP)), float(np.exp(CLIP)))
        per_token = -torch.min(ratio * a, capped * a) * mask
        ((per_token.sum(-1) / tokens).sum() / facts.trajectories).backward()  # type: ignore[no-untyped-call]

    return once


def clipped_tokens(rows: int, width: int, spread: float) -> list[tuple[np.ndarray, float]]:
    """x~ and clip fraction of the first trajectories, in NumPy float64."""
    x, mask, advantages, _ = data(rows, width, spread, "cpu")
    cases = []
    for row in range(min(SAMPLE, rows)):
        tokens, positive = x[row][mask[row]].double().numpy(), advantages[row] >= 0
        clipped = np.minimum(tokens, CLIP) if positive else np.maximum(tokens, -CLIP)
        cases.append((clipped, float((clipped != tokens).mean())))
    return cases


def ess(p: float, values: np.ndarray) -> float:
    """N(p) of one trajectory by its definition."""
    weights = np.exp(p * (values - values.max()))
    return float(weights.sum() ** 2 / (weights**2).sum() / len(values))


def worst_miss(algorithm: Algorithm, rows: int, width: int, spread: float, device: str) -> float:
    """Largest |N(p) - N*| / (1 - N(1)) at the batched solver's p."""
    x, mask, advantages, facts = data(rows, width, spread, device)
    solved = algorithm.loss(x, mask, advantages, facts).trajectories["p"].tolist()
    misses = []
    for p, (values, fraction) in zip(solved, clipped_tokens(rows, width, spread), strict=False):
        at_1 = ess(1.0, values)
        misses.append(abs(ess(p, values) - at_1 - fraction * (1 - at_1)) / (1 - at_1))
    return max(misses)


def one_by_one(rows: int, width: int, spread: float) -> Callable[[], None]:
    """brentq on N(p) = N*, trajectory by trajectory."""
    cases = clipped_tokens(rows, width, spread)

    def once() -> None:
        for values, fraction in cases:
            at_1 = ess(1.0, values)
            target = at_1 + fraction * (1 - at_1)
            brentq(lambda p, v=values, n=target: ess(p, v) - n, 0.0, 1.0, xtol=1e-9)

    return once


def medians(calls: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, float]:
    """Seconds of each (of CPU time on a CPU), interleaved so that a busy moment hits all."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = clock()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first round warms up
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--spread", type=float, default=0.3, help="standard deviation of the log-ratios")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-loop", action="store_true", help="leave the brentq loop out")
    options = parser.parse_args()
    pmpo, fixed = build_algorithm(Pmpo()), build_algorithm(PowerMean(p=1.0))
    print(
        f"{options.device}, float32, {torch.get_num_threads()} thread(s), log-ratio spread {options.spread}"
    )
    print(
        "   B     T   p = 1 ms   pmpo ms   pmpo / p=1   pmpo / bare   (p=1 + brentq loop) / pmpo   worst miss"
    )
    for rows, width in SHAPES:
        shape = (rows, width, options.spread)
        calls = {
            "fixed": ours(fixed, *shape, options.device),
            "pmpo": ours(pmpo, *shape, options.device),
            "bare": bare(*shape, options.device),
        }
        found = medians(calls, options.rounds, options.device)
        line = f"{rows:4d} {width:5d} {1e3 * found['fixed']:10.2f} {1e3 * found['pmpo']:9.2f}"
        line += f" {found['pmpo'] / found['fixed']:12.2f} {found['pmpo'] / found['bare']:13.2f}"
        against_loop = "-"
        if not options.no_loop:
            loop = medians({"loop": one_by_one(*shape)}, 3, "cpu")["loop"] * rows / min(SAMPLE, rows)
            against_loop = f"{(found['fixed'] + loop) / found['pmpo']:.1f}"
        print(f"{line} {against_loop:>28} {worst_miss(pmpo, *shape, options.device):12.1e}", flush=True)


if __name__ == "__main__":
    main()

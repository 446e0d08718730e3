"""Draws the figures of docs/pmpo.md with the trainer's own functions: `python docs/figures.py`.

All trajectories are simulated from fixed seeds: log-ratios are normal, which real ones are only roughly.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from powermean.contracts.algorithms import AlgorithmSpec, Pmpo, PowerMean
from trainer.objectives import LossOutput, batch_facts, build_algorithm

FOLDER = Path(__file__).parent / "images"
CLIP = 0.4  # PMPO's range in log space
TOKENS = 512
# Okabe and Ito's colours: told apart by people of every colour vision
BLUE, ORANGE, GREEN, RED, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#666666"
STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "savefig.dpi": 120,
    "font.size": 10,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def normal(rows: int, spread: Tensor | float, seed: int, shift: Tensor | float = 0.0) -> Tensor:
    """Log-ratios [rows, TOKENS], float64."""
    generator = torch.Generator().manual_seed(seed)
    return shift + spread * torch.randn(rows, TOKENS, generator=generator, dtype=torch.float64)


def loss(spec: AlgorithmSpec, x: Tensor, advantages: Tensor) -> LossOutput:
    """One micro-batch without padding."""
    mask = torch.ones_like(x, dtype=torch.bool)
    return build_algorithm(spec).loss(x, mask, advantages, batch_facts(mask))


def distance(spec: AlgorithmSpec, x: Tensor, advantages: Tensor) -> float:
    """|g_p - g_1| / |g_0 - g_1| of a batch."""
    value = loss(spec, x, advantages).distance.value
    assert value is not None
    return value


def ess_and_target() -> Figure:
    """N(p) of three trajectories, and the p at which each meets its target."""
    figure, axes = panels(1, width=7.0)
    exponents, lowest = torch.linspace(0, 1, 101).tolist(), 0.7
    one = torch.ones(1, dtype=torch.float64)
    for spread, colour in ((0.3, BLUE), (0.6, GREEN), (1.0, RED)):
        x = normal(1, spread, seed=3)
        curve = [loss(PowerMean(p=p), x, one).trajectories["ess"].item() for p in exponents]
        solved = loss(Pmpo(), x, one).trajectories
        p, target, f = (solved[name].item() for name in ("p", "ess_target", "clip_fraction"))
        axes[0].plot(exponents, curve, color=colour, label=f"spread {spread}: f = {f:.0%}, so p = {p:.2f}")
        axes[0].plot([0, p, p], [target, target, lowest], color=colour, linestyle=":", linewidth=1.2)
        axes[0].plot(p, target, "o", color=colour)
        axes[0].annotate("N*", (0, target), (4, 3), textcoords="offset points", color=colour, fontsize=9)
    axes[0].set(
        xlabel="exponent p", ylabel="N(p), effective sample size / T", xlim=(0, 1.01), ylim=(lowest, 1.02)
    )
    axes[0].legend(loc="lower left", bbox_to_anchor=(0.0, 0.02))
    return figure


def exponent_rules() -> Figure:
    """p against the clip fraction, by each map to the target."""
    figure, axes = panels(1, width=7.0)
    rows = 240
    generator = torch.Generator().manual_seed(5)
    spread = 0.1 + 1.1 * torch.rand(rows, 1, generator=generator, dtype=torch.float64)
    shift = -0.9 + 1.8 * torch.rand(rows, 1, generator=generator, dtype=torch.float64)
    x = normal(rows, spread, seed=6, shift=shift)
    a = torch.ones(rows, dtype=torch.float64)
    rules = (
        ("interpolate, f1 = 1", Pmpo(), BLUE, "o"),
        ("interpolate, f1 = 0.25", Pmpo(clip_fraction_full=0.25), GREEN, "s"),
        ("interpolate, f1 = 0.1", Pmpo(clip_fraction_full=0.1), ORANGE, "^"),
        ("absolute (control)", Pmpo(ess_target="absolute"), RED, "x"),
    )
    for label, spec, colour, marker in rules:
        seen = loss(spec, x, a).trajectories
        f, p = seen["clip_fraction"].numpy(), seen["p"].numpy()
        axes[0].plot(f, p, marker, color=colour, markersize=3.5, alpha=0.8, label=label, linestyle="none")
    f = np.linspace(0, 1, 200)
    axes[0].plot(f, np.sqrt(1 - f), color=GREY, linewidth=1.2, label="square_root (control)")
    axes[0].set(
        xlabel="clip fraction f of the trajectory", ylabel="exponent p", xlim=(0, 1.0), ylim=(-0.03, 1.05)
    )
    axes[0].legend(loc="center right", bbox_to_anchor=(1.01, 0.77))
    return figure


def token_weights() -> Figure:
    """T W_t against the log-ratio, by p and by the advantage's sign."""
    figure, axes = panels(2, width=8.4)
    x = torch.linspace(-1, 1, 401, dtype=torch.float64)[None]
    for axis, sign in zip(axes, (1.0, -1.0), strict=True):
        a = torch.tensor([sign], dtype=torch.float64)
        for p, colour in ((1.0, BLUE), (0.5, GREEN), (0.0, ORANGE), (-1.0, RED)):
            seen = loss(PowerMean(p=p), x, a)
            weight = x.shape[-1] * seen.token_weights[0]
            passes = seen.passes[0] == 1
            axis.plot(x[0][passes], weight[passes], color=colour, label=f"p = {p:g}")
            axis.plot(x[0][~passes], weight[~passes], color=colour, linestyle=":")
        edge, side = (CLIP, "right") if sign > 0 else (-CLIP, "left")
        axis.axvspan(edge, sign, color="#f0f0f0", zorder=0)
        axis.text(
            edge + 0.3 * sign, 2.35, "clipped:\nno gradient", ha="center", va="top", fontsize=9, color=GREY
        )
        kept = "min(x, 0.4)" if side == "right" else "max(x, -0.4)"
        axis.set(title=f"A {'> 0' if sign > 0 else '< 0'}: x~ = {kept}", xlabel="log-ratio x of the token")
        axis.set(xlim=(-1, 1), ylim=(0, 2.4), xticks=(-1, -CLIP, 0, CLIP, 1))
    axes[0].set_ylabel("token weight, T W(p)")
    axes[0].legend(loc="upper left", bbox_to_anchor=(0.36, 1.0))
    return figure


def distance_to_grpo() -> Figure:
    """How far the batch's gradient is from GRPO's, by a fixed p and by PMPO's rules."""
    figure, axes = panels(2, width=8.4)
    rows = 64
    a = torch.where(torch.arange(rows) % 2 == 0, 1.0, -1.0).double()
    exponents = np.linspace(0, 1, 41)
    for spread, colour in ((0.1, BLUE), (0.4, GREEN), (1.0, RED)):
        x = normal(rows, spread, seed=8)
        curve = [distance(PowerMean(p=p), x, a) for p in exponents]
        axes[0].plot(exponents, curve, color=colour, label=f"spread {spread}")
    axes[0].set(title="the same p for all", xlabel="exponent p", ylabel="d, distance to GRPO")
    axes[0].legend(loc="upper right")
    rules = ((1.0, BLUE, "o"), (0.25, GREEN, "s"), (0.1, ORANGE, "^"))
    for full, colour, marker in rules:
        points = []
        for spread in (0.15, 0.18, 0.21, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0):
            x = normal(rows, spread, seed=8)
            spec = Pmpo(clip_fraction_full=full)
            clipped = loss(spec, x, a).trajectories["clip_fraction"].mean().item()
            points.append((clipped, distance(spec, x, a)))
        axes[1].plot(
            *zip(*points, strict=True), color=colour, marker=marker, markersize=4, label=f"f1 = {full:g}"
        )
    axes[1].set(title="PMPO (interpolate)", xlabel="mean clip fraction of the batch")
    axes[1].legend(loc="center right", bbox_to_anchor=(1.0, 0.68))
    for axis in axes:
        axis.set(ylim=(-0.03, 1.05))
    return figure


def panels(count: int, width: float) -> tuple[Figure, list[Axes]]:
    """An empty figure with panels side by side."""
    figure = Figure(figsize=(width, 3.7), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, count)))


FIGURES: dict[str, Callable[[], Figure]] = {
    "pmpo-ess": ess_and_target,
    "pmpo-exponent": exponent_rules,
    "pmpo-weights": token_weights,
    "pmpo-distance": distance_to_grpo,
}


def main() -> None:
    with mpl.rc_context(STYLE):
        for name, draw in FIGURES.items():
            path = FOLDER / f"{name}.png"
            draw().savefig(path, metadata={"Software": None})
            print(f"{path.relative_to(FOLDER.parent.parent)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()

"""The plot of docs/results.md: reward curves above, differences to GRPO with their intervals below."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # before pyplot: there may be no screen
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

Triple = tuple[float, float, float]  # mean, low, high
SMOOTHED = 3  # steps of the running mean
HIGHLIT = {"GRPO": "#222222", "GMPO": "#d95f02", "PMPO, f1 = 0.25": "#1b6ca8", "HölderPO": "#7a3e9d"}
AREA, REWARD = "#1b6ca8", "#d95f02"


@dataclass(frozen=True)
class Row:
    """An objective's difference to GRPO."""

    title: str
    area: Triple
    reward: Triple


@dataclass(frozen=True)
class Panel:
    """One condition: the mean reward curve of each objective, and the differences."""

    title: str
    curves: Mapping[str, np.ndarray]
    rows: Sequence[Row]


def draw(panels: Sequence[Panel], path: Path) -> None:
    """One column a condition."""
    figure, axes = plt.subplots(2, len(panels), figsize=(4.4 * len(panels), 7.4), sharex="row", sharey="row")
    for column, panel in enumerate(panels):
        _curves(axes[0][column], panel)
        _differences(axes[1][column], panel)
    axes[0][0].set_ylabel(f"reward, mean over seeds and {SMOOTHED} steps")
    axes[0][0].legend(frameon=False, fontsize=8)
    axes[1][0].legend(frameon=False, fontsize=8, loc="upper left")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _curves(axes: Axes, panel: Panel) -> None:
    for title, curve in panel.curves.items():
        smooth = np.convolve(curve, np.full(SMOOTHED, 1 / SMOOTHED), mode="valid")
        steps = np.arange(len(smooth)) + SMOOTHED
        named = title in HIGHLIT
        color, width = HIGHLIT.get(title, "#bbbbbb"), 1.8 if named else 0.9
        axes.plot(
            steps, smooth, color=color, linewidth=width, label=title if named else None, zorder=1 + named
        )
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel("step")


def _differences(axes: Axes, panel: Panel) -> None:
    places = np.arange(len(panel.rows))[::-1]
    axes.axvline(0, color="#222222", linewidth=0.8)
    for shift, color, label, values in (
        (0.15, AREA, "area under the reward curve", [row.area for row in panel.rows]),
        (-0.15, REWARD, "held-out reward after training", [row.reward for row in panel.rows]),
    ):
        mean, low, high = np.array(values).T
        axes.errorbar(
            mean,
            places + shift,
            xerr=[mean - low, high - mean],
            fmt="o",
            color=color,
            markersize=4,
            label=label,
        )
    axes.set_yticks(places, [row.title for row in panel.rows], fontsize=8)
    axes.set_xlabel("difference to GRPO, 95 % interval")

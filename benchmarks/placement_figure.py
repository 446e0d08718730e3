"""Draws the figure of docs/placement.md from what benchmarks/placement.py has simulated."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from placement_days import HOUR, SIZES, Outcome, quantiles

COLOURS = {"first in, first out": "#666666", "plain fair share": "#e69f00", "powermean": "#0072b2"}
STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "placement",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def draw(found: dict[tuple[str, str, str], Outcome], path: Path) -> None:
    """Utilisation and Jain's index by policy, and how long jobs of each size wait, under the first load."""
    span, load, _ = next(iter(found))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.2), layout="constrained")
        shares, waits = figure.subplots(1, 2, width_ratios=(1, 1.6))
        for place, (policy, colour) in enumerate(COLOURS.items()):
            out = found[span, load, policy]
            left = 0.25 * (place - 1)
            shares.bar([left, 1 + left], [out.utilisation, out.jain], 0.22, color=colour, label=policy)
            longest = []
            for size, _ in SIZES:
                some = [wait for (gpus, _), all_ in out.waits.items() if gpus == size for wait in all_]
                longest.append(max(list(quantiles(some))[1], out.unfinished_waits.get(size, 0.0) / HOUR))
            waits.bar([n + left for n in range(len(SIZES))], longest, 0.22, color=colour)
        shares.set_xticks([0, 1], ["utilisation", "Jain's index"])
        shares.set_ylim(0, 1.25)
        shares.axhline(0.95, color="#bbbbbb", linewidth=1, linestyle=":")
        shares.legend(loc="upper left", fontsize=8, ncols=1)
        waits.set_xticks(range(len(SIZES)), [f"{size} GPU{'s' * (size > 1)}" for size, _ in SIZES])
        waits.set_ylabel("wait [h]")
        waits.set_title(f"p95 or longest still waiting ({load}, one {span})", fontsize=9)
        figure.savefig(path, format="svg", metadata={"Date": None})

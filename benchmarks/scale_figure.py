"""Draws the figure of docs/scale.md: where the time of a step goes, by GPUs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.scale_simulation import Step

COLOURS = dict(zip(Step.PARTS, ("#0072b2", "#009e73", "#e69f00", "#d55e00", "#666666"), strict=True))
STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "scale",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def draw(steps: Sequence[Step], path: Path) -> None:
    """GPU-seconds of a step by what they are for: a flat bar top is perfect scaling."""
    models = list(dict.fromkeys(step.model for step in steps))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.4), layout="constrained")
        panels = figure.subplots(1, len(models))
        for axes, model in zip(panels, models, strict=True):
            own = [step for step in steps if step.model == model]
            base = [0.0] * len(own)
            for part, colour in COLOURS.items():
                hours = [getattr(step, part) * step.gpus / 3600 for step in own]
                axes.bar(range(len(own)), hours, 0.6, base, color=colour, label=part)
                base = [low + more for low, more in zip(base, hours, strict=True)]
            axes.set_xticks(range(len(own)), [f"{step.gpus} GPUs\n{step.total:.0f} s" for step in own])
            axes.set_title(model.removeprefix("Qwen/"), fontsize=10)
            axes.set_ylabel("GPU-hours a step")
        panels[0].legend(fontsize=8, loc="upper left")
        figure.savefig(path, format="svg", metadata={"Date": None})

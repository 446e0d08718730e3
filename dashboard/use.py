"""What nodes used over the last hour: what the charts' script is told, and a table for those without it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean
from typing import Any

from powermean.contracts.api import NodeSample, NodeView

NODES_DRAWN = 9  # as many as there are colours
ROW_S = 300


@dataclass(frozen=True)
class Used:
    """Means over five minutes; None: nothing was reported of it."""

    since: datetime
    utilisation: float | None  # percent, of all GPUs
    gpu_memory_mb: float | None  # of all GPUs together
    cores: float  # of the viewer's attempts
    memory_mb: float


def script_data(nodes: Sequence[NodeView], each: str) -> dict[str, Any]:
    """For js/use.js, of the first nodes; `each`: a line for each `gpu`, or for each `node`."""
    return {
        "each": each,
        "nodes": [
            {
                "id": node.id,
                "gpus": [
                    {"uuid": gpu.uuid, "label": f"GPU {number}"}
                    for number, gpu in enumerate(sorted(node.gpus, key=lambda gpu: gpu.uuid))
                ],
            }
            for node in [node for node in nodes if node.alive][:NODES_DRAWN]
        ],
    }


def table(samples: Sequence[NodeSample]) -> list[Used]:
    """A row for each five minutes that have samples, the newest first."""
    rows: dict[int, list[NodeSample]] = {}
    for sample in samples:
        rows.setdefault(int(sample.at.timestamp()) // ROW_S, []).append(sample)
    return [
        Used(
            since=some[0].at,
            utilisation=_mean([g.utilisation for one in some for g in one.gpus]),
            gpu_memory_mb=_mean([_sum([g.memory_used_mb for g in one.gpus]) for one in some]),
            cores=fmean(sum(a.cpu for a in one.attempts) for one in some),
            memory_mb=fmean(sum(a.memory_mb for a in one.attempts) for one in some),
        )
        for _, some in sorted(rows.items(), reverse=True)
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _sum(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(sum(known)) if known else None

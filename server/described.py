"""Whether a cluster that a file describes could ever hold a job: python -m server.described

`powermean validate --cluster` runs it. It reads a DescribedTask from standard input and prints a
ValidationResult.
It plans with the planner of real clusters, so it says what a job there would be told.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from typing import Any

from powermean.contracts.attempts import GpuInfo, JobError, ValidationResult
from powermean.contracts.clusters import DescribedCluster, DescribedNode, DescribedTask
from server.cluster.demand import waiting_job
from server.jobs.demand import demand_of
from server.placement.plan import plan
from server.placement.state import ClusterState, NodeCapacity, WaitingJob
from server.placement.why import Why, explain

_ID = "job"
_WITHOUT: dict[str, dict[str, Any]] = {  # field -> a job that does not ask for it
    "resources.node_labels": {"labels": ()},
    "resources.gpu_type": {"gpu_type": None},
    "resources.gpu_memory_gib": {"gpu_memory_mb": 0},
    "rollout.engine": {"vllm": False},
    "resources.nodes": {"nodes": 1},
    "resources.placement": {"rollout_gpus": 0},
}


def main() -> int:
    """Exit status 0 whatever the result."""
    print(check(DescribedTask.model_validate_json(sys.stdin.read())).model_dump_json())
    return 0


def check(task: DescribedTask) -> ValidationResult:
    """Why the job would wait on the empty cluster; no error where it would start."""
    job, nodes = waiting_job(_ID, demand_of(task.spec), None), _nodes(task.cluster)
    if task.spec.rollout.sharing == "shared":
        # A file declares no engines: their part of the job is left out.
        job = replace(job, adapter=None, rollout_gpus=0, vllm=False)
    found = _why(job, nodes)
    if found is None:
        return ValidationResult()
    message = f"{found.text} (the file's nodes count as connected)"
    error = JobError(code=found.kind, message=message, path=_field(job, nodes), remedy=found.help)
    return ValidationResult(errors=(error,))


def _why(job: WaitingJob, nodes: Sequence[NodeCapacity]) -> Why | None:
    state = ClusterState(nodes, [job])
    return explain(state, plan(state)).get(_ID)


def _field(job: WaitingJob, nodes: Sequence[NodeCapacity]) -> str:
    """The field that alone keeps the job from starting."""
    for path, changes in _WITHOUT.items():
        less = replace(job, **changes)
        if less != job and _why(less, nodes) is None:
            return path
    return "resources.gpus" if job.uses_gpus else "resources"


def _nodes(cluster: DescribedCluster) -> list[NodeCapacity]:
    numbered = ((kind, number) for kind in cluster.nodes for number in range(kind.count))
    return [_node(kind, f"{place}-{number}") for place, (kind, number) in enumerate(numbered)]


def _node(kind: DescribedNode, node_id: str) -> NodeCapacity:
    gpus = [
        GpuInfo(
            uuid=f"{node_id}-{index}",
            name=kind.gpu_type,
            memory_mb=ceil(kind.gpu_memory_gib * 1024),
        )
        for index in range(kind.gpus)
    ]
    return NodeCapacity(
        id=node_id,
        cpu_slots=kind.cpu_slots,
        gpus=kind.gpus,
        free_cpu_slots=kind.cpu_slots,
        free_gpus=tuple(gpu.uuid for gpu in gpus),
        engines=kind.engines,
        labels=frozenset(kind.labels.items()),
        gpu_info=tuple(gpus),
    )


if __name__ == "__main__":
    sys.exit(main())

"""Whether a cluster that a file describes could ever hold a job: python -m server.described

`powermean validate --cluster` runs it. It reads a DescribedTask from standard input and prints a
ValidationResult.
It plans with the planner of real clusters, so it says what a job there would be told.
"""

import sys
from math import ceil

from powermean.contracts.attempts import GpuInfo, JobError, ValidationResult
from powermean.contracts.clusters import DescribedCluster, DescribedNode, DescribedTask
from server.cluster.demand import waiting_job
from server.jobs.demand import demand_of
from server.placement.plan import plan
from server.placement.state import ClusterState, NodeCapacity
from server.placement.why import explain

_ID = "job"


def main() -> int:
    """Exit status 0 whatever the result."""
    print(check(DescribedTask.model_validate_json(sys.stdin.read())).model_dump_json())
    return 0


def check(task: DescribedTask) -> ValidationResult:
    """Why the job would wait on the empty cluster; no error where it would start."""
    state = ClusterState(_nodes(task.cluster), [waiting_job(_ID, demand_of(task.spec), None)])
    found = explain(state, plan(state)).get(_ID)
    if found is None:
        return ValidationResult()
    field = "resources.gpus" if task.spec.resources.gpus else "resources"
    return ValidationResult(
        errors=(JobError(code=found.kind, message=found.text, path=field, remedy=found.help),)
    )


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

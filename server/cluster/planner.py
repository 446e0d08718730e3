"""Which waiting jobs start where: a pure function of the cluster's state.

A job is planned as one gang (its trainer and its engine) and in the order of submission. A job that waits for
GPUs that exist but are taken holds the ones behind it back, so that small jobs cannot starve a large one; CPU
jobs and GPU jobs wait in lines of their own. A job that no living node could ever hold blocks nobody.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from powermean.contracts.attempts import AllocationView


@dataclass(frozen=True)
class NodeCapacity:
    """A living node: what it has, and what of it is free."""

    id: str
    cpu_slots: int
    gpus: int
    free_cpu_slots: int
    free_gpus: tuple[str, ...]


@dataclass(frozen=True)
class WaitingJob:
    """A queued job. `gpus` 0 asks for a CPU slot; `avoid` are nodes that let it down just now."""

    id: str
    gpus: int
    avoid: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ClusterState:
    """All that a plan depends on: living nodes, and queued jobs in the order of submission."""

    nodes: Sequence[NodeCapacity]
    waiting: Sequence[WaitingJob]


@dataclass(frozen=True)
class Start:
    """A job and the gang that it gets."""

    job_id: str
    allocations: tuple[AllocationView, ...]


@dataclass
class Plan:
    """What to start, and for people why the others wait."""

    starts: list[Start] = field(default_factory=list)
    why: dict[str, str] = field(default_factory=dict)


def plan(state: ClusterState) -> Plan:
    """Place waiting jobs first come, first served. Never gives a slot or a GPU out twice."""
    result = Plan()
    slots = {node.id: node.free_cpu_slots for node in state.nodes}
    gpus = {node.id: list(node.free_gpus) for node in state.nodes}
    blocked: set[bool] = set()
    for job in state.waiting:
        needs_gpus = job.gpus > 0
        impossible = _never(job, state.nodes)
        if impossible is not None:
            result.why[job.id] = impossible
        elif needs_gpus in blocked:
            result.why[job.id] = "waiting behind earlier jobs"
        elif (node_id := _choose(job, slots, gpus)) is None:
            blocked.add(needs_gpus)
            result.why[job.id] = _busy(job)
        else:
            result.starts.append(_take(job, node_id, slots, gpus))
    return result


def _never(job: WaitingJob, nodes: Sequence[NodeCapacity]) -> str | None:
    """Why no living node could hold the job even if it were empty, or None."""
    if not nodes:
        return "waiting for a node: none is connected"
    most = max(node.gpus for node in nodes) if job.gpus else max(node.cpu_slots for node in nodes)
    if job.gpus > most:
        return f"waiting for a node with {job.gpus} GPUs: the largest one connected has {most}"
    if not most:
        return "waiting for a node with CPU slots: none of those connected has any"
    return None


def _busy(job: WaitingJob) -> str:
    if job.gpus:
        return f"waiting for {job.gpus} free GPUs on one node"
    return "waiting for a free CPU slot"


def _choose(job: WaitingJob, slots: dict[str, int], gpus: dict[str, list[str]]) -> str | None:
    """The node that fits most tightly, so that large gaps stay large; nodes to avoid come last."""
    free = {id_: len(uuids) for id_, uuids in gpus.items()} if job.gpus else slots
    fitting = [id_ for id_, amount in free.items() if amount >= max(1, job.gpus)]
    if not fitting:
        return None
    if job.gpus:
        return min(fitting, key=lambda id_: (id_ in job.avoid, free[id_], id_))
    # CPU jobs share a node's cores: spread them
    return min(fitting, key=lambda id_: (id_ in job.avoid, -free[id_], id_))


def _take(job: WaitingJob, node_id: str, slots: dict[str, int], gpus: dict[str, list[str]]) -> Start:
    """Trainer and engine share what the job gets (placement: colocated)."""
    if job.gpus:
        taken = tuple(gpus[node_id][: job.gpus])
        del gpus[node_id][: job.gpus]
    else:
        taken = ()
        slots[node_id] -= 1
    return Start(
        job.id,
        (
            AllocationView(role="trainer", node_id=node_id, gpu_uuids=taken),
            AllocationView(role="rollout", node_id=node_id, gpu_uuids=taken),
        ),
    )

"""What a job needs from the cluster, and which nodes could provide it."""

from collections.abc import Sequence
from dataclasses import replace

from server.jobs.demand import stored_demand
from server.placement.fit import could_run
from server.placement.state import NodeCapacity, WaitingJob


def waiting_job(
    job_id: str,
    stored: str,
    longest_sequence: int | None,
    avoid: frozenset[str] = frozenset(),
    project: str = "",
) -> WaitingJob:
    """The job as the planner sees it, from its row's `demand`, `longest_sequence` and project.

    `avoid` are the nodes on which its last attempt lapsed.
    """
    demand = stored_demand(stored)
    adapter = demand.adapter
    if adapter is not None and longest_sequence is not None:
        adapter = replace(adapter, tokens=longest_sequence)
    return WaitingJob(
        id=job_id,
        gpus=demand.gpus,
        rollout_gpus=demand.rollout_gpus,
        avoid=avoid,
        vllm=demand.vllm,
        adapter=adapter,
        project=project,
        nodes=demand.nodes,
        revision=demand.revision,
        gpu_type=demand.gpu_type,
        gpu_memory_mb=demand.gpu_memory_mb,
        labels=demand.labels,
    )


def checkers(stored: str, living: Sequence[NodeCapacity], offline: Sequence[NodeCapacity]) -> list[str]:
    """The live nodes that may check a job of this demand: those that could run it, since nodes differ.

    Empty while all nodes that could run it are offline, closed, or their disks full. If no node ever could,
    the nearest ones check it that know its fields: their errors say what is missing.
    """
    asked, known = waiting_job("", stored, None), [*living, *offline]
    able = [node for node in known if could_run(asked, node)] or _nearest(asked, known)
    ids = {node.id for node in able}
    return [
        node.id
        for node in living
        if node.id in ids
        and node.full_disk is None
        and node.closed is None
        and node.revision >= asked.revision
    ]


def _nearest(job: WaitingJob, nodes: Sequence[NodeCapacity]) -> list[NodeCapacity]:
    """Those with the most of the GPUs that it asks for.

    A node without GPUs would fail for good a job that could wait for another type or label.
    """
    wanted = job.gpus + job.rollout_gpus
    most = max((min(node.gpus, wanted) for node in nodes), default=0)
    return [node for node in nodes if min(node.gpus, wanted) == most]

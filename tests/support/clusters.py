"""A cluster's state in a few words, for tests of the plan."""

from typing import Any

from server.placement.plan import plan
from server.placement.state import ClusterState, NodeCapacity, Plan, RunningJob, WaitingJob

HOUR = 3600.0


def node(node_id: str, gpus: int = 8, free: int | None = None, **more: Any) -> NodeCapacity:
    uuids = tuple(f"{node_id}-{number}" for number in range(gpus))
    return NodeCapacity(node_id, 0, gpus, 0, uuids[gpus - (gpus if free is None else free) :], **more)


def runs(job_id: str, project: str, on: str, gpus: tuple[int, ...], **more: Any) -> RunningJob:
    return RunningJob(job_id, project, ((on, tuple(f"{on}-{number}" for number in gpus)),), **more)


def planned(nodes: list[NodeCapacity], waiting: list[WaitingJob], **more: Any) -> tuple[ClusterState, Plan]:
    state = ClusterState(nodes, waiting, **({"now": 10 * HOUR} | more))
    return state, plan(state)


def started(made: Plan) -> list[str]:
    return [start.job_id for start in made.starts]


def stopped(made: Plan) -> list[str]:
    return [stop.job_id for stop in made.stops]


def job(job_id: str, gpus: int = 1, project: str = "a", **more: Any) -> WaitingJob:
    return WaitingJob(job_id, gpus, project=project, **more)

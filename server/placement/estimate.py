"""When waiting jobs may start: from the running jobs' pace alone, and only where that says something."""

from collections import defaultdict
from collections.abc import Iterable

from server.placement.fit import Ask, Index, own_engine
from server.placement.state import ClusterState, Plan, WaitingJob

MOST = 100  # jobs from the front of the line: what is further off is guesswork

BASIS = "the running jobs' remaining steps x seconds a step, and their wall_hours"


class _Future:
    """When GPUs are free, by node: (time, count), the earliest first. Jobs that start give nothing back."""

    def __init__(self, state: ClusterState, plan: Plan) -> None:
        self._free: dict[str, list[list[float]]] = defaultdict(list)
        taken: dict[str, set[str]] = defaultdict(set)
        for start in plan.starts:
            for part in start.allocations:
                taken[part.node_id].update(part.gpu_uuids)
        for node in state.nodes:
            self._free[node.id].append([state.now, float(len(set(node.free_gpus) - taken[node.id]))])
        for job in state.running:
            if job.ends_at is not None and not job.stopping:
                for node_id, gpus in job.holds:
                    self._free[node_id].append([max(state.now, job.ends_at), float(len(gpus))])
        for times in self._free.values():
            times.sort()

    def when(self, node_id: str, gpus: int) -> float | None:
        count = 0.0
        for at, more in self._free[node_id]:
            count += more
            if count >= gpus:
                return at
        return None

    def take(self, node_id: str, gpus: int) -> None:
        for time in self._free[node_id]:
            given = min(time[1], gpus)
            time[1] -= given
            gpus -= int(given)


def starts(state: ClusterState, plan: Plan, order: Iterable[WaitingJob]) -> dict[str, float]:
    """When the first GPU jobs of the line start if those before them do, and nobody else comes.

    It ends at the first job of which that isn't known: those behind it can't know what it leaves.
    """
    index, future = Index(state.nodes), _Future(state, plan)
    found: dict[str, float] = {}
    for job in [job for job in order if job.uses_gpus and job.id in plan.why][:MOST]:
        wait = plan.why[job.id]
        if wait.kind in ("no_node", "starting", "engine", "limit", "closed", "disk"):
            continue
        at = _start(own_engine(job), index, future)
        if at is None or wait.kind == "checkpoint":
            break
        found[job.id] = at
    return found


def _start(ask: Ask, index: Index, future: _Future) -> float | None:
    times = sorted(  # on nodes with other GPUs, too, it isn't known which of them will be free
        (at, node_id) for node_id in index.plain(ask) if (at := future.when(node_id, ask.gpus)) is not None
    )
    if len(times) < ask.nodes:
        return None
    for _, node_id in times[: ask.nodes]:
        future.take(node_id, ask.gpus)
    return times[ask.nodes - 1][0]

"""When waiting jobs may start: from the running jobs' pace alone, and only where that says something."""

from collections.abc import Iterable
from operator import itemgetter

from server.placement.fit import Index, Request, alone
from server.placement.state import ClusterState, Plan, WaitingJob

MOST = 100  # jobs from the front of the line: what is further off is guesswork

BASIS = "the running jobs' remaining steps x seconds a step, and their wall_hours"


class _Future:
    """When which GPUs are free, by open node, the earliest first. Jobs that start give nothing back."""

    def __init__(self, state: ClusterState, plan: Plan) -> None:
        self._free: dict[str, list[tuple[float, set[str]]]] = {
            node.id: [(state.now, set(node.free_gpus))]
            for node in state.nodes
            if not (node.closed or node.full_disk)
        }
        stopping = {stop.job_id for stop in plan.stops}
        for job in state.running:
            if job.ends_at is not None and not job.stopping and job.id not in stopping:
                for node_id, gpus in job.holds:
                    if node_id in self._free:
                        self._free[node_id].append((max(state.now, job.ends_at), set(gpus) - job.ill))
        for times in self._free.values():
            times.sort(key=itemgetter(0))
        for start in plan.starts:
            for part in start.allocations:
                self.forget(part.node_id, frozenset(part.gpu_uuids))
        for placed in plan.placements:
            self.forget(placed.node_id, frozenset(placed.gpu_uuids))

    def when(self, node_id: str, gpus: int, wanted: frozenset[str] | None) -> float | None:
        """When so many (of those wanted) are free."""
        for at, free in self._free.get(node_id, ()):
            gpus -= len(free if wanted is None else free & wanted)
            if gpus <= 0:
                return at
        return None

    def take(self, node_id: str, gpus: int, wanted: frozenset[str] | None) -> None:
        for _, free in self._free[node_id]:
            taken = sorted(free if wanted is None else free & wanted)[:gpus]
            free.difference_update(taken)
            gpus -= len(taken)

    def forget(self, node_id: str, gpus: frozenset[str] | None) -> None:
        """Nobody knows when these (None: all) are free."""
        for _, free in self._free.get(node_id, ()):
            free.difference_update(list(free) if gpus is None else gpus)


def starts(state: ClusterState, plan: Plan, order: Iterable[WaitingJob]) -> dict[str, float]:
    """When the first GPU jobs of the line start if those before them do, and nobody else comes.

    Where that isn't known of a job, those behind it can't know what it leaves of the GPUs that it could have.
    """
    index, future = Index(state.nodes), _Future(state, plan)
    found: dict[str, float] = {}
    unknown: set[tuple[Request, ...]] = set()
    for job in [job for job in order if job.uses_gpus and job.id in plan.why][:MOST]:
        wait = plan.why[job.id]
        requests = index.requests(alone(job), job.several)
        if requests in unknown or wait.kind in ("no_node", "starting", "engine", "limit", "closed", "disk"):
            continue
        at = None if wait.kind == "checkpoint" else _start(requests, future)
        if at is not None:
            found[job.id] = at
            continue
        if wait.kind != "checkpoint":
            unknown.add(requests)
        for one in requests:
            for node_id in wait.kept if wait.kind == "checkpoint" else one.possible:
                future.forget(node_id, index.wanted(one.ask, node_id))
    return found


def _start(requests: Iterable[Request], future: _Future) -> float | None:
    """With the first of these that can be had."""
    found: list[tuple[float, list[str], Request]] = []
    for one in requests:
        times = [
            (future.when(node_id, one.gpus, one.wanted.get(node_id)), node_id) for node_id in one.possible
        ]
        known = sorted((at, node_id) for at, node_id in times if at is not None)[: one.nodes]
        if len(known) == one.nodes:
            found.append((known[-1][0], [node_id for _, node_id in known], one))
    if not found:
        return None
    at, nodes, chosen = min(found, key=itemgetter(0))
    for node_id in nodes:
        future.take(node_id, chosen.gpus, chosen.wanted.get(node_id))
    return at

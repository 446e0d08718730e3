"""Room that is kept for a large job, so that small ones can't pass it for ever.

The job gets the nodes on which it can start soonest. What its start leaves over there is for others, and so
is the rest for those that are known to end before.
"""

from collections import defaultdict
from math import inf
from operator import itemgetter

from server.placement.fit import Index, Request
from server.placement.room import Reservation, Room
from server.placement.state import ClusterState, NodeCapacity, RunningJob


class Calendar:
    """When running jobs give back what they hold, by node. A time that nobody knows is infinite."""

    def __init__(self, state: ClusterState) -> None:
        self._ends: dict[str, list[tuple[float, int, RunningJob]]] = defaultdict(list)
        for job in state.running:
            if job.uses_gpus and not job.stopping:
                for node_id, _ in job.holds:
                    end = max(state.now, job.ends_at or inf), job.on(node_id), job
                    self._ends[node_id].append(end)
        for ends in self._ends.values():
            ends.sort(key=itemgetter(0, 1))

    def start(
        self, node: NodeCapacity, wanted: frozenset[str] | None, gpus: int, free: int
    ) -> tuple[float, int] | None:
        """When so many (of those wanted) will be free, and how many more; None: services hold too many.

        What nobody accounts for is free at an unknown time: jobs that the plan starts, or that fell silent.
        """
        if free >= gpus:
            return 0.0, free - gpus
        for at, count, job in self._ends[node.id]:
            free += count if wanted is None else job.on(node.id, wanted)
            if free >= gpus:
                return at, free - gpus
        there = node.gpus - len(node.served) if wanted is None else len(wanted - node.served)
        free = max(free, there)
        return (inf, free - gpus) if free >= gpus else None


def reserve(request: Request, index: Index, room: Room, calendar: Calendar) -> dict[str, Reservation] | None:
    """The nodes on which the gang can start soonest, by what is known; of equals those with most free now.

    So a node that is kept stays so in the next plan: its free GPUs only get more.
    """
    found, promised = [], request.promised(room)
    for node_id in request.possible:
        node = index.nodes[node_id]
        if node_id in room.reserved or node.closed or node.full_disk:
            continue
        free = promised(node_id)
        start = calendar.start(node, request.wanted.get(node_id), request.gpus, free)
        if start is not None:
            found.append((start[0], -free, node_id, start[1]))
    if len(found) < request.nodes:
        return None
    chosen = sorted(found)[: request.nodes]
    latest = max(at for at, *_ in chosen)
    known = latest if latest < inf else None
    return {
        node_id: Reservation(
            spare if known is not None and at == latest else 0, known, request.wanted.get(node_id)
        )
        for at, _, node_id, spare in chosen
    }

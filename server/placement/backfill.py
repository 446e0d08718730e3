"""Room that is kept for a large job, so that small ones can't pass it for ever.

The job gets the nodes on which it can start soonest. What its start leaves over there is for others, and so
is the rest for those that are known to end before.
"""

from collections import defaultdict
from math import inf

from server.placement.fit import Ask, Index
from server.placement.room import Reservation, Room
from server.placement.state import ClusterState, NodeCapacity


class Calendar:
    """When running jobs give back what they hold, by node. A time that nobody knows is infinite."""

    def __init__(self, state: ClusterState) -> None:
        self._ends: dict[str, list[tuple[float, int]]] = defaultdict(list)
        for job in state.running:
            if job.uses_gpus and not job.stopping:
                for node_id, _ in job.holds:
                    self._ends[node_id].append((max(state.now, job.ends_at or inf), job.on(node_id)))
        for ends in self._ends.values():
            ends.sort()

    def start(self, node: NodeCapacity, gpus: int, free: int) -> tuple[float, int] | None:
        """When so many GPUs will be free there, and how many more; None: engine services hold too many.

        What nobody accounts for is free at an unknown time: jobs that the plan starts, or that fell silent.
        """
        known = self._ends[node.id]
        unknown = node.gpus - node.served - free - sum(count for _, count in known)
        for at, count in [(0.0, 0), *known, (inf, max(0, unknown))]:
            free += count
            if free >= gpus:
                return at, free - gpus
        return None


def reserve(ask: Ask, index: Index, room: Room, calendar: Calendar) -> dict[str, Reservation] | None:
    """The nodes on which the gang can start soonest, by what is known; of equals those with most free now.

    So a node that is kept stays so in the next plan: its free GPUs only get more.
    """
    found, promised = [], index.promised(ask, room)
    for node_id in index.possible(ask):
        node = index.nodes[node_id]
        if node_id in room.reserved or node.closed or node.full_disk:
            continue
        free = promised(node_id)
        start = calendar.start(node, ask.gpus, free)
        if start is not None:
            found.append((start[0], -free, node_id, start[1]))
    if len(found) < ask.nodes:
        return None
    chosen = sorted(found)[: ask.nodes]
    latest = max(at for at, *_ in chosen)
    known = latest if latest < inf else None
    return {
        node_id: Reservation(spare if known is not None and at == latest else 0, known)
        for at, _, node_id, spare in chosen
    }

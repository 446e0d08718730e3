"""What is left of the cluster while a plan is made, and what is kept for whom."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from server.placement.state import ClusterState, RunningJob


@dataclass
class Reservation:
    """A node that a job will start on once enough of it is free.

    Until then others may use the GPUs there that it does not want, `spare` of the rest, which its start
    leaves over, and all that is free as long as they end by `at` (None: nobody knows when that is).
    """

    spare: int
    at: float | None
    wanted: frozenset[str] | None = None  # None: all

    def wants(self, uuid: str) -> bool:
        return self.wanted is None or uuid in self.wanted

    def leaves(self, free: Sequence[str]) -> int:
        """How many of these others may take."""
        wanted = sum(map(self.wants, free))
        return len(free) - wanted + min(self.spare, wanted)


class Room:
    """Free GPUs and CPU slots by node, and those that are about to be free. In a plan they only get fewer."""

    def __init__(self, state: ClusterState) -> None:
        self.now = state.now
        self.slots = {node.id: node.free_cpu_slots for node in state.nodes}
        self.gpus = {node.id: list(node.free_gpus) for node in state.nodes}
        self._by_free: dict[bool, dict[int, set[str]]] = {True: {}, False: {}}  # nodes, by what is free
        for node_id, uuids in self.gpus.items():
            self._by_free[True].setdefault(len(uuids), set()).add(node_id)
        for node_id, slots in self.slots.items():
            self._by_free[False].setdefault(slots, set()).add(node_id)
        self._coming_gpus: dict[str, list[str]] = defaultdict(list)
        self._coming_slots: Counter[str] = Counter()
        self.unpromised = {  # to anybody: what is free, and what is about to be
            True: {node_id: len(uuids) for node_id, uuids in self.gpus.items()},
            False: dict(self.slots),
        }
        self.nodes_with_coming: dict[bool, set[str]] = {True: set(), False: set()}
        self._open = {node.id for node in state.nodes if not (node.closed or node.full_disk)}
        self.reserved: dict[str, Reservation] = {}
        for job in state.running:
            if job.stopping:
                self.release(job)
        self.adapters = {engine.id: set(engine.jobs) for engine in state.engines}
        self.services = Counter(engine.node for engine in state.engines)

    def release(self, job: RunningJob) -> None:
        """What a job that gives way holds is about to be free, but for nodes that take nothing new."""
        gpus = job.uses_gpus
        for node_id, left in job.leaves.items():
            if left and node_id in self._open:
                self.nodes_with_coming[gpus].add(node_id)
                if gpus:
                    self._coming_gpus[node_id] += job.gpus(node_id)
                else:
                    self._coming_slots[node_id] += left
                self._recount(node_id, gpus)

    def reserve(self, kept: Mapping[str, Reservation]) -> None:
        self.reserved |= kept
        for node_id in kept:
            self._recount(node_id, True)

    def hold(self, node_id: str, gpus: int) -> None:
        """So many GPUs of the node, as far as they are free, are for something that waits for the rest."""
        self._leave(node_id, self.gpus[node_id][gpus:])
        self._recount(node_id, True)

    def _leave(self, node_id: str, free: list[str]) -> None:
        """These GPUs of the node stay free."""
        self._move(node_id, True, len(self.gpus[node_id]), len(free))
        self.gpus[node_id] = free

    def _take_slots(self, node_id: str, count: int) -> None:
        before = self.slots[node_id]
        self._move(node_id, False, before, before - count)
        self.slots[node_id] = before - count

    def _move(self, node_id: str, gpus: bool, before: int, after: int) -> None:
        self._by_free[gpus][before].discard(node_id)
        self._by_free[gpus].setdefault(after, set()).add(node_id)

    def _recount(self, node_id: str, gpus: bool) -> None:
        if not gpus:
            count = self.slots[node_id] + self._coming_slots[node_id]
        elif kept := self.reserved.get(node_id):
            count = kept.leaves(self.gpus[node_id])
        else:
            count = len(self.gpus[node_id]) + len(self._coming_gpus[node_id])
        self.unpromised[gpus][node_id] = count

    def by_free(self, gpus: bool, least: int) -> Iterator[tuple[int, set[str]]]:
        """The nodes by what is free there: GPUs from few to many, CPU slots from many to few."""
        found = self._by_free[gpus]
        for free in sorted(found, reverse=not gpus):
            if free >= least and (there := found[free]):
                yield free, there

    def free(self, node_id: str, gpus: bool) -> int:
        return len(self.gpus[node_id]) if gpus else self.slots[node_id]

    def usable(
        self, node_id: str, gpus: bool, seconds: float | None, wanted: frozenset[str] | None = None
    ) -> int:
        """What a job that runs for so long may take there, without delaying the one with a reservation."""
        if not gpus:
            return self.slots[node_id]
        free, kept = _suiting(self.gpus[node_id], wanted), self.reserved.get(node_id)
        if kept is None or (kept.at is not None and seconds is not None and self.now + seconds <= kept.at):
            return len(free)
        return kept.leaves(free)

    def promised(self, node_id: str, gpus: bool, wanted: frozenset[str] | None = None) -> int:
        """What nobody has been promised, there and about to be free there (of the GPUs that are wanted)."""
        if wanted is None or not gpus:
            return self.unpromised[gpus][node_id]
        free = _suiting(self.gpus[node_id], wanted)
        if kept := self.reserved.get(node_id):
            return kept.leaves(free)
        return len(free) + len(_suiting(self._coming_gpus[node_id], wanted))

    def take(self, node_id: str, gpus: int, wanted: frozenset[str] | None = None) -> tuple[str, ...]:
        """GPUs of the node (of those wanted), or (0) one of its CPU slots."""
        if not gpus:
            self._take_slots(node_id, 1)
            self._recount(node_id, False)
            return ()
        suiting, kept = _suiting(self.gpus[node_id], wanted), self.reserved.get(node_id)
        if kept is not None:
            suiting = sorted(suiting, key=kept.wants)
        taken = tuple(suiting[:gpus])
        self._leave(node_id, [uuid for uuid in self.gpus[node_id] if uuid not in taken])
        if kept is not None:
            kept.spare = max(0, kept.spare - sum(map(kept.wants, taken)))
        self._recount(node_id, True)
        return taken

    def keep(self, node_id: str, gpus: bool, amount: int, wanted: frozenset[str] | None = None) -> None:
        """For a job that others give way to: what is about to be free, and what it lacks of what is free.

        Where a node is reserved, the start there counts on what is about to be free.
        """
        if gpus and node_id in self.reserved:
            self.take(node_id, amount, wanted)
            return
        if gpus:
            coming = self._coming_gpus[node_id]
            left = self._coming_gpus[node_id] = _without(coming, amount, wanted)
            soon = len(coming) - len(left)
            if soon < amount:
                self._leave(node_id, _without(self.gpus[node_id][::-1], amount - soon, wanted)[::-1])
        else:
            soon = min(amount, self._coming_slots[node_id])
            self._coming_slots[node_id] -= soon
            self._take_slots(node_id, amount - soon)
        self._recount(node_id, gpus)
        if not (self._coming_gpus if gpus else self._coming_slots)[node_id]:
            self.nodes_with_coming[gpus].discard(node_id)


def _suiting(uuids: list[str], wanted: frozenset[str] | None) -> list[str]:
    return uuids if wanted is None else [uuid for uuid in uuids if uuid in wanted]


def _without(uuids: list[str], count: int, wanted: frozenset[str] | None) -> list[str]:
    """All but the first few of those that are wanted."""
    if wanted is None:
        return uuids[count:]
    gone = [uuid for uuid in uuids if uuid in wanted][:count]
    return [uuid for uuid in uuids if uuid not in gone]

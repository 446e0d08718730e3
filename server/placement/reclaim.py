"""Which running jobs give way, for whom: an owner's quota is taken back, priority goes first in a project.

What is lost is the work since a job's last checkpoint, so the plan stops those that lose least.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from math import inf

from server.placement.fit import Ask, Index
from server.placement.queue_order import Place, place_of
from server.placement.quotas import Ledger
from server.placement.room import Room
from server.placement.state import ClusterState, Rules, RunningJob, Stop, WaitingJob

_Price = tuple[float, int, str]


def cost(job: RunningJob, now: float) -> float:
    """GPU-seconds (or slot-seconds) of work that a stop throws away at most."""
    return max(0.0, now - job.saved_at) * job.amount


def may_be_stopped(job: RunningJob, rules: Rules, now: float) -> bool:
    """Whether the job hears an order, and has run long enough to be worth its start."""
    return job.claimed and not job.stopping and now - job.started_at >= rules.min_run_s


class Victims:
    """The running jobs that could give way, the cheapest first.

    In the course of a plan room costs ever more, but for what stops leave over and what is borrowed anew. So
    each kind of request keeps its nodes in a heap by the least that they can cost, and looks at the first.
    """

    def __init__(
        self, state: ClusterState, index: Index, room: Room, ledger: Ledger, place: Mapping[str, Place]
    ) -> None:
        self._index, self._room, self._ledger = index, room, ledger
        self._place, self._rules = place, state.rules
        self._on: dict[tuple[str, bool], list[RunningJob]] = defaultdict(list)
        self._values: dict[tuple[str, bool], Counter[int]] = defaultdict(Counter)  # priorities, by project
        self._most: Counter[tuple[str, bool, str | None]] = Counter()  # on a node, of a project or (None) all
        self._rate: dict[tuple[str, bool, str | None], float] = {}  # the least that one of those costs
        stoppable = [job for job in state.running if may_be_stopped(job, state.rules, state.now)]
        self._cost = {job.id: cost(job, state.now) for job in stoppable}
        for job in sorted(stoppable, key=lambda job: (self._cost[job.id], job.id)):
            self._values[job.project, job.uses_gpus][job.value] += 1
            for node_id, amount in job.leaves.items():
                if amount:
                    self._on[node_id, job.uses_gpus].append(job)
                    for project in (job.project, None):
                        key = node_id, job.uses_gpus, project
                        self._most[key] += amount
                        self._rate[key] = min(self._cost[job.id] / amount, self._rate.get(key, inf))
        self._heaps: dict[Hashable, _Heap] = {}
        self._cheaper: list[str] = []  # nodes that may cost less than before, the last one last

    def find(
        self, job: WaitingJob, ask: Ask, guaranteed: bool
    ) -> tuple[tuple[str, ...], list[RunningJob]] | None:
        """The nodes on which the job would fit once these have stopped; None if no stops would do."""
        lower = self._has_lower(job)
        if not lower and not (guaranteed and self._ledger.borrowed_by_any(job.uses_gpus, job.project)):
            return None
        over = self._ledger.over_limit(job)
        if ask.nodes > 1 or over:
            return self._one_by_one(job, ask, guaranteed, over)
        return self._first(job, ask, guaranteed, (job.project, job.value) if lower else None)

    def stop(self, stopped: Iterable[RunningJob]) -> None:
        """These give way, and what they hold is about to be free."""
        for job in stopped:
            self._values[job.project, job.uses_gpus][job.value] -= 1
            for node_id, amount in job.leaves.items():
                if amount:
                    self._on[node_id, job.uses_gpus].remove(job)
                    self._most[node_id, job.uses_gpus, job.project] -= amount
                    self._most[node_id, job.uses_gpus, None] -= amount
            self._room.release(job)
            self._ledger.leave(job)

    def left_over(self, stopped: Iterable[RunningJob]) -> None:
        """Enough was kept of what these leave: where more of it is left, room may cost less now."""
        for job in stopped:
            self._cheaper += [
                node_id for node_id, _ in job.holds if self._room.promised(node_id, job.uses_gpus)
            ]

    def borrows(self, project: str, gpus: bool) -> None:
        """The project has borrowed more, so more may be taken back from it."""
        self._cheaper += [
            node_id for node_id, of_gpus, whose in self._most if (of_gpus, whose) == (gpus, project)
        ]

    def _has_lower(self, job: WaitingJob) -> bool:
        """Whether the job's project runs any of lower priority."""
        values = self._values[job.project, job.uses_gpus]
        return any(value < job.value and count for value, count in values.items())

    def _first(
        self, job: WaitingJob, ask: Ask, guaranteed: bool, own: Hashable
    ) -> tuple[tuple[str, ...], list[RunningJob]] | None:
        """The node that costs least. `own`: what sets the job apart from those of other projects."""
        key = ask, guaranteed, own
        if key not in self._heaps:
            self._heaps[key] = self._heap(ask, None if guaranteed else job.project)
        heap = self._heaps[key].up_to_date(self._cheaper)
        while heap:
            node_id = heap[0][-1]
            offer = self._offer(job, ask, node_id, guaranteed)
            if not offer:
                heappop(heap)
            elif (price := self._price(node_id, offer)) == heap[0]:
                return (node_id,), offer
            else:
                heapreplace(heap, price)
        return None

    def _heap(self, ask: Ask, whose: str | None) -> "_Heap":
        """The nodes on which enough could be stopped, by the least that it could cost."""
        prices, gpus = [], ask.uses_gpus
        nodes = self._index.possible(ask)
        for node_id in nodes:
            if most := self._most.get((node_id, gpus, whose)):
                missing = ask.amount - self._room.promised(node_id, gpus)
                if 0 < missing <= most:
                    prices.append((missing * self._rate[node_id, gpus, whose], 1, node_id))
        heapify(prices)
        return _Heap(prices, frozenset(nodes), len(self._cheaper))

    def _one_by_one(
        self, job: WaitingJob, ask: Ask, guaranteed: bool, over: int
    ) -> tuple[tuple[str, ...], list[RunningJob]] | None:
        """The nodes of a gang, the cheapest first; or one whose own jobs' ends keep the project's limit."""
        nodes: list[str] = []
        chosen: list[RunningJob] = []
        for _ in range(ask.nodes):
            offers = [
                (*self._price(node_id, offer), offer)
                for node_id in self._index.possible(ask)
                if node_id not in nodes
                and (offer := self._offer(job, ask, node_id, guaranteed, over, chosen)) is not None
            ]
            if not offers:
                return None
            *_, node_id, offer = min(offers, key=lambda one: one[:3])
            nodes.append(node_id)
            chosen += offer
            over = max(0, over - sum(one.amount for one in offer if one.project == job.project))
        return (tuple(nodes), chosen) if chosen and not over else None

    def _price(self, node_id: str, offer: Sequence[RunningJob]) -> _Price:
        return sum(self._cost[one.id] for one in offer), len(offer), node_id

    def _offer(
        self,
        job: WaitingJob,
        ask: Ask,
        node_id: str,
        guaranteed: bool,
        over: int = 0,
        chosen: Sequence[RunningJob] = (),
    ) -> list[RunningJob] | None:
        """The cheapest jobs on the node whose stop makes room there, besides those chosen already."""
        node, gpus = self._index.nodes[node_id], ask.uses_gpus
        mixed = ask.is_picky and self._index.wanted(ask, node_id) is not None
        if node.closed or node.full_disk or (gpus and (mixed or node_id in self._room.reserved)):
            return None
        missing = ask.amount - self._room.promised(node_id, gpus) - sum(one.on(node_id) for one in chosen)
        over = over if ask.nodes == 1 else 0
        if missing <= 0 and not over:
            return []
        eligible = self._eligible(job, node_id, guaranteed and not over, chosen)

        def enough(some: Sequence[RunningJob]) -> bool:
            if sum(one.on(node_id) for one in some) < missing:
                return False
            return not over or sum(one.amount for one in some if one.project == job.project) >= over

        return cheapest(eligible, enough, lambda one: self._cost[one.id])

    def _eligible(
        self, job: WaitingJob, node_id: str, from_others: bool, chosen: Sequence[RunningJob]
    ) -> list[RunningJob]:
        """Those on the node that the job goes before; of borrowers, no more than what they borrow.

        A job of its own project must have a lower priority, and be behind it in line: one that got its place
        by its age keeps it.
        """
        left: dict[str, int] = {}
        found: list[RunningJob] = []
        for one in self._on.get((node_id, job.uses_gpus), ()):
            if one in chosen:
                continue
            if one.project == job.project:
                if one.value < job.value and self._place[job.id] < place_of(one, one.queued_at, self._rules):
                    found.append(one)
                continue
            if not from_others:
                continue
            if one.project not in left:
                gone = sum(other.amount for other in chosen if other.project == one.project)
                left[one.project] = self._ledger.borrowed(one.project, job.uses_gpus) - gone
            if left[one.project] > 0:
                found.append(one)
                left[one.project] -= one.amount
        return found


@dataclass
class _Heap:
    """The nodes for a kind of request by the least that room costs there: (cost, jobs, node)."""

    prices: list[_Price]
    nodes: frozenset[str]  # that can hold it
    seen: int  # of those that became cheaper

    def up_to_date(self, cheaper: Sequence[str]) -> list[_Price]:
        for node_id in self.nodes.intersection(cheaper[self.seen :]):
            heappush(self.prices, (0.0, 0, node_id))
        self.seen = len(cheaper)
        return self.prices


def cheapest(
    jobs: Sequence[RunningJob],
    enough: Callable[[Sequence[RunningJob]], bool],
    cost_of: Callable[[RunningJob], float],
) -> list[RunningJob] | None:
    """Of jobs in order of cost, the first that suffice, without those not needed; or one that is cheaper."""
    some: list[RunningJob] = []
    for one in jobs:
        some.append(one)
        if enough(some):
            break
    else:
        return None
    for one in some[-2::-1]:  # the last one is needed
        without = [other for other in some if other is not one]
        if enough(without):
            some = without
    total = sum(map(cost_of, some))
    single = next((one for one in jobs if enough([one])), None)
    return [single] if single is not None and cost_of(single) <= total else some


def orders(job: WaitingJob, stopped: Iterable[RunningJob]) -> list[Stop]:
    """The orders to give way to the job, each with its reason."""
    return [Stop(one.id, job.id, _reason(job, one)) for one in stopped]


def _reason(job: WaitingJob, stopped: RunningJob) -> str:
    """For the people of the stopped job, who may not see other projects."""
    if stopped.project == job.project:
        return f"preempted: priority {job.priority} goes before {stopped.priority}, for {job.id}"
    what = "GPU" if stopped.uses_gpus else "CPU slot"
    count = f"{stopped.amount} {what}{'s' * (stopped.amount > 1)}"
    return f"preempted: another project takes back {count} of its quota"

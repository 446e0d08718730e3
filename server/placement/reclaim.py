"""Which running jobs give way, for whom: an owner's quota is taken back, priority goes first in a project.

What is lost is the work since a job's last checkpoint, so the plan stops those that lose least.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from server.placement.fit import Ask, Index
from server.placement.quotas import Ledger
from server.placement.room import Room
from server.placement.state import ClusterState, Rules, RunningJob, Stop, WaitingJob


def cost(job: RunningJob, now: float) -> float:
    """GPU-seconds (or slot-seconds) of work that a stop throws away at most."""
    return max(0.0, now - job.saved_at) * job.amount


def may_be_stopped(job: RunningJob, rules: Rules, now: float) -> bool:
    """Whether the job hears an order, and has run long enough to be worth its start."""
    return job.claimed and not job.stopping and now - job.started_at >= rules.min_run_s


class Victims:
    """The running jobs that could give way, the cheapest first."""

    def __init__(self, state: ClusterState) -> None:
        self._now = state.now
        self._on: dict[tuple[str, bool], list[RunningJob]] = defaultdict(list)
        self._lowest: dict[tuple[str, bool], int] = {}  # priority, by project
        stoppable = [job for job in state.running if may_be_stopped(job, state.rules, state.now)]
        for job in sorted(stoppable, key=lambda job: (cost(job, state.now), job.id)):
            key = job.project, job.uses_gpus
            self._lowest[key] = min(job.value, self._lowest.get(key, job.value))
            for node_id in {node_id for node_id, _ in job.holds}:
                self._on[node_id, job.uses_gpus].append(job)
        self._stopped: set[str] = set()

    def might_help(self, job: WaitingJob, guaranteed: bool, ledger: Ledger) -> bool:
        """Whether anybody could be told to give way to the job: a quick look before the long one."""
        lowest = self._lowest.get((job.project, job.uses_gpus))
        return (lowest is not None and lowest < job.value) or (
            guaranteed and ledger.borrowed_by_any(job.uses_gpus, job.project)
        )

    def find(
        self, job: WaitingJob, ask: Ask, index: Index, room: Room, ledger: Ledger, guaranteed: bool
    ) -> tuple[tuple[str, ...], list[RunningJob]] | None:
        """The nodes on which the job would fit once these have stopped; None if no stops would do.

        Each node's cheapest sufficient jobs are found, and the nodes that cost least taken one by one.
        """
        over = ledger.over_limit(job)
        nodes: list[str] = []
        chosen: dict[str, RunningJob] = {}
        for _ in range(ask.nodes):
            offers = (
                (sum(cost(one, self._now) for one in offer), len(offer), node_id, offer)
                for node_id in index.possible(ask)
                if node_id not in nodes
                and (offer := self._offer(job, ask, node_id, index, room, ledger, guaranteed, over, chosen))
                is not None
            )
            found = min(offers, key=lambda offer: offer[:3], default=None)
            if found is None:
                return None
            nodes.append(found[2])
            chosen |= {one.id: one for one in found[3]}
            over = max(0, over - sum(one.amount for one in found[3] if one.project == job.project))
        return (tuple(nodes), list(chosen.values())) if chosen and not over else None

    def stop(self, stopped: Iterable[RunningJob], room: Room, ledger: Ledger) -> None:
        """These give way, and what they hold is about to be free."""
        for job in stopped:
            self._stopped.add(job.id)
            room.release(job.holds)
            ledger.remove(job)

    def _offer(
        self,
        job: WaitingJob,
        ask: Ask,
        node_id: str,
        index: Index,
        room: Room,
        ledger: Ledger,
        guaranteed: bool,
        over: int,
        chosen: dict[str, RunningJob],
    ) -> list[RunningJob] | None:
        """The cheapest jobs on the node whose stop makes room there, besides those chosen already."""
        gpus = ask.uses_gpus
        if gpus and (node_id in room.reserved or (ask.is_picky and index.wanted(ask, node_id) is not None)):
            return None
        node = index.nodes[node_id]
        if node.closed or node.full_disk:
            return None
        missing = ask.amount - index.promised(ask, node_id, room)
        missing -= sum(one.on(node_id) for one in chosen.values())
        over = over if ask.nodes == 1 else 0
        if missing <= 0 and not over:
            return []
        spare: dict[str, int] = {}
        eligible: list[RunningJob] = []
        for one in self._on.get((node_id, gpus), ()):
            if one.id in self._stopped or one.id in chosen:
                continue
            if one.project == job.project:
                if one.value < job.value:
                    eligible.append(one)
            elif guaranteed and not over:
                left = spare.get(one.project)
                if left is None:
                    given = sum(c.amount for c in chosen.values() if c.project == one.project)
                    left = ledger.borrowed(one.project, gpus) - given
                if left > 0:
                    eligible.append(one)
                    left -= one.amount
                spare[one.project] = left

        def enough(some: Sequence[RunningJob]) -> bool:
            freed = sum(one.on(node_id) for one in some)
            own = sum(one.amount for one in some if one.project == job.project)
            return freed >= missing and own >= over

        return cheapest(eligible, enough, lambda one: cost(one, self._now))


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
    if stopped.project == job.project:
        return f"preempted: priority {job.priority} goes before {stopped.priority}, for {job.id}"
    what = "GPU" if stopped.uses_gpus else "CPU slot"
    count = f"{stopped.amount} {what}{'s' * (stopped.amount > 1)}"
    return f"preempted: project {job.project} takes back {count} of its quota for {job.id}"


def made_way_for(reason: str | None) -> str | None:
    """The job for which such an order was given; None: it was another's order."""
    if reason is None or not reason.startswith("preempted: "):
        return None
    return reason.rpartition(" for ")[2]

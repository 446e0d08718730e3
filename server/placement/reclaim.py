"""Which running jobs give way, for whom: an owner's quota is taken back, priority goes first in a project.

What is lost is the work since a job's last checkpoint, so the plan stops those that lose least.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from math import inf

from server.placement.fit import Request
from server.placement.queue_order import Place, place_of
from server.placement.quotas import Account, Ledger
from server.placement.room import Room
from server.placement.state import ClusterState, Rules, RunningJob, Stop, WaitingJob

_Supply = tuple[int, float]
_Price = tuple[float, int, str]
_Part = tuple[RunningJob, int, int, Account]  # what its stop leaves on the node and in all, and whose it is
_Whose = tuple[str, int] | None  # those of lower priority in a project; None: anybody's


def cost(job: RunningJob, now: float) -> float:
    """GPU-seconds (or slot-seconds) of work that a stop throws away at most."""
    return max(0.0, now - job.saved_at) * job.amount


def may_be_stopped(job: RunningJob, rules: Rules, now: float) -> bool:
    """Whether the job hears an order, and has run long enough to be worth its start."""
    return job.claimed and not job.stopping and now - job.started_at >= rules.min_run_s


class Victims:
    """The running jobs that could give way, the cheapest first.

    In the course of a plan room costs ever more, but for what stops leave over and what is borrowed anew. So
    each kind of request keeps its nodes in a heap by the least that they can cost, and looks at the first
    until that really costs so little.
    """

    def __init__(self, state: ClusterState, room: Room, ledger: Ledger, place: Mapping[str, Place]) -> None:
        self._room, self._ledger = room, ledger
        self._place, self._rules = place, state.rules
        self._shut = {node.id for node in state.nodes if node.closed or node.full_disk}
        self._on: dict[bool, dict[str, dict[str, _Part]]] = {True: {}, False: {}}  # by node
        self._of: dict[tuple[str, bool], dict[str, RunningJob]] = defaultdict(dict)  # a project's
        self._values: dict[tuple[str, bool], Counter[int]] = defaultdict(Counter)  # priorities, by project
        self._lowest: dict[tuple[str, bool], float] = {}  # of them, once somebody has asked
        self._cost: dict[str, float] = {}
        self._supply_of_all: dict[bool, dict[str, _Supply]] = {True: {}, False: {}}
        self._supplies: dict[tuple[bool, tuple[str, int]], dict[str, _Supply]] = {}
        priced = [
            (cost(job, state.now), job.id, job)
            for job in state.running
            if may_be_stopped(job, state.rules, state.now)
        ]
        for price, _, job in sorted(priced):
            gpus, account = job.uses_gpus, ledger.of(job)
            self._cost[job.id] = price
            self._values[job.project, gpus][job.value] += 1
            self._of[job.project, gpus][job.id] = job
            for node_id, left in job.leaves.items():
                if left:
                    self._on[gpus].setdefault(node_id, {})[job.id] = job, left, job.amount, account
            self._add_to(self._supply_of_all[gpus], job)
        self._heaps: dict[tuple[Request, bool, _Whose], _Heap] = {}
        # nodes that may cost less than before, the last one last: for owners, and for others
        self._cheaper: dict[bool, list[str]] = {True: [], False: []}

    def find(
        self, job: WaitingJob, request: Request, guaranteed: bool
    ) -> tuple[tuple[str, ...], list[RunningJob]] | None:
        """The nodes on which the job would fit once these have stopped; None if no stops would do."""
        lower = self._has_lower(job)
        if not lower and not (guaranteed and self._ledger.borrowed_by_any(job.uses_gpus, job.project)):
            return None
        over = self._ledger.of(job).over_limit(job.amount)
        if request.nodes > 1 or over:
            return self._one_by_one(job, request, guaranteed, over)
        return self._first(job, request, guaranteed, (job.project, job.value) if lower else None)

    def stop(self, stopped: Iterable[RunningJob]) -> None:
        """These give way, and what they hold is about to be free."""
        for job in stopped:
            gpus = job.uses_gpus
            key = job.project, gpus
            self._values[key][job.value] -= 1
            self._lowest.pop(key, None)
            del self._of[key][job.id]
            on, supply = self._on[gpus], self._supply_of_all[gpus]
            for node_id, left in job.leaves.items():
                if left:
                    del on[node_id][job.id]
                    most, rate = supply[node_id]
                    supply[node_id] = most - left, rate
            self._room.release(job)
            self._ledger.leave(job)

    def left_over(self, stopped: Iterable[RunningJob]) -> None:
        """Enough was kept of what these leave: where more of it is left, room may cost less now."""
        for job in stopped:
            unpromised = self._room.unpromised[job.uses_gpus]
            left = [node_id for node_id in job.leaves if unpromised.get(node_id)]
            self._cheaper[True] += left
            self._cheaper[False] += left

    def borrows(self, project: str, gpus: bool) -> None:
        """The project has borrowed more, so more may be taken back from it."""
        self._cheaper[True] += [node_id for job in self._of[project, gpus].values() for node_id in job.leaves]

    def _has_lower(self, job: WaitingJob) -> bool:
        """Whether the job's project runs any of lower priority."""
        key = job.project, job.uses_gpus
        if key not in self._lowest:
            self._lowest[key] = min(
                [value for value, count in self._values[key].items() if count], default=inf
            )
        return self._lowest[key] < job.value

    def _first(
        self, job: WaitingJob, request: Request, guaranteed: bool, own: _Whose
    ) -> tuple[tuple[str, ...], list[RunningJob]] | None:
        """The node that costs least. `own`: what sets the job apart from those of other projects."""
        heap = self._up_to_date(request, guaranteed, own)
        while (price := heap.first()) is not None:
            node_id = price[-1]
            offer = self._offer(job, request, node_id, guaranteed)
            if not offer:
                heap.remove_first()
                continue
            costs = self._price(node_id, offer)
            if costs == price or heap.is_first(costs):
                return (node_id,), offer
        return None

    def _up_to_date(self, request: Request, guaranteed: bool, own: _Whose) -> "_Heap":
        """The nodes on which enough could be stopped, by the least that it could cost."""
        key, cheaper = (request, guaranteed, own), self._cheaper[guaranteed]
        if (heap := self._heaps.get(key)) is None:
            nodes = self._supply(request.uses_gpus, own)
            prices = list(self._bounds(request, guaranteed, own, nodes))
            if guaranteed and own:  # it costs as much as for other owners where the project could stop none
                others = self._up_to_date(request, guaranteed, None).prices()
                prices += [price for price in others if price[-1] not in nodes]
            heap = self._heaps[key] = _Heap(prices)
        elif heap.seen < len(cheaper):
            for price in self._bounds(request, guaranteed, own, set(cheaper[heap.seen :])):
                heap.offer(price)
        heap.seen = len(cheaper)
        return heap

    def _bounds(
        self, request: Request, guaranteed: bool, own: _Whose, nodes: Iterable[str]
    ) -> Iterable[_Price]:
        """The least that room could cost on those of the nodes on which enough could be stopped."""
        supply = self._supply(request.uses_gpus, None if guaranteed else own)
        able, amount, promised = request.able, request.amount, request.promised(self._room)
        for node_id in nodes:
            if node_id in supply and node_id in able:
                most, rate = supply[node_id]
                if 0 < (missing := amount - promised(node_id)) <= most:
                    yield missing * rate, 1, node_id

    def _supply(self, gpus: bool, whose: _Whose) -> Mapping[str, _Supply]:
        """By node: the most that stops there could leave at all, and the least that each GPU or slot costs.

        Also GPUs of other types than a request wants count: that only makes it look cheaper than it is.
        """
        if whose is None:
            return self._supply_of_all[gpus]
        if (gpus, whose) not in self._supplies:
            project, value = whose
            lower = [job for job in self._of[project, gpus].values() if job.value < value]
            found = self._supplies[gpus, whose] = {}
            for job in lower:
                self._add_to(found, job)
        return self._supplies[gpus, whose]

    def _add_to(self, supply: dict[str, _Supply], job: RunningJob) -> None:
        for node_id, left in job.leaves.items():
            if left:
                most, rate = supply.get(node_id, (0, inf))
                supply[node_id] = most + left, min(rate, self._cost[job.id] / left)

    def _one_by_one(
        self, job: WaitingJob, request: Request, guaranteed: bool, over: int
    ) -> tuple[tuple[str, ...], list[RunningJob]] | None:
        """The nodes of a gang, the cheapest first; or one whose own jobs' ends keep the project's limit."""
        nodes: list[str] = []
        chosen: list[RunningJob] = []
        for _ in range(request.nodes):
            offers = [
                (*self._price(node_id, offer), offer)
                for node_id in request.possible
                if node_id not in nodes
                and (offer := self._offer(job, request, node_id, guaranteed, over, chosen)) is not None
            ]
            if not offers:
                return None
            *_, node_id, offer = min(offers, key=lambda one: one[:3])
            nodes.append(node_id)
            chosen += offer
            over = max(0, over - sum(one.amount for one in offer if one.project == job.project))
        return (tuple(nodes), chosen) if chosen and not over else None

    def _price(self, node_id: str, offer: Sequence[RunningJob]) -> _Price:
        return sum([self._cost[one.id] for one in offer]), len(offer), node_id

    def _offer(
        self,
        job: WaitingJob,
        request: Request,
        node_id: str,
        guaranteed: bool,
        over: int = 0,
        chosen: Sequence[RunningJob] = (),
    ) -> list[RunningJob] | None:
        """The cheapest jobs on the node whose stop makes room there, besides those chosen already."""
        gpus = request.uses_gpus
        if node_id in self._shut or (gpus and node_id in self._room.reserved):
            return None
        wanted = request.wanted.get(node_id)
        promised = self._room.unpromised[gpus][node_id]
        if wanted is not None:
            promised = self._room.promised(node_id, gpus, wanted)
        missing = request.amount - promised
        if chosen:
            missing -= sum(one.on(node_id, wanted) for one in chosen)
        if request.nodes > 1:
            over = 0
        if missing <= 0 and not over:
            return []
        there = self._on[gpus].get(node_id)
        if not there or missing > self._supply_of_all[gpus][node_id][0]:
            return None  # not even if all of them stopped
        parts: Iterable[_Part] = there.values()
        if chosen:
            parts = [part for part in parts if part[0] not in chosen]
        if wanted is not None:
            parts = [(one, one.on(node_id, wanted), amount, account) for one, _, amount, account in parts]
        eligible = self._eligible(job, parts, guaranteed and not over, chosen)
        return cheapest(eligible, missing, over, self._cost)

    def _eligible(
        self,
        job: WaitingJob,
        parts: Iterable[_Part],
        from_others: bool,
        chosen: Sequence[RunningJob],
    ) -> list[_Part]:
        """Those of a node's that the job goes before; of borrowers, no more than what they borrow.

        A job of its own project must have a lower priority, and be behind it in line: one that got its place
        by its age keeps it.
        """
        value, own = job.value, self._ledger.of(job)
        borrows: dict[str, int] = {}
        for one in chosen:
            account = self._ledger.of(one)
            borrows[one.project] = borrows.get(one.project, account.used - account.quota) - one.amount
        found: list[_Part] = []
        for part in parts:
            one, left, amount, account = part
            if account is own:
                if one.value < value and self._place[job.id] < place_of(one, one.queued_at, self._rules):
                    found.append(part)
            elif from_others and left:
                borrowed = borrows.get(one.project)
                if borrowed is None:
                    borrowed = account.used - account.quota
                if borrowed > 0:
                    found.append(part)
                borrows[one.project] = borrowed - amount
        return found


class _Heap:
    """The nodes for a kind of request by the least that room costs there: (cost, jobs, node)."""

    def __init__(self, prices: list[_Price]) -> None:
        self.seen = 0  # of those that became cheaper
        self._of = {price[-1]: price for price in prices}  # those that hold
        self._prices = prices  # with some that hold no longer
        heapify(prices)

    def offer(self, price: _Price) -> None:
        """Room there costs no less than this."""
        known = self._of.get(price[-1])
        if known is None or price < known:
            self._of[price[-1]] = price
            heappush(self._prices, price)

    def prices(self) -> Iterable[_Price]:
        return self._of.values()

    def first(self) -> _Price | None:
        while self._prices:
            price = self._prices[0]
            if self._of.get(price[-1]) is price:
                return price
            heappop(self._prices)
        return None

    def is_first(self, price: _Price) -> bool:
        """Whether the first node is so with this price, which is what room costs there."""
        self._of[price[-1]] = price
        heapreplace(self._prices, price)
        return self._prices[0] is price

    def remove_first(self) -> None:
        del self._of[heappop(self._prices)[-1]]


def cheapest(
    parts: Sequence[_Part], missing: int, over: int, cost_of: Mapping[str, float]
) -> list[RunningJob] | None:
    """Of jobs in order of cost, the first that suffice, without those not needed; or one that is cheaper.

    They leave as much as is `missing` on a node, and what they hold in all is what their project is `over`.
    """
    some: list[_Part] = []
    room = gain = 0
    for part in parts:
        some.append(part)
        room, gain = room + part[1], gain + part[2]
        if room >= missing and gain >= over:
            break
    else:
        return None
    if len(some) == 1:
        return [some[0][0]]
    for number in range(len(some) - 2, -1, -1):  # the last one is needed
        _, left, amount, _ = some[number]
        if room - left >= missing and gain - amount >= over:
            del some[number]
            room, gain = room - left, gain - amount
    chosen = [one for one, *_ in some]
    total = sum([cost_of[one.id] for one in chosen])
    for one, left, amount, _ in parts:
        if left >= missing and amount >= over:
            return [one] if cost_of[one.id] <= total else chosen
    return chosen


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

"""The plan: jobs that others made way for, then engine services, jobs within quotas, and borrowers.

An engine service that an administrator declared gets its GPUs before any other job. Each job is one gang (its
trainers and their engines): it starts whole or not at all. A job for which there is no room waits: for others
to give way to it, with nodes kept for it, or plainly. What is kept for one is not free for those behind it.

Long lines consist of few shapes. In the course of a plan less and less is free and more and more promised, so
once a job waits plainly, each one of its shape behind it waits for the same reason.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from math import inf

from powermean.contracts.attempts import AllocationView
from server.placement import engines, queue_order, reclaim
from server.placement.backfill import Calendar, reserve
from server.placement.fit import Index, Request, beside_shared_engine, best, never, own_engine
from server.placement.quotas import Ledger
from server.placement.room import Reservation, Room
from server.placement.state import (
    ClusterState,
    Placement,
    Plan,
    SharedEngine,
    Start,
    Wait,
    WaitingJob,
)

_Try = tuple[Request, SharedEngine | None]


def plan(state: ClusterState) -> Plan:
    """What to start, what to stop, and why the others wait. Never allocates anything twice."""
    planning = _Planning(state)
    for job in queue_order.promised_first(state.waiting):
        planning.decide(job)
    planning.place_engines()
    for job in planning.in_order():
        planning.decide(job)
    return planning.result


class _Planning:
    def __init__(self, state: ClusterState) -> None:
        self.state, self.result = state, Plan()
        self.index, self.catalogue = Index(state.nodes), engines.Catalogue(state.engines)
        self.room, self.ledger, self.calendar = Room(state), Ledger(state), Calendar(state)
        self.place = queue_order.places(state.waiting, state.rules)
        self.victims = reclaim.Victims(state, self.room, self.ledger, self.place)
        self.own_tries: dict[Hashable, tuple[_Try, ...]] = {}  # by what a job needs
        # by what a job needs, then by the only node that reaches the engine (None: all do)
        self.shared_tries: dict[Hashable, dict[str | None, tuple[Request, ...]]] = {}
        self.impatient = self._impatient()
        self.placed: set[str] = set()  # they start, or have a place kept
        self.reservations = 0
        self.too_long: dict[Request, float] = {}  # from how many seconds on jobs don't fit any more
        self.hopeless: dict[Request, Wait] = {}  # why not, of those that can't start in this plan
        self.settled: dict[Hashable, tuple[float, Wait]] = {}  # why jobs of a shape wait that run for longer

    def place_engines(self) -> None:
        for engine in self.state.unplaced:
            placed = engines.place(engine, self.state.nodes, self.index, self.room, self.calendar)
            if isinstance(placed, Placement):
                self.result.placements.append(placed)
            else:
                self.result.engines_why[engine.id] = placed

    def in_order(self) -> Iterable[WaitingJob]:
        """The other waiting jobs: those that their project's quota covers, then the rest."""
        others = [job for job in self.state.waiting if not job.promised]
        lines = queue_order.by_project(others, self.place)
        yield from queue_order.guaranteed_first(lines, self.ledger, self._passes)
        yield from queue_order.by_fair_share(lines, self.ledger)

    def decide(self, job: WaitingJob) -> None:
        """Start the job, have others give way to it, or note why it waits."""
        guaranteed, barred = self.ledger.is_guaranteed(job), self._is_barred(job)
        shape = self._shape(job, guaranteed, barred)
        seconds = inf if job.seconds is None else job.seconds
        if shape is not None and (known := self.settled.get(shape)) and seconds >= known[0]:
            self.result.why[job.id] = known[1]
            return
        found = self._find(job, guaranteed, barred)
        if isinstance(found, Start):
            self.result.starts.append(found)
            self._count(job)
            return
        self.result.why[job.id] = found
        if found.kept:
            self._count(job)
        elif shape is not None:
            self.settled[shape] = seconds, found

    def _count(self, job: WaitingJob) -> None:
        self.placed.add(job.id)
        if self.ledger.add(job).borrowed:
            self.victims.borrows(job.project, job.uses_gpus)

    def _tries(self, job: WaitingJob) -> tuple[_Try, ...] | Wait:
        """What would do for the job on nodes that are there, the best first."""
        if job.adapter is None:
            return self._own(job)
        shared = self.catalogue.choose(job, job.adapter, self.room)
        if isinstance(shared, Wait):
            return shared if job.adapter.required else self._own(job)
        tries = self._beside(job, shared)
        if not job.adapter.required:
            return tries + self._own(job)
        if not tries:
            name = shared[0].name
            if job.nodes > 1 and shared[0].reach is not None:
                alone = (
                    f"waiting for an engine that {job.nodes} nodes reach: only {shared[0].reach} has {name}"
                )
                return Wait("engine", alone)
            return Wait("engine", f"waiting for engine {name} on a node that can hold the trainer")
        return tries

    def _own(self, job: WaitingJob) -> tuple[_Try, ...]:
        """What the job could ask of the nodes that are there, with an engine of its own."""
        needs = job.needs
        if (own := self.own_tries.get(needs)) is None:
            requests = self.index.requests(own_engine(job), job.several)
            own = self.own_tries[needs] = tuple((request, None) for request in requests)
        return own

    def _beside(self, job: WaitingJob, engines: Iterable[SharedEngine]) -> tuple[_Try, ...]:
        """What the job could ask of the nodes beside each of these shared engines."""
        known = self.shared_tries.setdefault(job.needs, {})
        tries: list[_Try] = []
        for engine in engines:
            if engine.reach not in known:
                ask = beside_shared_engine(job, engine.reach)
                known[engine.reach] = self.index.requests(ask, job.several)
            tries += [(request, engine) for request in known[engine.reach]]
        return tuple(tries)

    def _find(self, job: WaitingJob, guaranteed: bool, barred: bool) -> Start | Wait:
        tries = self._tries(job)
        if isinstance(tries, Wait):
            return tries
        if not tries:
            return Wait("no_node", never(own_engine(job), self.state.nodes))
        account, amount = self.ledger.of(job), job.amount
        if account.limit is not None and amount > account.limit:
            return Wait(
                "limit", f"its project may have {_amount(account.limit, job)}, and the job needs {amount}"
            )
        if barred:
            return Wait("behind", "waiting behind an earlier job, for which its project has too little left")
        over, must_wait = account.over_limit(amount), account.waits_for_leavers(amount)
        if not must_wait and (start := self._start(job, tries)):
            return start
        return (
            (not over and self._keep_what_is_coming(job, tries))
            or (not over and must_wait and self._start(job, tries, and_wait=True))
            or self._make_way(job, tries, guaranteed)
            or (over and self._limited(job))
            or self._reserve(job, tries)
            or self._plainly(job, tries)
        )

    def _start(self, job: WaitingJob, tries: Sequence[_Try], and_wait: bool = False) -> Start | Wait | None:
        """What is free for the job, kept for it if it has to wait."""
        seconds = inf if job.seconds is None else job.seconds
        for request, engine in tries:
            if (limit := self.too_long.get(request)) is not None and seconds >= limit:
                continue
            chosen = None
            if vacated := [node_id for node_id in job.promised if node_id in request.able]:
                chosen = best(request, self.room, job.avoid, job.seconds, vacated)
            chosen = chosen or best(request, self.room, job.avoid, job.seconds)
            if chosen is not None:
                return (self._keep if and_wait else self._take)(job, chosen, request, engine)
            self.too_long[request] = seconds if self.room.reserved else 0.0
        return None

    def _take(
        self, job: WaitingJob, nodes: Iterable[str], request: Request, engine: SharedEngine | None
    ) -> Start:
        parts: list[AllocationView] = []
        for node_id in nodes:
            taken = self.room.take(node_id, request.gpus, request.wanted.get(node_id))
            parts.append(AllocationView(role="trainer", node_id=node_id, gpu_uuids=taken[: job.gpus]))
            if engine is None:
                own = taken[job.gpus :] if job.rollout_gpus else taken
                parts.append(AllocationView(role="rollout", node_id=node_id, gpu_uuids=own))
        if engine is not None:
            assert engine.node is not None
            self.room.adapters[engine.id].add(job.id)
            parts.append(AllocationView(role="rollout", node_id=engine.node, engine_id=engine.id))
        return Start(job.id, tuple(parts))

    def _keep_what_is_coming(self, job: WaitingJob, tries: Sequence[_Try]) -> Wait | None:
        """Others were told to give way already: keep what they leave, with what is free beside it."""
        if not (soon := self.room.nodes_with_coming[job.uses_gpus]):
            return None
        for request, engine in tries:
            able, amount, promised = request.able, request.amount, request.promised(self.room)
            fitting = [
                (node_id not in job.promised, room, node_id)
                for node_id in (able if request.nodes > 1 else soon & able)
                if (room := promised(node_id)) >= amount
            ]
            if len(fitting) >= request.nodes:
                kept = [node_id for *_, node_id in sorted(fitting)[: request.nodes]]
                return self._keep(job, kept, request, engine)
        return None

    def _make_way(self, job: WaitingJob, tries: Sequence[_Try], guaranteed: bool) -> Wait | None:
        """Tell those to give way that lose least by it."""
        for request, engine in tries:
            found = self.victims.find(job, request, guaranteed)
            if found is not None:
                nodes, stopped = found
                self.victims.stop(stopped)
                self.result.stops += reclaim.orders(job, stopped)
                kept = self._keep(job, nodes, request, engine)
                self.victims.left_over(stopped)
                return kept
        return None

    def _keep(
        self, job: WaitingJob, nodes: Iterable[str], request: Request, engine: SharedEngine | None
    ) -> Wait:
        for node_id in nodes:
            self.room.keep(node_id, request.uses_gpus, request.amount, request.wanted.get(node_id))
        if engine is not None:
            self.room.adapters[engine.id].add(job.id)
        text = "waiting for others to save their checkpoints and give way"
        return Wait("checkpoint", text, tuple(nodes))

    def _limited(self, job: WaitingJob) -> Wait:
        limit = self.ledger.share(job.project).limit(job.uses_gpus) or 0
        return Wait("limit", f"waiting for its project to use less: it may have {_amount(limit, job)}")

    def _reserve(self, job: WaitingJob, tries: Sequence[_Try]) -> Wait | None:
        """Keep the nodes on which the job can start soonest; one GPU that waits leaves nothing to be kept."""
        request, engine = tries[0]
        if request.gpus * request.nodes <= 1 or self.reservations >= self.state.rules.reservations:
            return None
        alike = [one for one, other in tries if other is engine]  # they differ in the type of GPU
        found = [kept for one in alike if (kept := reserve(one, self.index, self.room, self.calendar))]
        if not found:
            return None
        kept = min(found, key=_known_start)
        self.reservations += 1
        self.room.reserve(kept)
        if engine is not None:
            self.room.adapters[engine.id].add(job.id)
        at = next(iter(kept.values())).at
        return Wait("reserved", _busy(request), tuple(kept), at)

    def _plainly(self, job: WaitingJob, tries: Sequence[_Try]) -> Wait:
        request = tries[0][0]
        if request not in self.hopeless:
            wait = self._look_for_room(request)
            if wait is None:
                return Wait("behind", "waiting behind earlier jobs")
            self.hopeless[request] = wait
        return self.hopeless[request]

    def _look_for_room(self, request: Request) -> Wait | None:
        """What is in the way for the rest of the plan; None: nothing but what is kept for others."""
        there = [self.index.nodes[node_id] for node_id in request.possible]
        closed = ", ".join(node.closed for node in there if node.closed)
        if all(node.full_disk or node.closed for node in there):
            if closed:
                return Wait("closed", f"waiting for a node: {closed}")
            return Wait(
                "disk", f"waiting for room: the disk of {there[0].full_disk} on {there[0].id} is full"
            )
        fitting = sum(request.free(node.id, self.room) >= request.amount for node in there)
        return None if fitting >= request.nodes else Wait("busy", _busy(request))

    def _impatient(self) -> dict[tuple[str, bool], WaitingJob]:
        """By project and resource: the largest job that has waited for too long as its project uses too much.

        Those behind it let it by, and of those before it there are only so many. GPUs idle for that, so as
        many have their turn as have nodes kept for them: those that wait longest.
        """
        found: dict[tuple[str, bool], tuple[tuple[int, queue_order.Place], WaitingJob]] = {}
        longest = self.state.now - self.state.rules.patience_s
        for job in self.state.waiting:
            if job.queued_at > longest:
                continue
            passed = job.amount > 1 and self.ledger.is_coverable(job)
            if passed or self.ledger.is_tight(job):
                key = job.project, job.uses_gpus
                weight = -job.amount, self.place[job.id]
                if (key not in found or weight < found[key][0]) and self._has_somewhere(job):
                    found[key] = weight, job
        held = sorted((job for _, job in found.values()), key=lambda job: (job.queued_at, job.id))
        turns = [job.id for job in held if not self.ledger.is_tight(job)][: self.state.rules.reservations]
        return {key: job for key, (_, job) in found.items() if self.ledger.is_tight(job) or job.id in turns}

    def _has_somewhere(self, job: WaitingJob) -> bool:
        """Whether anything but what others use keeps the job from running."""
        tries = self._tries(job)
        if isinstance(tries, Wait):
            return False
        nodes = (self.index.nodes[node_id] for request, _ in tries for node_id in request.possible)
        return any(not (node.closed or node.full_disk) for node in nodes)

    def _passes(self, job: WaitingJob) -> bool:
        """Whether the job is behind such a one."""
        first = self.impatient.get((job.project, job.uses_gpus))
        return first is not None and self.place[job.id] > self.place[first.id]

    def _is_barred(self, job: WaitingJob) -> bool:
        """Whether the job is behind one that needs its project to use less, or would take its part."""
        if not self.impatient or not self._passes(job):
            return False
        first = self.impatient[job.project, job.uses_gpus]
        if first.id in self.placed:
            return self.ledger.is_coverable(first) and not self.ledger.is_guaranteed(job)
        needs_quota = self.ledger.is_coverable(first) and not self.ledger.is_guaranteed(first)
        return needs_quota or self.ledger.of(first).over_limit(first.amount) > 0

    def _shape(self, job: WaitingJob, guaranteed: bool, barred: bool) -> Hashable:
        """Equal for jobs that wait for the same reason; None for one whose reason is its own."""
        if job.promised or job.id in self.catalogue.has_slot:
            return None
        adapter = job.adapter
        if adapter is None:
            return job.project, job.value, guaranteed, barred, job.needs
        serving = self.catalogue.serving(adapter, job.project).ids
        if adapter.required and not serving:
            return None  # the reason names its rank or its tokens
        return job.project, job.value, guaranteed, barred, job.needs, adapter.required, serving


def _known_start(kept: Mapping[str, Reservation]) -> float:
    return min(inf if one.at is None else one.at for one in kept.values())


def _amount(count: int, job: WaitingJob) -> str:
    what = "GPU" if job.uses_gpus else "CPU slot"
    return f"{count} {what}{'s' * (count != 1)}"


def _busy(request: Request) -> str:
    if not request.uses_gpus:
        on = f" on each of {request.nodes} nodes" if request.nodes > 1 else ""
        return f"waiting for a free CPU slot{on}"
    gpus = f"{request.gpus} free GPU{'s' * (request.gpus > 1)} on one node"
    return (
        f"waiting for {gpus}"
        if request.nodes == 1
        else f"waiting for {gpus}, on {request.nodes} nodes at once"
    )

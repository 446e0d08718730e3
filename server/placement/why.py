"""Why a job waits, for people: what it needs and lacks, who goes first, what would help, when it may start.

A sentence that names another project or its job says whose it is, so that those who may not see that project
get the sentence without names.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

from server.placement import queue_order
from server.placement.estimate import BASIS, starts
from server.placement.fit import NAMED, Ask, Index, Request, own_engine
from server.placement.quotas import Ledger
from server.placement.state import ClusterState, Plan, RunningJob, Share, Wait, WaitingJob


@dataclass(frozen=True)
class Part:
    """A sentence. `project`: whose names it has; who may not see that gets `anonymous`.

    Neighbours with the same `lead` become one sentence that begins with it.
    """

    text: str
    project: str | None = None
    anonymous: str = ""
    job_id: str | None = None
    lead: str = ""


@dataclass(frozen=True)
class Why:
    """Why one job waits. `position` counts from 1; `start_at` is in seconds since the epoch, where known."""

    kind: str
    text: str
    project: str
    position: int
    ahead: int
    parts: tuple[Part, ...]
    help: str | None = None
    start_at: float | None = None
    basis: str | None = None

    def words(self, may_see: Callable[[str], bool]) -> str:
        """All of it, for somebody who may see these projects."""
        sentences: list[tuple[str, list[str]]] = []  # each with its lead
        for part in self.parts:
            text = part.text if part.project is None or may_see(part.project) else part.anonymous
            if not (part.lead and sentences and sentences[-1][0] == part.lead):
                sentences.append((part.lead, []))
            sentences[-1][1].append(text)
        said = ((lead, ", ".join(dict.fromkeys(filter(None, texts)))) for lead, texts in sentences)
        return "; ".join(dict.fromkeys(lead + text for lead, text in said if text))


def explain(state: ClusterState, plan: Plan, first: int = 1) -> dict[str, Why]:
    """Why each job of the plan waits; the first one's position is `first`."""
    order = line(state)
    waiting = [job for job in order if job.id in plan.why]
    times = starts(state, plan, order)
    index, ledger, free = Index(state.nodes), _ledger(state, plan), _free(state, plan)
    nearest = cache(lambda ask: _nodes(ask, index, free))
    in_use = cache(lambda ask: _in_use(ask, index, state.running))
    running = {one.project for one in state.running}
    kept_for = {(node_id, job.uses_gpus): job for job in waiting for node_id in plan.why[job.id].kept}
    owners, leavers = _owners(waiting, ledger, plan), _leavers(state, plan)
    found: dict[str, Why] = {}
    before = {True: _Before(), False: _Before()}
    for number, job in enumerate(waiting, start=first):
        wait = plan.why[job.id]
        ahead = before[job.uses_gpus]
        parts = [_need(job, wait, len(index.alike(own_engine(job), job.several)) > 1)]
        if wait.kind in ("busy", "reserved", "behind"):
            for node_id, count in nearest(own_engine(job)):
                parts.append(_has_free(node_id, count, kept_for.get((node_id, job.uses_gpus), job), job))
            if not nearest(own_engine(job)):
                parts += in_use(own_engine(job))
            parts += _kept(wait)
            parts += _go_first([project for project in owners if project != job.project][:NAMED])
            parts += _ahead(ahead, job)
        if wait.kind == "checkpoint":
            parts += map(_gives_way, leavers[job.id])
        beside_others = running != {job.project} or ahead.count > ahead.of_project[job.project]
        at = times.get(job.id)
        found[job.id] = Why(
            kind=wait.kind,
            text=wait.text,
            project=job.project,
            position=number,
            ahead=ahead.count,
            parts=tuple(parts),
            help=_help(job, wait, ledger, state, beside_others),
            start_at=at,
            basis=BASIS if at is not None else None,
        )
        ahead.add(job)
    return found


class _Before:
    """The jobs before one in the line: how many, and the last few, by project and in all."""

    def __init__(self) -> None:
        self.count = 0
        self.of_project: Counter[str] = Counter()
        self.last: dict[str, deque[tuple[int, WaitingJob]]] = {}

    def add(self, job: WaitingJob) -> None:
        self.last.setdefault(job.project, deque(maxlen=NAMED)).append((self.count, job))
        self.count += 1
        self.of_project[job.project] += 1

    def own(self, project: str) -> list[WaitingJob]:
        """The last few of the project."""
        return [job for _, job in self.last.get(project, ())]

    def others(self, project: str) -> list[WaitingJob]:
        """The last few of all other projects."""
        some = (one for other, jobs in self.last.items() if other != project for one in jobs)
        return [job for _, job in sorted(some, key=lambda one: one[0])[-NAMED:]]


def line(state: ClusterState) -> list[WaitingJob]:
    """The waiting jobs in the order in which they would start if each had room in its turn."""
    ledger, place = Ledger(state), queue_order.places(state.waiting, state.rules)
    found = queue_order.promised_first(state.waiting)
    for job in found:
        ledger.add(job)
    lines = queue_order.by_project((job for job in state.waiting if not job.promised), place)
    for job in queue_order.guaranteed_first(lines, ledger, lambda _: False):
        ledger.add(job)
        found.append(job)
    for job in queue_order.by_fair_share(lines, ledger):
        ledger.add(job)
        found.append(job)
    return found


def _ledger(state: ClusterState, plan: Plan) -> Ledger:
    """What is used once the plan's starts have happened."""
    ledger, started = Ledger(state), {start.job_id for start in plan.starts}
    for job in state.waiting:
        if job.id in started:
            ledger.add(job)
    return ledger


def _free(state: ClusterState, plan: Plan) -> dict[tuple[str, bool], int]:
    """What is free on each node after the plan's starts."""
    found: dict[tuple[str, bool], int] = {}
    for node in state.nodes:
        found[node.id, True], found[node.id, False] = len(node.free_gpus), node.free_cpu_slots
    for start in plan.starts:
        holds: dict[str, set[str]] = {}
        for part in start.allocations:
            if part.engine_id is None:
                holds.setdefault(part.node_id, set()).update(part.gpu_uuids)
        for node_id, gpus in holds.items():
            found[node_id, bool(gpus)] -= len(gpus) or 1
    return found


def _owners(waiting: Sequence[WaitingJob], ledger: Ledger, plan: Plan) -> list[str]:
    """Projects with a job that their quota covers and that could run, in the order of the line."""
    able = (job for job in waiting if plan.why[job.id].kind not in ("no_node", "engine", "limit"))
    return list(dict.fromkeys(job.project for job in able if ledger.is_guaranteed(job)))


def _need(job: WaitingJob, wait: Wait, of_one_type: bool) -> Part:
    """What it needs. `of_one_type`: the nodes have several types of GPU that would do."""
    if wait.kind not in ("busy", "reserved", "behind", "checkpoint"):
        return Part(wait.text)
    if not job.uses_gpus:
        return Part("needs a CPU slot" + (f" on each of {job.nodes} nodes" if job.nodes > 1 else ""))
    count = job.gpus + job.rollout_gpus
    kind = f" {job.gpu_type}" if job.gpu_type else ""
    text = f"needs {count}{kind} GPU{'s' * (count > 1)}"
    if count > 1 or job.nodes > 1:
        text += " on one node" if job.nodes == 1 else f" on each of {job.nodes} nodes"
    return Part(text + (", all of one type" if of_one_type else ""))


def _nodes(ask: Ask, index: Index, free: dict[tuple[str, bool], int]) -> list[tuple[str, int]]:
    """The nodes that come nearest, and what is free there."""
    gpus = ask.uses_gpus
    some = sorted((-free[node_id, gpus], node_id) for node_id in index.request(ask).possible)
    return [(node_id, -count) for count, node_id in some[:NAMED] if count]


def _in_use(ask: Ask, index: Index, running: Sequence[RunningJob]) -> list[Part]:
    """Who has what it needs, where nothing of that is free."""
    request = index.request(ask)
    if (count := len(request.able)) > NAMED:
        return [Part(f"none of the {count} nodes that could run it has one free")]
    held = [one for one in running if any(_would_do(request, *part) for part in one.holds)]
    part = partial(Part, lead="in use by: ")
    parts = [part(one.id, one.project, "a job of another project", one.id) for one in held[:NAMED]]
    return parts + [part(f"{len(held) - NAMED} more")] * (len(held) > NAMED)


def _would_do(request: Request, node_id: str, gpus: Sequence[str]) -> bool:
    """Whether what a running job holds there is of use for the request."""
    if node_id not in request.able or bool(gpus) != request.uses_gpus:
        return False
    wanted = request.wanted.get(node_id)
    return wanted is None or not wanted.isdisjoint(gpus)


def _has_free(node_id: str, count: int, kept_for: WaitingJob, job: WaitingJob) -> Part:
    said = f"{node_id} has {count} free"
    if kept_for is job:
        return Part(said)
    others = f"{said}, kept for a job of another project"
    return Part(f"{said}, kept for {kept_for.id}", kept_for.project, others, kept_for.id)


def _kept(wait: Wait) -> list[Part]:
    if not wait.kept:
        return []
    return [Part(f"{', '.join(wait.kept)} {'is' if len(wait.kept) == 1 else 'are'} kept for it")]


def _go_first(projects: Sequence[str]) -> list[Part]:
    said = "is under its quota and goes first"
    if len(projects) == 1:
        return [Part(f"{projects[0]} {said}", projects[0], f"another project {said}")]
    lead = "projects under their quotas go first: "
    return [Part(project, project, "others", lead=lead) for project in projects]


def _ahead(ahead: _Before, job: WaitingJob) -> list[Part]:
    """The jobs just before it: its own project's first, since those are its people's to change."""
    own = ahead.own(job.project)
    named = (own + ahead.others(job.project))[:NAMED]
    part = partial(Part, lead="ahead of it: ")
    of_others = ahead.count - ahead.of_project[job.project]
    anonymous = f"{_jobs(of_others)} of other projects"
    parts = [
        part(f"{other.id} (priority {other.priority})", other.project, anonymous, other.id) for other in named
    ]
    if more := ahead.of_project[job.project] - len(own):
        parts.append(part(f"{more} more of {job.project}"))
    if more := of_others - (len(named) - len(own)):
        last = named[-1] if len(named) > len(own) else None  # whose reader knows their number already, or not
        parts.append(part(f"{more} more of other projects", last.project if last else None))
    return parts


def _jobs(count: int) -> str:
    return f"{count} job{'s' * (count != 1)}"


def _leavers(state: ClusterState, plan: Plan) -> dict[str, list[RunningJob]]:
    """Who gives way, by the job to which."""
    made_for = {stop.job_id: stop.made_for for stop in plan.stops}
    found: dict[str, list[RunningJob]] = defaultdict(list)
    for one in state.running:
        job_id = made_for.get(one.id, one.stops_for if one.stopping else None)
        if job_id is not None:
            found[job_id].append(one)
    return found


def _gives_way(one: RunningJob) -> Part:
    said = "saves a checkpoint and gives way to it"
    return Part(f"{one.id} of {one.project} {said}", one.project, f"a job of another project {said}", one.id)


def _help(
    job: WaitingJob, wait: Wait, ledger: Ledger, state: ClusterState, beside_others: bool
) -> str | None:
    """What its people, or an administrator, could do. `beside_others`: other projects run or go first."""
    share: Share = ledger.share(job.project)
    if wait.kind == "limit":
        used = ledger.used(job.project, job.uses_gpus)
        return (
            f"End one of the project's jobs (it has {used} in use), or have an administrator raise its limit."
        )
    if wait.kind == "no_node":
        most = max((node.gpus for node in state.nodes), default=0)
        if job.nodes > 1:
            return "Ask for fewer nodes (resources.nodes), or connect more that have what it asks for."
        if job.uses_gpus and most:
            return f"Ask for at most {most} GPU{'s' * (most > 1)} on a node, or connect a node that has more."
        return "Connect a node that has what it asks for."
    if wait.kind == "closed":
        return "An administrator can open the node again."
    if wait.kind == "disk":
        return "Make room on the node's disk."
    if wait.kind == "engine":
        return "Declare an engine that serves it, or let the job start its own (rollout.sharing)."
    if wait.kind in ("busy", "behind", "reserved"):
        if job.amount > 1:
            return f"A job of fewer {'GPUs' if job.uses_gpus else 'nodes'} finds room sooner."
        if not beside_others:
            return "It starts when one of the project's own jobs has ended or is paused."
        if not share.quota(job.uses_gpus):
            return "A quota for the project puts its jobs before those that borrow."
    return None

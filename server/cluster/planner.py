"""Which engine services run where, and which waiting jobs start where: a pure function of a cluster's state.

Engine services come first: what an administrator declared gets its GPUs before any job. Jobs are planned in
order of submission, each as one gang (its trainer and its engine). A LoRA job takes a slot in a ready engine
service for its base model if it may and can; otherwise it gets its own engine.

Whatever waits for GPUs or slots that exist but are taken reserves the nodes that it could use against those
behind it, so that small jobs can't starve a large one; CPU jobs and GPU jobs queue separately. A job that no
live node could ever hold blocks nobody, and neither does one that waits for an engine service.

Long lines consist of few shapes. In the course of a plan less and less is free and more and more reserved, so
once a job waits and that reserves nothing new, each one of its shape behind it waits for the same reason.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from powermean.contracts.attempts import AllocationView, GpuInfo
from server.jobs.demand import AdapterNeed

VLLM = "vllm"


@dataclass(frozen=True)
class NodeCapacity:
    """A live node: what it has, and how much of it is free."""

    id: str
    cpu_slots: int
    gpus: int
    free_cpu_slots: int
    free_gpus: tuple[str, ...]
    engines: tuple[str, ...] = ()  # installed there
    full_disk: str | None = None  # the folder for which it takes nothing new
    closed: str | None = None  # for people: `n3 is draining (kernel update)`; it takes nothing new
    labels: frozenset[tuple[str, str]] = frozenset()
    gpu_info: tuple[GpuInfo, ...] = ()  # of the GPUs that may be used
    unhealthy: tuple[str, ...] = ()  # why each of the others may not, for people


@dataclass(frozen=True)
class WaitingJob:
    """A queued job. 0 `gpus` means a CPU slot; `avoid` are the nodes on which its last attempt lapsed."""

    id: str
    gpus: int  # of the trainer
    rollout_gpus: int = 0  # of its own engine; 0: the engine shares the trainer's
    avoid: frozenset[str] = frozenset()
    vllm: bool = False  # its own engine must be vLLM
    adapter: AdapterNeed | None = None  # None: it gets its own engine
    project: str = ""
    gpu_type: str | None = None  # part of its GPUs' name, in small letters
    gpu_memory_mb: int = 0  # of each GPU, at least
    labels: tuple[tuple[str, str], ...] = ()  # of its trainer's node

    @property
    def kind(self) -> "Kind":
        return Kind(self.vllm, self.gpu_type, self.gpu_memory_mb, self.labels)


class Kind(NamedTuple):
    """What a job asks of a node and its GPUs, beside their number."""

    vllm: bool = False
    gpu_type: str | None = None
    gpu_memory_mb: int = 0
    labels: tuple[tuple[str, str], ...] = ()

    def takes(self, node: NodeCapacity) -> bool:
        return (not self.vllm or VLLM in node.engines) and node.labels.issuperset(self.labels)

    def gpus(self, node: NodeCapacity) -> frozenset[str]:
        """Those of the node's GPUs that fit."""
        return frozenset(gpu.uuid for gpu in node.gpu_info if self._fits(gpu))

    @property
    def any_gpu(self) -> bool:
        return self.gpu_type is None and not self.gpu_memory_mb

    def _fits(self, gpu: GpuInfo) -> bool:
        named = self.gpu_type is None or self.gpu_type in gpu.name.lower()
        return named and gpu.memory_mb >= self.gpu_memory_mb

    def __str__(self) -> str:
        asked = [f"{name}={value}" for name, value in self.labels]
        if self.gpu_type is not None:
            asked.append(f"GPUs called {self.gpu_type}")
        if self.gpu_memory_mb:
            asked.append(f"{self.gpu_memory_mb / 1024:.4g} GiB a GPU")
        return ", ".join([*asked, *(["vLLM"] if self.vllm else [])])


ANY = Kind()


@dataclass(frozen=True)
class WaitingEngine:
    """An engine service without a node. With 0 `gpus` it serves on the CPU and takes no slot."""

    id: str
    gpus: int
    node: str | None = None  # the only node that may run it


@dataclass(frozen=True)
class SharedEngine:
    """An engine service from a job's point of view."""

    id: str
    name: str
    model: str
    dtype: str
    state: str  # `ready` only on a live node
    max_adapters: int
    max_lora_rank: int
    max_tokens: int | None = None
    node: str | None = None
    reach: str | None = None  # the only node whose trainers reach it; None: all
    jobs: frozenset[str] = frozenset()  # jobs with a slot
    projects: frozenset[str] = frozenset()  # whose jobs it serves; none named: all

    def is_open_to(self, project: str) -> bool:
        return not self.projects or project in self.projects


@dataclass(frozen=True)
class ClusterState:
    """Everything a plan depends on: live nodes, queued jobs in order of submission, engine services."""

    nodes: Sequence[NodeCapacity]
    waiting: Sequence[WaitingJob]
    engines: Sequence[SharedEngine] = ()
    unplaced: Sequence[WaitingEngine] = ()


@dataclass(frozen=True)
class Start:
    """A job and the gang that it gets."""

    job_id: str
    allocations: tuple[AllocationView, ...]


@dataclass(frozen=True)
class Placement:
    """An engine service and what it gets."""

    engine_id: str
    node_id: str
    gpu_uuids: tuple[str, ...]


@dataclass
class Plan:
    """What to start, and why the others wait (for people)."""

    starts: list[Start] = field(default_factory=list)
    why: dict[str, str] = field(default_factory=dict)
    placements: list[Placement] = field(default_factory=list)
    engines_why: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Wait:
    """Why something waits, and the nodes reserved for it meanwhile."""

    why: str
    nodes: frozenset[str] = frozenset()


class _Free:
    """What is left of the cluster while planning."""

    def __init__(self, state: ClusterState) -> None:
        self.slots = {node.id: node.free_cpu_slots for node in state.nodes}
        self.gpus = {node.id: list(node.free_gpus) for node in state.nodes}
        self.kept: dict[bool, set[str]] = {True: set(), False: set()}  # by line: does it need GPUs?
        self.jobs = {engine.id: set(engine.jobs) for engine in state.engines}
        nodes = {node.id: node for node in state.nodes}
        self.of_kind = cache(lambda node_id, kind: kind.gpus(nodes[node_id]))
        self.full = {node.id: node.full_disk for node in state.nodes if node.full_disk}
        self.closed = {node.id: node.closed for node in state.nodes if node.closed}
        self.engines = Counter(engine.node for engine in state.engines)

    def fitting(self, node_id: str, kind: Kind) -> list[str]:
        """The node's free GPUs of this kind."""
        free = self.gpus[node_id]
        return free if kind.any_gpu else [uuid for uuid in free if uuid in self.of_kind(node_id, kind)]

    def choose(
        self,
        gpus: int,
        nodes: Iterable[str],
        avoid: frozenset[str] = frozenset(),
        kind: Kind = ANY,
    ) -> str | None:
        """The node that fits most tightly, so that large gaps stay large; nodes to avoid come last.

        CPU jobs share a node's cores, so they are spread.
        """
        free = {id_: len(self.fitting(id_, kind)) if gpus else self.slots[id_] for id_ in nodes}
        fitting = [id_ for id_, amount in free.items() if amount >= max(1, gpus)]
        tight = 1 if gpus else -1
        return min(fitting, key=lambda id_: (id_ in avoid, tight * free[id_], id_), default=None)

    def take(self, node_id: str, gpus: int, kind: Kind = ANY) -> tuple[str, ...]:
        """GPUs of the node, or (0) one of its CPU slots."""
        if not gpus:
            self.slots[node_id] -= 1
            return ()
        taken = tuple(self.fitting(node_id, kind)[:gpus])
        self.gpus[node_id] = [uuid for uuid in self.gpus[node_id] if uuid not in taken]
        return taken


class _Index:
    """The cluster by what is asked of it; nothing here changes while planning."""

    def __init__(self, state: ClusterState) -> None:
        self.nodes = state.nodes
        self.engines: dict[tuple[str, str], list[SharedEngine]] = defaultdict(list)
        for engine in state.engines:
            self.engines[engine.model, engine.dtype].append(engine)
        self.has_slot = frozenset(job_id for engine in state.engines for job_id in engine.jobs)
        self.able = cache(self._able)
        self.holding = cache(self._holding)
        self.serving = cache(self._serving)

    def _able(self, kind: Kind) -> tuple[NodeCapacity, ...]:
        """The nodes on which jobs of this kind can have their own engine."""
        return tuple(node for node in self.nodes if kind.takes(node))

    def _holding(self, gpus: int, kind: Kind) -> frozenset[str]:
        return _holding(gpus, self.able(kind), kind)

    def _serving(self, need: AdapterNeed, project: str) -> tuple[SharedEngine, ...]:
        """The engines that fit, ready or not."""
        of_model = self.engines.get((need.model, need.dtype), ())
        return tuple(e for e in of_model if e.is_open_to(project) and _serves(e, need))

    def shape(self, job: WaitingJob) -> Hashable:
        """Equal for jobs that wait for the same reason; None for one whose reason is its own."""
        if job.id in self.has_slot:
            return None
        if job.adapter is None:
            return job.gpus, job.rollout_gpus, job.kind
        serving = self.serving(job.adapter, job.project)
        if job.adapter.required and not serving:
            return None  # the reason names its rank or its tokens
        names = tuple(engine.id for engine in serving)
        return job.gpus, job.rollout_gpus, job.kind, job.adapter.required, names


def plan(state: ClusterState) -> Plan:
    """Place engine services, then jobs, first come, first served. Never allocates anything twice."""
    result, free, index = Plan(), _Free(state), _Index(state)
    settled: dict[Hashable, str] = {}  # why jobs of a shape wait
    for engine in state.unplaced:
        placed = _place(engine, state.nodes, free)
        if isinstance(placed, Placement):
            result.placements.append(placed)
        else:
            result.engines_why[engine.id] = placed.why
            free.kept[True] |= placed.nodes
    for job in state.waiting:
        shape = index.shape(job)
        if shape in settled:
            result.why[job.id] = settled[shape]
            continue
        found = _find(job, index, free)
        if isinstance(found, Start):
            result.starts.append(found)
            continue
        result.why[job.id] = found.why
        kept = free.kept[job.gpus > 0]
        if shape is not None and found.nodes <= kept:
            settled[shape] = found.why
        kept |= found.nodes
    return result


def still_free(
    starts: Iterable[Start], nodes: Iterable[NodeCapacity], engines: Iterable[SharedEngine]
) -> list[Start]:
    """Those of an earlier plan's starts that still find room, each counted against those behind it."""
    slots: dict[str, int] = {}
    gpus: dict[str, set[str]] = {}
    for node in nodes:
        slots[node.id], gpus[node.id] = node.free_cpu_slots, set(node.free_gpus)
    room = {e.id: (e.node, e.max_adapters, set(e.jobs)) for e in engines if e.state == "ready"}
    found = []
    for start in starts:
        trainer, rollout = start.allocations
        wanted = {*trainer.gpu_uuids, *rollout.gpu_uuids}
        if not (wanted <= gpus.get(trainer.node_id, set()) if wanted else slots.get(trainer.node_id, 0) > 0):
            continue
        if rollout.engine_id is not None:
            node_id, most, jobs = room.get(rollout.engine_id, (None, 0, set()))
            if node_id != rollout.node_id or len(jobs - {start.job_id}) >= most:
                continue
            jobs.add(start.job_id)
        if wanted:
            gpus[trainer.node_id] -= wanted
        else:
            slots[trainer.node_id] -= 1
        found.append(start)
    return found


def _place(engine: WaitingEngine, nodes: Sequence[NodeCapacity], free: _Free) -> Placement | _Wait:
    allowed = [node for node in nodes if engine.node in (None, node.id)]
    if not allowed:
        return _Wait(f"waiting for {f'node {engine.node}' if engine.node else 'a node'} to connect")
    fitting = [node for node in allowed if VLLM in node.engines and node.gpus >= engine.gpus]
    if not fitting:
        needs = f"vLLM and {engine.gpus} GPUs" if engine.gpus else "vLLM"
        if engine.node:
            return _Wait(f"waiting for node {engine.node} to have {needs}")
        return _Wait(f"waiting for a node with {needs}: no connected node has that")
    if all(node.closed for node in fitting):
        return _Wait(f"waiting for a node: {fitting[0].closed}")
    if not engine.gpus:
        fitting = [node for node in fitting if node.closed is None]
        spread = min(fitting, key=lambda node: (free.engines[node.id], -node.cpu_slots, node.id))
        free.engines[spread.id] += 1
        return Placement(engine.id, spread.id, ())
    possible = frozenset(node.id for node in fitting)
    node_id = free.choose(engine.gpus, sorted(possible))
    if node_id is None:
        return _Wait(f"waiting for {engine.gpus} free GPUs on a node with vLLM", possible)
    return Placement(engine.id, node_id, free.take(node_id, engine.gpus))


def could_run(job: WaitingJob, node: NodeCapacity) -> bool:
    """Whether the empty node could hold the job, with its own engine unless the job must share one."""
    if job.adapter is not None and job.adapter.required:
        trainer = job.kind._replace(vllm=False)
        return trainer.takes(node) and bool(_holding(job.gpus, [node], trainer))
    return job.kind.takes(node) and bool(_holding(job.gpus + job.rollout_gpus, [node], job.kind))


def _find(job: WaitingJob, index: _Index, free: _Free) -> Start | _Wait:
    if job.adapter is not None:
        shared = _on_shared_engine(job, job.adapter, index, free)
        if isinstance(shared, Start) or job.adapter.required:
            return shared
    return _with_own_engine(job, index, free)


def _with_own_engine(job: WaitingJob, index: _Index, free: _Free) -> Start | _Wait:
    kind, gpus = job.kind, job.gpus + job.rollout_gpus
    if index.nodes and not index.able(kind):
        return _Wait(f"waiting for a node with {kind}: no connected node has it")
    possible = index.holding(gpus, kind)
    if not possible:
        return _Wait(_never(gpus, index.able(kind), kind))
    node_id = free.choose(gpus, possible - free.kept[gpus > 0], job.avoid, kind)
    if node_id is None:
        return _Wait(_busy(gpus, possible, free), possible)
    taken = free.take(node_id, gpus, kind)
    engines = taken[job.gpus :] if job.rollout_gpus else taken
    trainer = AllocationView(role="trainer", node_id=node_id, gpu_uuids=taken[: job.gpus])
    rollout = AllocationView(role="rollout", node_id=node_id, gpu_uuids=engines)
    return Start(job.id, (trainer, rollout))


def _on_shared_engine(job: WaitingJob, need: AdapterNeed, index: _Index, free: _Free) -> Start | _Wait:
    serving = index.serving(need, job.project)
    if not serving:
        of_model = index.engines.get((need.model, need.dtype))
        if not of_model:
            return _Wait(f"waiting for an engine to be declared for {need.model} in {need.dtype}")
        ours = [engine for engine in of_model if engine.is_open_to(job.project)]
        if not ours:
            return _Wait(f"waiting for an engine that serves project {job.project}")
        return _Wait(f"waiting for an engine that fits: {_limits(ours[0], need)}")
    ready = [e for e in serving if e.state == "ready"]
    if not ready:
        return _Wait(f"waiting for engine {serving[0].name} to be ready ({serving[0].state})")
    with_slot = [e for e in ready if len(free.jobs[e.id] - {job.id}) < e.max_adapters]
    if not with_slot:
        return _Wait(f"waiting for a free slot in engine {ready[0].name} (all {ready[0].max_adapters} taken)")
    wanted: frozenset[str] = frozenset()
    kind = job.kind._replace(vllm=False)  # of the trainer's node
    for engine in sorted(with_slot, key=lambda e: (e.node in job.avoid, len(free.jobs[e.id]), e.id)):
        possible = index.holding(job.gpus, kind)
        if engine.reach is not None:
            possible &= {engine.reach}
        node_id = free.choose(job.gpus, possible - free.kept[job.gpus > 0], job.avoid, kind)
        if node_id is not None:
            return _share(job, node_id, engine, free)
        wanted |= possible
    if not wanted:
        return _Wait(f"waiting for engine {with_slot[0].name} on a node that can hold the trainer")
    return _Wait(_busy(job.gpus, wanted, free), wanted)


def _share(job: WaitingJob, node_id: str, engine: SharedEngine, free: _Free) -> Start:
    assert engine.node is not None
    free.jobs[engine.id].add(job.id)
    trainer = AllocationView(
        role="trainer", node_id=node_id, gpu_uuids=free.take(node_id, job.gpus, job.kind)
    )
    rollout = AllocationView(role="rollout", node_id=engine.node, engine_id=engine.id)
    return Start(job.id, (trainer, rollout))


def _serves(engine: SharedEngine, need: AdapterNeed) -> bool:
    fits = engine.max_tokens is None or engine.max_tokens >= need.tokens
    near = not need.same_host or engine.reach is not None
    return fits and near and engine.max_lora_rank >= need.rank


def _limits(engine: SharedEngine, need: AdapterNeed) -> str:
    if engine.max_lora_rank < need.rank:
        return f"{engine.name} takes ranks up to {engine.max_lora_rank}, the job has {need.rank}"
    if engine.max_tokens is not None and engine.max_tokens < need.tokens:
        return f"{engine.name} takes {engine.max_tokens} tokens, the job has up to {need.tokens}"
    return f"{engine.name} may be on another host, where shm does not reach (set rollout.publish to auto)"


def _holding(gpus: int, nodes: Iterable[NodeCapacity], kind: Kind) -> frozenset[str]:
    """The nodes that have this many GPUs of the kind in all, or (for 0) any CPU slot."""
    return frozenset(n.id for n in nodes if (_number(n, kind) >= gpus if gpus else n.cpu_slots > 0))


def _number(node: NodeCapacity, kind: Kind) -> int:
    return node.gpus if kind.any_gpu else len(kind.gpus(node))


def _never(gpus: int, nodes: Sequence[NodeCapacity], kind: Kind) -> str:
    """Why no node could hold the job, even if it were empty."""
    if not nodes:
        return "waiting for a node: none is connected"
    if gpus:
        most = max(_number(node, kind) for node in nodes)
        wanted = "a GPU" if gpus == 1 else f"{gpus} GPUs"
        of_kind = "" if kind.any_gpu else f" ({kind._replace(vllm=False)})"
        ill = [f"{node.id}: {why}" for node in nodes for why in node.unhealthy]
        said = f"waiting for a node with {wanted}{of_kind}: the largest connected one has {most}"
        return f"{said} (left out: {', '.join(ill)})" if ill else said
    return "waiting for a node with CPU slots: no connected node has any"


def _busy(gpus: int, possible: frozenset[str], free: _Free) -> str:
    if possible <= free.full.keys():
        node_id = min(possible)
        return f"waiting for room: the disk of {free.full[node_id]} on {node_id} is full"
    if possible <= free.full.keys() | free.closed.keys():
        closed = [free.closed[id_] for id_ in sorted(possible & free.closed.keys())]
        return f"waiting for a node: {', '.join(closed)}"
    if possible <= free.kept[gpus > 0]:
        return "waiting behind earlier jobs"
    if gpus:
        return f"waiting for {gpus} free GPUs on one node"
    return "waiting for a free CPU slot"

"""A cluster that carries out plans, without machines: for the simulation and for the planner's laws."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from powermean.contracts.attempts import GpuInfo
from server.placement.state import (
    ClusterState,
    NodeCapacity,
    Plan,
    Rules,
    RunningJob,
    Share,
    WaitingJob,
)


@dataclass
class Work:
    """A job, what is left of it, and what became of it so far."""

    id: str
    project: str
    gpus: int
    seconds: float  # of training that it needs
    nodes: int = 1
    priority: str = "normal"
    value: int = 0
    estimate: float | None = None  # what people say of its length
    submitted_at: float = 0.0
    queued_at: float = 0.0
    done: float = 0.0  # seconds of training that a checkpoint has
    waited: float = 0.0
    preemptions: int = 0
    lost_gpu_s: float = 0.0
    stopped_for: str | None = None
    promised: tuple[str, ...] = ()
    gpu_type: str | None = None

    @property
    def amount(self) -> int:
        return max(1, self.gpus) * self.nodes

    def waiting(self) -> WaitingJob:
        return WaitingJob(
            id=self.id,
            gpus=self.gpus,
            nodes=self.nodes,
            project=self.project,
            priority=self.priority,
            value=self.value,
            queued_at=self.queued_at,
            first_queued_at=self.submitted_at if self.preemptions else None,
            promised=self.promised,
            gpu_type=self.gpu_type,
            seconds=None if self.estimate is None else self.estimate - self.done,
        )


@dataclass
class Attempt:
    """A job that runs."""

    work: Work
    holds: tuple[tuple[str, tuple[str, ...]], ...]
    started_at: float
    saved_at: float
    stopping_since: float | None = None


@dataclass
class Machine:
    """A node and what is free there."""

    id: str
    gpus: tuple[str, ...]
    slots: int
    types: tuple[str, ...] = ()  # of its GPUs, where they differ
    closed: bool = False
    free: set[str] = field(default_factory=set)
    free_slots: int = 0


class Cluster:
    """Nodes, jobs, and a clock."""

    def __init__(self, shares: dict[str, Share], rules: Rules) -> None:
        self.shares, self.rules, self.now = shares, rules, 0.0
        self.machines: dict[str, Machine] = {}
        self.waiting: dict[str, Work] = {}
        self.running: dict[str, Attempt] = {}

    def add_node(self, node_id: str, gpus: int, slots: int = 0, types: tuple[str, ...] = ()) -> None:
        uuids = tuple(f"{node_id}-{number}" for number in range(gpus))
        self.machines[node_id] = Machine(node_id, uuids, slots, types, free=set(uuids), free_slots=slots)

    def remove_node(self, node_id: str) -> None:
        """The node is gone; what ran there goes on from its last checkpoint elsewhere."""
        for job_id in [j for j, one in self.running.items() if any(n == node_id for n, _ in one.holds)]:
            self.requeue(job_id, self.running[job_id].saved_at)
        del self.machines[node_id]

    def submit(self, work: Work) -> None:
        work.submitted_at = work.queued_at = self.now
        self.waiting[work.id] = work

    def state(self) -> ClusterState:
        nodes = [
            NodeCapacity(
                id=one.id,
                cpu_slots=one.slots,
                gpus=len(one.gpus),
                free_cpu_slots=0 if one.closed else one.free_slots,
                free_gpus=() if one.closed else tuple(uuid for uuid in one.gpus if uuid in one.free),
                closed="cordoned" if one.closed else None,
                gpu_info=tuple(
                    GpuInfo(uuid=uuid, name=name, memory_mb=80_000)
                    for uuid, name in zip(one.gpus, one.types, strict=False)
                ),
            )
            for one in self.machines.values()
        ]
        running = [
            RunningJob(
                id=one.work.id,
                project=one.work.project,
                holds=one.holds,
                priority=one.work.priority,
                value=one.work.value,
                queued_at=one.work.submitted_at if one.work.preemptions else one.work.queued_at,
                started_at=one.started_at,
                saved_at=one.saved_at,
                ends_at=self.expected_end(one),
                stopping=one.stopping_since is not None,
                stops_for=one.work.stopped_for,
            )
            for one in self.running.values()
        ]
        waiting = [work.waiting() for work in self.waiting.values()]
        return ClusterState(nodes, waiting, (), (), running, dict(self.shares), self.rules, self.now)

    def expected_end(self, one: Attempt) -> float | None:
        return None if one.work.estimate is None else one.started_at + one.work.estimate - one.work.done

    def carry_out(self, plan: Plan) -> None:
        for start in plan.starts:
            work = self.waiting.pop(start.job_id)
            work.waited += self.now - work.queued_at
            work.stopped_for, work.promised = None, ()
            holds: dict[str, tuple[str, ...]] = {}
            for part in start.allocations:
                holds[part.node_id] = tuple(dict.fromkeys((*holds.get(part.node_id, ()), *part.gpu_uuids)))
            self._hold(holds.items(), held=True)
            self.running[work.id] = Attempt(work, tuple(holds.items()), self.now, self.now)
        for stop in plan.stops:
            one = self.running[stop.job_id]
            one.stopping_since = self.now
            one.work.stopped_for = stop.made_for
            made_for = self.waiting[stop.made_for]
            made_for.promised = tuple(dict.fromkeys([*made_for.promised, *(node for node, _ in one.holds)]))

    def finish(self, job_id: str) -> Work:
        one = self.running.pop(job_id)
        self._hold(one.holds, held=False)
        return one.work

    def requeue(self, job_id: str, saved_at: float) -> None:
        """The job stops with a checkpoint of this time and waits again."""
        one = self.running[job_id]
        work = self.finish(job_id)
        work.done += saved_at - one.started_at
        work.lost_gpu_s += (self.now - saved_at) * work.amount
        work.queued_at = self.now
        if one.stopping_since is not None:
            work.preemptions += 1
        self.waiting[work.id] = work

    def _hold(self, holds: Iterable[tuple[str, tuple[str, ...]]], held: bool) -> None:
        for node_id, uuids in holds:
            machine = self.machines[node_id]
            if not uuids:
                machine.free_slots += -1 if held else 1
                assert 0 <= machine.free_slots <= machine.slots, f"a slot of {node_id} twice"
            elif held:
                assert machine.free.issuperset(uuids), f"a GPU of {node_id} twice"
                machine.free -= set(uuids)
            else:
                machine.free |= set(uuids)

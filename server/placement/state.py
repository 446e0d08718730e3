"""What a plan is made of, and what it says. Times are seconds since the epoch, by one clock.

The clock, and estimates that move with it, don't count when two states are compared: time that passes is a
reason to plan anew now and then, not at once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter

from powermean.contracts.attempts import AllocationView, GpuInfo
from powermean.contracts.revisions import FIRST, NEWEST
from server.jobs.demand import AdapterNeed

VLLM = "vllm"
NOBODY: frozenset[str] = frozenset()

# attrgetter reads eight fields in one call: plans ask for this a thousand times
_needs: Callable[[object], tuple[object, ...]] = attrgetter(
    *("gpus", "rollout_gpus", "nodes", "vllm", "gpu_type", "gpu_memory_mb", "labels", "revision")
)


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
    served: frozenset[str] = NOBODY  # GPUs that engine services hold
    revision: int = NEWEST  # of the contracts, that its worker knows
    declared: bool = False  # it is not there yet: its GPUs' names are parts of their names, as its pool says


@dataclass(frozen=True)
class WaitingJob:
    """A queued job. 0 `gpus` means a CPU slot; `avoid` are the nodes on which its last attempt lapsed."""

    id: str
    gpus: int  # of the trainer, on each of its nodes
    rollout_gpus: int = 0  # of its own engine, on each of its nodes; 0: the engine shares the trainer's
    avoid: frozenset[str] = NOBODY
    vllm: bool = False  # its own engine must be vLLM
    adapter: AdapterNeed | None = None  # None: it gets its own engine
    project: str = ""
    nodes: int = 1  # all at once, or it does not start
    revision: int = FIRST  # of the contracts, that its workers have to know
    gpu_type: str | None = None  # part of the GPUs' name, in any case
    gpu_memory_mb: int = 0  # at least, of each GPU
    labels: tuple[tuple[str, str], ...] = ()  # of its nodes
    priority: str = "normal"
    value: int = 0  # of its priority: higher ones go first
    queued_at: float = 0.0
    first_queued_at: float | None = None  # of a job that gave way: it returns to its old place
    promised: tuple[str, ...] = ()  # nodes on which others were told to give way to it since it was queued
    seconds: float | None = field(
        default=None, compare=False
    )  # it runs for at most so long, if that is known

    @property
    def uses_gpus(self) -> bool:
        return self.gpus > 0

    @property
    def needs(self) -> tuple[object, ...]:
        """Equal for jobs that the same nodes could hold, beside a shared engine or with their own."""
        return _needs(self)

    @property
    def several(self) -> bool:
        """Whether ranks on several GPUs train together: these are of one type."""
        return self.gpus * self.nodes > 1

    @property
    def amount(self) -> int:
        """GPUs or CPU slots in all, with those of its own engine, unless it must share one."""
        shares = self.adapter is not None and self.adapter.required
        return (self.gpus + (0 if shares else self.rollout_gpus) or 1) * self.nodes


@dataclass(frozen=True)
class RunningJob:
    """A job with a live attempt, and what that holds: GPUs by node, or a CPU slot (no GPUs) on its node."""

    id: str
    project: str
    holds: tuple[tuple[str, tuple[str, ...]], ...]
    priority: str = "normal"
    value: int = 0
    queued_at: float = 0.0  # before it started
    started_at: float = 0.0
    saved_at: float = field(default=0.0, compare=False)  # its last checkpoint, or else its start
    ends_at: float | None = field(default=None, compare=False)  # by its steps so far
    stopping: bool = False  # ordered to stop: its GPUs are about to be free
    stops_for: str | None = None  # the job that is to have them
    claimed: bool = True  # only such an attempt hears an order
    ill: frozenset[str] = NOBODY  # of its GPUs: nobody gets them after it

    @cached_property
    def uses_gpus(self) -> bool:
        return any(gpus for _, gpus in self.holds)

    @cached_property
    def amount(self) -> int:
        return sum(max(1, len(gpus)) for _, gpus in self.holds) or 1

    @cached_property
    def leaves(self) -> dict[str, int]:
        """By node: GPUs that others could use after it, or the CPU slot."""
        found: dict[str, int] = {}
        for node_id, gpus in self.holds:
            count = sum(gpu not in self.ill for gpu in gpus) if gpus else 1
            found[node_id] = found.get(node_id, 0) + count
        return found

    def on(self, node_id: str, wanted: frozenset[str] | None = None) -> int:
        """What it leaves there (of the GPUs that are wanted)."""
        return self.leaves.get(node_id, 0) if wanted is None else len(wanted.intersection(self.gpus(node_id)))

    def gpus(self, node_id: str) -> list[str]:
        """The GPUs of the node that others could use after it."""
        return [gpu for on, gpus in self.holds if on == node_id for gpu in gpus if gpu not in self.ill]


@dataclass(frozen=True)
class Share:
    """What a project is guaranteed, and the most that it may have with what it borrows (None: no limit)."""

    gpu_quota: int = 0
    gpu_limit: int | None = None
    cpu_quota: int = 0
    cpu_limit: int | None = None
    weight: float = 1.0  # among borrowers

    def quota(self, gpus: bool) -> int:
        return self.gpu_quota if gpus else self.cpu_quota

    def limit(self, gpus: bool) -> int | None:
        return self.gpu_limit if gpus else self.cpu_limit


@dataclass(frozen=True)
class Rules:
    """How patient the policies are."""

    min_run_s: float = 600.0  # a job that has run for less is not stopped for another
    point_s: float = 864.0  # of waiting weigh as much as one point of priority: a day, 100 points
    patience_s: float = (
        6 * 3600.0
    )  # then a job that its project's limit holds back lets none of that project by
    reservations: int = 4  # large jobs for which nodes are kept at once; chosen in docs/placement.md


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
    jobs: frozenset[str] = NOBODY  # jobs with a slot
    projects: frozenset[str] = NOBODY  # whose jobs it serves; none named: all

    def is_open_to(self, project: str) -> bool:
        return not self.projects or project in self.projects


@dataclass(frozen=True)
class Coming:
    """A node that a pool is starting, as it will be. `words` are for the jobs that wait for it."""

    node: NodeCapacity
    words: str


@dataclass(frozen=True)
class ClusterState:
    """Everything a plan depends on: live nodes, engine services, jobs that wait and run, projects' shares.

    Nothing is planned onto nodes that are `coming`; they are a reason to wait.
    """

    nodes: Sequence[NodeCapacity]
    waiting: Sequence[WaitingJob]
    engines: Sequence[SharedEngine] = ()
    unplaced: Sequence[WaitingEngine] = ()
    running: Sequence[RunningJob] = ()
    shares: Mapping[str, Share] = field(default_factory=dict)  # by project; one that is not named has none
    rules: Rules = Rules()
    now: float = field(default=0.0, compare=False)
    coming: Sequence[Coming] = ()
    withheld: Sequence[Coming] = ()  # one node of each pool that starts none now, and why


@dataclass(frozen=True)
class Start:
    """A job and the gang that it gets."""

    job_id: str
    allocations: tuple[AllocationView, ...]


@dataclass(frozen=True)
class Stop:
    """A running job that is to save a checkpoint and give way, and for which job. `reason`: in words."""

    job_id: str
    made_for: str
    reason: str


@dataclass(frozen=True)
class Placement:
    """An engine service and what it gets."""

    engine_id: str
    node_id: str
    gpu_uuids: tuple[str, ...]


@dataclass(frozen=True)
class Wait:
    """Why something waits. The text names no other project and none of its jobs.

    kind: no_node (none could ever hold it), starting (a pool starts a node for it), limit (its project's),
    engine, disk, closed, checkpoint (others save theirs to give way), reserved (it has the next place),
    behind, busy.
    """

    kind: str
    text: str
    kept: tuple[str, ...] = ()  # nodes on which room is kept for it
    at: float | None = None  # when that is free, if the running jobs keep their pace


@dataclass
class Plan:
    """What to start and to stop, and why the others wait."""

    starts: list[Start] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)
    why: dict[str, Wait] = field(default_factory=dict)
    placements: list[Placement] = field(default_factory=list)
    engines_why: dict[str, str] = field(default_factory=dict)

"""How many nodes of which pool the waiting work justifies, and which nodes nobody needs: pure functions.

The planner itself is asked: with one more node of this pool, would one more job start? So quotas, limits,
priorities and gangs count here as they do there, and a job that no pool's node could hold asks for nothing.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from powermean.contracts.pools import Shape
from server.cluster.pilots import as_node
from server.placement.fit import could_run
from server.placement.outlook import LACKS_NODES, after
from server.placement.plan import plan
from server.placement.state import ClusterState, NodeCapacity, Plan, WaitingJob

AT_ONCE = 10  # new nodes of all pools in one turn


@dataclass(frozen=True)
class PilotFacts:
    """A pilot as far as its size in the fleet depends on it."""

    id: str
    node_id: str
    reports: bool = False  # its node is there
    busy: bool = False  # something runs on it
    asked: bool = False  # the engine has not confirmed it
    leaves: bool = False  # the engine has been told to end it, or will be
    unneeded_s: float = 0.0  # for so long no work has needed it


@dataclass(frozen=True)
class PoolFacts:
    """A pool, and what it has."""

    name: str
    shape: Shape
    min: int = 0
    max: int = 1
    idle_s: float = 600.0
    ready: bool = True  # it may be asked for more: its engine answers, and no failure is too recent
    pilots: tuple[PilotFacts, ...] = ()


@dataclass
class Sizes:
    """What to ask for, what nobody needs, and what of that to let go."""

    starts: dict[str, int] = field(default_factory=dict)  # by pool
    needed: set[str] = field(default_factory=set)  # pilots
    let_go: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Check:
    """A spec that has to be checked, on a node that could run it, and the living nodes that may do so now.

    Without a job it is a replay, which any node can run.
    """

    job: WaitingJob | None
    nodes: frozenset[str] = frozenset()

    def fits(self, node: NodeCapacity) -> bool:
        return self.job is None or could_run(self.job, node)


def sizes(state: ClusterState, pools: Sequence[PoolFacts], checks: Sequence[Check] = ()) -> Sizes:
    """`state.coming` has the nodes that are on the way, those of these pools included."""
    found = Sizes()
    growing = _Growing(state, pools)
    growing.to_minimum()
    growing.for_work()
    growing.for_checks(checks)
    found.starts = {name: count for name, count in growing.started.items() if count}
    on = growing.needed().union(*(check.nodes for check in checks))
    on |= {node.id for node in [*growing.coming, *growing.doubtful] if any(one.fits(node) for one in checks)}
    for pool in pools:
        staying = [one for one in pool.pilots if not one.leaves]
        found.needed |= {one.id for one in staying if one.busy or one.node_id in on}
        idle = [one for one in staying if one.id not in found.needed and one.unneeded_s >= pool.idle_s]
        idle.sort(key=lambda one: (one.reports, -one.unneeded_s, one.id))
        found.let_go += [one.id for one in idle[: max(0, len(staying) - pool.min)]]
    return found


class _Growing:
    """The cluster as it will be, with more and more nodes."""

    def __init__(self, state: ClusterState, pools: Sequence[PoolFacts]) -> None:
        self.now = after(state, plan(state))
        doubtful = {
            one.node_id for pool in pools if not pool.ready for one in pool.pilots if one.asked
        }  # an engine that refuses or can't be reached may never start them: others are asked
        self.coming = [one.node for one in state.coming if one.node.id not in doubtful]
        self.doubtful = [one.node for one in state.coming if one.node.id in doubtful]
        self.pools = pools
        self.started = {pool.name: 0 for pool in pools}
        self.plan = self._with([])
        self.used = _used(self.plan)

    def _with(self, more: Iterable[NodeCapacity]) -> Plan:
        return plan(replace(self.now, nodes=[*self.now.nodes, *self.coming, *more], coming=()))

    def _room(self, pool: PoolFacts, nodes: int = 1) -> int:
        """How many more it may be asked for, for a job on so many. One that leaves still counts."""
        if not pool.ready:
            return 0
        have = len(pool.pilots) + self.started[pool.name]
        return max(0, min(pool.max - have, max(AT_ONCE, nodes) - sum(self.started.values())))

    def _new(self, pool: PoolFacts, count: int) -> list[NodeCapacity]:
        first = self.started[pool.name]
        return [as_node(f"~{pool.name}/{first + place}", pool.shape) for place in range(count)]

    def _ask(self, pool: PoolFacts, nodes: Sequence[NodeCapacity], made: Plan) -> None:
        self.coming += nodes
        self.started[pool.name] += len(nodes)
        self.plan = made
        self.used = _used(made)

    def needed(self) -> set[str]:
        """The nodes that work would use, the doubtful ones where there is no other.

        A node that is there is not kept for a job on several whose other nodes may never come.
        """
        if not self.doubtful:
            return self.used
        return self.used | (_used(self._with(self.doubtful)) & {node.id for node in self.doubtful})

    def to_minimum(self) -> None:
        for pool in self.pools:
            staying = sum(not one.leaves for one in pool.pilots)
            if missing := min(self._room(pool), max(0, pool.min - staying)):
                nodes = self._new(pool, missing)
                self._ask(pool, nodes, self._with(nodes))

    def for_work(self) -> None:
        """One step at a time: each new node, or each gang's nodes, must let something start."""
        tried: set[Hashable] = set()
        while (step := self._step(tried)) is not None:
            self._ask(*step)

    def _step(self, tried: set[Hashable]) -> tuple[PoolFacts, list[NodeCapacity], Plan] | None:
        for shape, job in self._lacking():
            for pool in self.pools:
                count = job.nodes if job is not None else 1
                most = min(count, self._room(pool, count))
                if (pool.name, shape) in tried or not most:
                    continue
                nodes = self._new(pool, most)
                if job is None or could_run(job, nodes[0]):
                    made = self._with(nodes)
                    if _starts(made) > _starts(self.plan):
                        return pool, *self._fewest(nodes, made)
                tried.add((pool.name, shape))
        return None

    def _fewest(self, nodes: list[NodeCapacity], made: Plan) -> tuple[list[NodeCapacity], Plan]:
        """As many of these as let something start: a gang may find some of its nodes among those there."""
        few, enough = 0, len(nodes)
        while enough - few > 1:
            count = (few + enough) // 2
            with_some = self._with(nodes[:count])
            if _starts(with_some) > _starts(self.plan):
                enough, made = count, with_some
            else:
                few = count
        return nodes[:enough], made

    def _lacking(self) -> Iterable[tuple[Hashable, WaitingJob | None]]:
        """One job of each kind that more nodes could help; None: an engine service."""
        kinds: dict[Hashable, WaitingJob | None] = {}
        placed = {one.engine_id for one in self.plan.placements}
        for engine in self.now.unplaced:
            if engine.id not in placed and engine.gpus and engine.node is None:
                kinds.setdefault(("engine", engine.gpus), None)
        for job in self.now.waiting:
            wait = self.plan.why.get(job.id)
            if wait is not None and wait.kind in LACKS_NODES:
                kinds.setdefault(_kind(job), job)
        return kinds.items()

    def for_checks(self, checks: Sequence[Check]) -> None:
        """One node for each that nobody may check; one that is coming will do."""
        for check in [check for check in checks if not check.nodes]:
            if any(check.fits(node) for node in self.coming):
                continue
            pool = next(
                (one for one in self.pools if self._room(one) and check.fits(self._new(one, 1)[0])), None
            )
            if pool is not None:
                nodes = self._new(pool, 1)
                self._ask(pool, nodes, self._with(nodes))


def _kind(job: WaitingJob) -> Hashable:
    quantities = job.gpus, job.rollout_gpus, job.nodes, job.gpu_memory_mb
    return job.project, job.value, job.vllm, job.adapter, job.gpu_type, job.labels, quantities


def _used(made: Plan) -> set[str]:
    """The nodes on which the plan starts something."""
    return {part.node_id for start in made.starts for part in start.allocations} | {
        one.node_id for one in made.placements
    }


def _starts(made: Plan) -> int:
    return len(made.starts) + len(made.placements)

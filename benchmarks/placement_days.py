"""Days of a shared cluster, simulated by events with the real planner.

Everything is synthetic and seeded: 20 projects, jobs of 1, 2, 4 or 8 GPUs on one node, log-normal durations
(median 1 h, mean about 3 h, at most 48 h), a checkpoint every 10 minutes, 60 s to save one when told to stop.
"""

import heapq
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from placement_cluster import Cluster, Work

from server.placement.state import ClusterState, Plan, Rules, Share

PROJECTS = 20
SIZES = ((1, 0.55), (2, 0.2), (4, 0.15), (8, 0.1))
PRIORITIES = (("low", -100, 0.2), ("normal", 0, 0.7), ("high", 100, 0.1))
CHECKPOINT_S, STOP_S, PLAN_EVERY_S = 600.0, 60.0, 60.0
HOUR, DAY = 3600.0, 86_400.0


@dataclass(frozen=True)
class Load:
    """How much work comes, of the cluster's capacity, and how evenly the projects send it."""

    name: str
    of_capacity: float
    uneven: bool = False  # half of the projects send four times as much as the others
    waves: bool = False  # each project sends all of its work of a day within 4 hours


LOADS = (
    Load("saturated", 1.6),
    Load("uneven", 1.2, uneven=True),
    Load("waves", 0.85, waves=True),
)


@dataclass
class Outcome:
    """What came of it: GPU-seconds by project, waits in seconds by (size, priority)."""

    capacity_gpu_s: float = 0.0
    used_gpu_s: float = 0.0
    by_project: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    demanded: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    waits: dict[tuple[int, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    preemptions: int = 0
    lost_gpu_s: float = 0.0
    finished: int = 0
    unfinished_waits: dict[int, float] = field(default_factory=lambda: defaultdict(float))  # longest, by size

    @property
    def utilisation(self) -> float:
        return self.used_gpu_s / self.capacity_gpu_s

    @property
    def jain(self) -> float:
        """Jain's index of the projects' GPU-seconds: 1 when all have the same, 1/n when one has all."""
        shares = list(self.by_project.values())
        return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


def arrivals(load: Load, gpus: int, seconds: float, seed: int) -> list[tuple[float, Work]]:
    """All jobs of the time, in order."""
    chance = random.Random(seed)
    wanted = load.of_capacity * gpus * seconds
    found: list[tuple[float, Work]] = []
    weights = [4.0 if load.uneven and number < PROJECTS // 2 else 1.0 for number in range(PROJECTS)]
    number = 0
    while wanted > 0:
        number += 1
        project = chance.choices(range(PROJECTS), weights)[0]
        size = chance.choices([size for size, _ in SIZES], [weight for _, weight in SIZES])[0]
        name, value, _ = chance.choices(PRIORITIES, [weight for *_, weight in PRIORITIES])[0]
        length = min(48 * HOUR, chance.lognormvariate(0.0, 1.45) * HOUR)
        at = chance.uniform(0, seconds)
        if load.waves:
            day = chance.randrange(max(1, round(seconds / DAY))) * DAY
            at = min(seconds, day + (project * DAY / PROJECTS) + chance.uniform(0, 4 * HOUR))
        work = Work(f"job-{number:06}", f"team-{project:02}", size, length, 1, name, value, length)
        found.append((at, work))
        wanted -= size * length
    return sorted(found, key=lambda one: (one[0], one[1].id))


def simulate(
    policy: Callable[[ClusterState], Plan],
    load: Load,
    nodes: int,
    seconds: float,
    seed: int,
    tell: Callable[[float], None] = lambda _: None,
    rules: Rules = Rules(),
) -> Outcome:
    """The first tenth of the time fills the cluster and isn't counted. `tell` hears how far it has come."""
    quota = nodes * 8 // PROJECTS
    shares = {f"team-{number:02}": Share(gpu_quota=quota) for number in range(PROJECTS)}
    cluster = Cluster(shares, rules)
    for number in range(nodes):
        cluster.add_node(f"n{number:04}", 8)
    out, counted_from = Outcome(), seconds / 10
    out.capacity_gpu_s = nodes * 8 * (seconds - counted_from)
    for _, work in (coming := arrivals(load, nodes * 8, seconds, seed)):
        out.demanded[work.project] += work.gpus * work.seconds
    ends: list[tuple[float, str, float]] = []  # when, which, and its start: of jobs as they ran then
    next_plan, dirty, place = 0.0, False, 0
    while True:
        at = min(
            coming[place][0] if place < len(coming) else seconds,
            ends[0][0] if ends else seconds,
            next_plan if dirty else seconds,
        )
        if at >= seconds:
            _advance(cluster, out, seconds, counted_from)
            break
        _advance(cluster, out, at, counted_from)
        while place < len(coming) and coming[place][0] <= at:
            cluster.submit(coming[place][1])
            place, dirty = place + 1, True
        while ends and ends[0][0] <= at:
            dirty |= _end(cluster, out, *heapq.heappop(ends))
        if dirty and at >= next_plan:
            _plan(policy, cluster, out, ends, counted_from)
            tell(at)
            next_plan, dirty = at + PLAN_EVERY_S, False
    for work in cluster.waiting.values():
        out.unfinished_waits[work.gpus] = max(out.unfinished_waits[work.gpus], seconds - work.queued_at)
    return out


def _plan(
    policy: Callable[[ClusterState], Plan],
    cluster: Cluster,
    out: Outcome,
    ends: list[tuple[float, str, float]],
    counted_from: float,
) -> None:
    for one in cluster.running.values():  # checkpoints since the last plan
        if one.stopping_since is None:
            one.saved_at = one.started_at + (cluster.now - one.started_at) // CHECKPOINT_S * CHECKPOINT_S
    made = policy(cluster.state())
    cluster.carry_out(made)
    for start in made.starts:
        one = cluster.running[start.job_id]
        heapq.heappush(ends, (cluster.now + one.work.seconds - one.work.done, start.job_id, cluster.now))
        if cluster.now >= counted_from and not one.work.preemptions:
            out.waits[one.work.gpus, one.work.priority].append(one.work.waited)
    for stop in made.stops:
        one = cluster.running[stop.job_id]
        out.preemptions += 1
        heapq.heappush(ends, (cluster.now + STOP_S, stop.job_id, one.started_at))


def _end(cluster: Cluster, out: Outcome, at: float, job_id: str, started_at: float) -> bool:
    """A job is done, or has saved its checkpoint: whichever comes first. The other event is stale."""
    one = cluster.running.get(job_id)
    if one is None or one.started_at != started_at:
        return False
    if at >= started_at + one.work.seconds - one.work.done:
        cluster.finish(job_id)
        out.finished += 1
        return True
    lost = one.work.lost_gpu_s
    cluster.requeue(job_id, at - STOP_S)  # it saves the step that it was in; the time to do so is lost
    out.lost_gpu_s += one.work.lost_gpu_s - lost
    return True


def _advance(cluster: Cluster, out: Outcome, to: float, counted_from: float) -> None:
    counted = to - max(cluster.now, counted_from)
    if counted > 0:
        for one in cluster.running.values():
            out.used_gpu_s += counted * one.work.amount
            out.by_project[one.work.project] += counted * one.work.amount
    cluster.now = to


def quantiles(waits: list[float]) -> Iterator[float]:
    """The median and the 95th percentile, in hours."""
    ordered = sorted(waits)
    for part in (0.5, 0.95):
        yield ordered[min(len(ordered) - 1, int(part * len(ordered)))] / HOUR if ordered else float("nan")

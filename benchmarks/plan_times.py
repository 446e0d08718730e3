"""What plans cost, for benchmarks/placement.py and the planner section of benchmarks/service.py."""

import statistics
import time
from collections.abc import Iterator, Sequence

from service_rig import Figure, quantile

from server.__main__ import keep_from_collector
from server.placement.plan import plan
from server.placement.state import ClusterState

PLAN_MS = 50.0
LOOP = 1_000_000  # about as long as a plan for 100 nodes
MEANING = """\
A plain loop of fixed work runs by turns with the plans: where its 99th percentile is many times its median,
others use the machine at the same time, and plans meet that, too. A state is the same work each time, so its
least time is that of the plan that others disturbed least. Wall clock also has waits for a core."""


def figures(what: str, states: Sequence[ClusterState], rounds: int, goal: float | None) -> Iterator[Figure]:
    """Plans each state in turn, `rounds` times in all."""
    keep_from_collector()  # as the server does: a full collection takes longer than a plan
    cpu: list[list[float]] = [[] for _ in states]
    wall, loop = [], []
    for number in range(rounds):
        began, wall_began = time.process_time(), time.perf_counter()
        plan(states[number % len(states)])
        cpu[number % len(states)].append(1e3 * (time.process_time() - began))
        wall.append(1e3 * (time.perf_counter() - wall_began))
        began = time.process_time()
        for _ in range(LOOP):
            pass
        loop.append(1e3 * (time.process_time() - began))
    times = [one for of_state in cpu for one in of_state]

    def p99(some: Sequence[float]) -> float:
        return quantile(sorted(some), 0.99)

    yield Figure(f"{what}: p50, CPU", statistics.median(times), "ms")
    yield Figure(f"{what}: p99, CPU", p99(times), "ms", goal)
    yield Figure(f"{what}: p99, wall clock", p99(wall), "ms")
    yield Figure(f"{what}: slowest state in its fastest run, CPU", max(map(min, cpu)), "ms", goal)
    yield Figure(f"{what}: p99 over p50, CPU", p99(times) / statistics.median(times), "x")
    yield Figure(f"{what}: plain loop, p99 over p50, CPU", p99(loop) / statistics.median(loop), "x")

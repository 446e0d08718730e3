"""What plans cost, for benchmarks/placement.py and the planner section of benchmarks/service.py."""

import statistics
import time
from collections.abc import Iterator, Sequence

from service_rig import Figure

from server.__main__ import keep_from_collector
from server.placement.plan import plan
from server.placement.state import ClusterState

PLAN_MS = 50.0
MEANING = """\
A state is the same work each time it is planned. So the least time of the slowest state says what a
plan takes on this machine; most of what the 99th percentile of the CPU time has beyond that comes from what
else runs there: it takes the caches and the core's other half. Wall-clock time also has waits for a core."""


def figures(what: str, states: Sequence[ClusterState], rounds: int, goal: float | None) -> Iterator[Figure]:
    """Plans each state in turn, `rounds` times in all."""
    keep_from_collector()  # as the server does: a full collection takes longer than a plan
    cpu: list[list[float]] = [[] for _ in states]
    wall = []
    for number in range(rounds):
        began, wall_began = time.process_time(), time.perf_counter()
        plan(states[number % len(states)])
        cpu[number % len(states)].append(1e3 * (time.process_time() - began))
        wall.append(1e3 * (time.perf_counter() - wall_began))
    times = [one for of_state in cpu for one in of_state]
    yield Figure(f"{what}: p50, CPU", statistics.median(times), "ms")
    yield Figure(f"{what}: p99, CPU", _p99(times), "ms", goal)
    yield Figure(f"{what}: p99, wall clock", _p99(wall), "ms")
    yield Figure(f"{what}: slowest state at its least, CPU", max(map(min, cpu)), "ms")


def _p99(times: Sequence[float]) -> float:
    return statistics.quantiles(times, n=100, method="inclusive")[98]

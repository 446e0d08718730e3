"""Which checks of specs go out next, and to which nodes: pure functions of what waits and what is out."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from powermean.contracts.names import LONG_TASKS

ROOM = 2 * LONG_TASKS  # checks that are out to a node: those that it runs, and as many that it has ready


@dataclass(frozen=True)
class Check:
    """A message that asks for the check of a job's spec; `queue` is where it was last sent."""

    id: int
    job_id: str
    project: str
    demand: str
    sends: int
    queue: str | None


@dataclass(frozen=True)
class Out:
    """How many checks are out (sent, not settled, and not due to be sent again) by queue and by project.

    `turns` has for each project a number that is larger the later its last check was sent.
    """

    by_queue: Mapping[str, int]
    by_project: Mapping[str, int]
    turns: Mapping[str, int] = field(default_factory=dict)


def choose(
    waiting: Sequence[Check], able: Callable[[str], Sequence[str]], out: Out, most: int
) -> list[tuple[Check, str]]:
    """At most so many of the waiting checks, in the order in which they go out, each with a queue.

    The project with the fewest checks out is next; among equals the one whose last turn is longest ago. Its
    checks go in the order given, without those whose nodes have no room. `able` are the queues of the nodes
    that may do the checks of a demand.
    """
    lines: dict[str, list[Check]] = {}
    for check in waiting:
        lines.setdefault(check.project, []).append(check)
    left = {project: iter(line) for project, line in lines.items()}
    heap = [(out.by_project.get(project, 0), out.turns.get(project, 0), project) for project in lines]
    heapify(heap)
    turn = max(out.turns.values(), default=0)
    held, full = Counter(out.by_queue), set[str]()
    chosen: list[tuple[Check, str]] = []
    while heap and len(chosen) < most:
        count, _, project = heappop(heap)
        found = _next(left[project], able, held, full)
        if found is not None:
            chosen.append(found)
            held[found[1]] += 1
            turn += 1
            heappush(heap, (count + 1, turn, project))
    return chosen


def _next(
    line: Iterator[Check], able: Callable[[str], Sequence[str]], held: Mapping[str, int], full: set[str]
) -> tuple[Check, str] | None:
    """The first check of the line with a queue that has room. `full` are demands for which there is none."""
    for check in line:
        if check.demand not in full:
            queue = _queue(check, able(check.demand), held)
            if queue is not None:
                return check, queue
            full.add(check.demand)
    return None


def _queue(check: Check, able: Sequence[str], held: Mapping[str, int]) -> str | None:
    """The one with the most room, but not that of last time if there is another: its node may be stuck."""
    first = check.id + check.sends
    free = (
        (queue == check.queue, held[queue], (place - first) % len(able), queue)
        for place, queue in enumerate(able)
        if held[queue] < ROOM
    )
    best = min(free, default=None)
    return None if best is None else best[-1]

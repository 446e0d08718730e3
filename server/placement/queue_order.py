"""Who is next: by priority and age within a project; by quota, then by fair share, among projects."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from math import inf, nextafter

from server.placement.quotas import Ledger
from server.placement.state import Rules, RunningJob, WaitingJob

Place = tuple[float, str]  # smaller goes first


def places(waiting: Sequence[WaitingJob], rules: Rules) -> dict[str, Place]:
    """Each job's place among its project's.

    Priority and age count together: a job of one point more goes before those that were queued up to
    `point_s` earlier. So everyone's turn comes, and no clock is needed to compare two jobs.

    A job that gave way returns to the place that it had when it was first queued, but stays behind those of
    higher priority that waited when it returned. Else it could take back what it left to one of them.
    """
    found = {job.id: place_of(job, job.queued_at, rules) for job in waiting}
    returning = [job for job in waiting if job.first_queued_at is not None]
    queued: dict[str, dict[int, list[float]]] = {job.project: defaultdict(list) for job in returning}
    for job in waiting if returning else ():
        if job.project in queued:
            queued[job.project][job.value].append(job.queued_at)
    for values in queued.values():
        for times in values.values():
            times.sort()
    for job in returning:
        behind = [
            nextafter(times[number - 1] - rules.point_s * value, inf)  # the last one's place of that priority
            for value, times in queued[job.project].items()
            if value > job.value and (number := bisect_right(times, job.queued_at))
        ]
        old = place_of(job, job.first_queued_at or 0.0, rules)
        found[job.id] = min(found[job.id], max([old, *((at, job.id) for at in behind)]))
    return found


def place_of(job: WaitingJob | RunningJob, queued_at: float, rules: Rules) -> Place:
    """The place of a job that was queued then."""
    return queued_at - rules.point_s * job.value, job.id


def promised_first(waiting: Iterable[WaitingJob]) -> list[WaitingJob]:
    """The jobs for which others gave way, or are about to, in order of their waiting: before all others."""
    return sorted((job for job in waiting if job.promised), key=lambda job: (job.queued_at, job.id))


def by_project(waiting: Iterable[WaitingJob], place: dict[str, Place]) -> dict[str, list[WaitingJob]]:
    """Each project's jobs, the next one last: lines are taken from their ends."""
    lines: dict[str, list[WaitingJob]] = defaultdict(list)
    for job in sorted(waiting, key=lambda job: place[job.id], reverse=True):
        lines[job.project].append(job)
    return lines


def guaranteed_first(
    lines: dict[str, list[WaitingJob]], ledger: Ledger, passes: Callable[[WaitingJob], bool]
) -> Iterator[WaitingJob]:
    """Jobs that their project's quota covers; the others stay in their lines.

    The project that uses least of its quota is next, between equals the job that waits longest. Places don't
    count: they hold priorities, which reach into no other project. Jobs that would pass one of their
    project's that has waited for too long stay, too.
    """
    heads = [
        (ledger.quota_part(project), job.queued_at, project)
        for project, line in lines.items()
        if ledger.has_quota_left(project)
        for job in line[-1:]
    ]
    heapify(heads)
    over: dict[str, list[WaitingJob]] = defaultdict(list)
    while heads:
        *_, project = heappop(heads)
        line = lines[project]
        job = line.pop()
        if ledger.is_guaranteed(job) and not passes(job):
            yield job
        else:
            over[project].append(job)
        if line and ledger.has_quota_left(project):
            heappush(heads, (ledger.quota_part(project), line[-1].queued_at, project))
    for project, passed in over.items():
        lines[project] += passed[::-1]


def by_fair_share(lines: dict[str, list[WaitingJob]], ledger: Ledger) -> Iterator[WaitingJob]:
    """The next job of the project with the least dominant share of what is borrowed, over and over.

    Between equals the job that waits longest. What is started meanwhile counts, as it is in the ledger.
    """
    heads = [
        (ledger.dominant_share(project), job.queued_at, project)
        for project, line in lines.items()
        for job in line[-1:]
    ]
    heapify(heads)
    while heads:
        project = heads[0][-1]
        line = lines[project]
        yield line.pop()
        if line:
            heapreplace(heads, (ledger.dominant_share(project), line[-1].queued_at, project))
        else:
            heappop(heads)

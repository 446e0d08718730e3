"""What the planner is measured against: first in, first out, and plain fair share. Neither stops a job."""

from collections import Counter

from powermean.contracts.attempts import AllocationView
from server.placement.fit import Ask, Index, best, own_engine
from server.placement.room import Room
from server.placement.state import ClusterState, Plan, Start, Wait, WaitingJob


def first_in_first_out(state: ClusterState) -> Plan:
    """In order of submission; the first that doesn't fit holds back all behind it."""
    made, index, room = Plan(), Index(state.nodes), Room(state)
    blocked = False
    for job in sorted(state.waiting, key=lambda job: (job.queued_at, job.id)):
        blocked = blocked or not _start(job, index, room, made)
        if blocked:
            made.why[job.id] = Wait("busy", "waiting")
    return made


def plain_fair_share(state: ClusterState) -> Plan:
    """The project that uses least goes first, with the first of its jobs that fits. Nothing is kept."""
    made, index, room = Plan(), Index(state.nodes), Room(state)
    used = Counter[str]()
    for one in state.running:
        used[one.project] += one.amount
    lines: dict[str, list[WaitingJob]] = {}
    for job in sorted(state.waiting, key=lambda job: (job.queued_at, job.id), reverse=True):
        lines.setdefault(job.project, []).append(job)
    full: set[Ask] = set()  # known not to fit any more: less and less is free
    while lines:
        project = min(lines, key=lambda name: (used[name], name))
        job = lines[project].pop()
        if own_engine(job) not in full and _start(job, index, room, made):
            used[project] += job.amount
        else:
            full.add(own_engine(job))
            made.why[job.id] = Wait("busy", "waiting")
        if not lines[project]:
            del lines[project]
    return made


def _start(job: WaitingJob, index: Index, room: Room, made: Plan) -> bool:
    ask = own_engine(job)
    nodes = best(index.request(ask), room)
    for node_id in nodes or ():
        gpus = room.take(node_id, ask.gpus)
        part = AllocationView(role="trainer", node_id=node_id, gpu_uuids=gpus)
        made.starts.append(Start(job.id, (part,)))
    return nodes is not None

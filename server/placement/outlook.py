"""What waiting jobs may expect of nodes that are not there yet."""

from collections import defaultdict
from collections.abc import Container
from dataclasses import replace
from functools import partial

from server.placement.engines import could_hold
from server.placement.fit import could_run
from server.placement.plan import plan
from server.placement.state import ClusterState, Plan, RunningJob, Wait

# What more nodes would change; the other reasons are a project's limit, an engine, or that others give way.
LACKS_NODES = frozenset({"no_node", "busy", "reserved", "behind", "closed", "disk"})


def after(state: ClusterState, made: Plan) -> ClusterState:
    """The cluster once the plan's starts and placements have happened."""
    taken: dict[str, set[str]] = defaultdict(set)
    slots: dict[str, set[str]] = defaultdict(set)
    waiting = {job.id: job for job in state.waiting}
    begun: list[RunningJob] = []
    for start in made.starts:
        job = waiting.pop(start.job_id)
        holds: dict[str, tuple[str, ...]] = {}
        for part in start.allocations:
            if part.engine_id is not None:
                continue
            holds[part.node_id] = tuple(dict.fromkeys((*holds.get(part.node_id, ()), *part.gpu_uuids)))
            taken[part.node_id].update(part.gpu_uuids)
            if not part.gpu_uuids:
                slots[part.node_id].add(job.id)
        begun.append(
            RunningJob(job.id, job.project, tuple(holds.items()), job.priority, job.value, claimed=False)
        )
    for placed in made.placements:
        taken[placed.node_id].update(placed.gpu_uuids)
    engines = {placed.engine_id for placed in made.placements}
    return replace(
        state,
        nodes=[
            replace(
                node,
                free_cpu_slots=node.free_cpu_slots - len(slots[node.id]),
                free_gpus=tuple(uuid for uuid in node.free_gpus if uuid not in taken[node.id]),
            )
            for node in state.nodes
        ],
        waiting=list(waiting.values()),
        unplaced=[engine for engine in state.unplaced if engine.id not in engines],
        running=[*state.running, *begun],
    )


def awaited(state: ClusterState, made: Plan) -> dict[str, Wait]:
    """The reasons of those of the plan's jobs that wait for a pool: it starts a node for them, or can't."""
    lacking = {job_id: wait for job_id, wait in made.why.items() if wait.kind in LACKS_NODES}
    if not lacking:
        return {}
    found = _on_the_way(state, made, lacking) if state.coming else {}
    for job in state.waiting if state.withheld else ():
        wait = lacking.get(job.id)
        if wait is not None and job.id not in found:
            why = [one.words for one in state.withheld if could_run(job, one.node)]
            if why:
                found[job.id] = replace(wait, text="; ".join([wait.text, *why]))
    return found


def awaited_by_engines(state: ClusterState, made: Plan) -> dict[str, str]:
    """The same of engine services that wait for GPUs."""
    found: dict[str, str] = {}
    for engine in state.unplaced:
        why = made.engines_why.get(engine.id)
        if why is None or not engine.gpus or engine.node is not None:
            continue  # no pool is asked for a node for it
        fits = partial(could_hold, engine)
        of_pools = [one.words for one in state.coming if fits(one.node)][:1]
        of_pools = of_pools or [one.words for one in state.withheld if fits(one.node)]
        if of_pools:
            found[engine.id] = "; ".join([why, *of_pools])
    return found


def _on_the_way(state: ClusterState, made: Plan, lacking: Container[str]) -> dict[str, Wait]:
    words = {one.node.id: one.words for one in state.coming}
    later = after(state, made)
    then = plan(replace(later, nodes=[*later.nodes, *(one.node for one in state.coming)]))
    found: dict[str, Wait] = {}
    for start in then.starts:
        on = [words[part.node_id] for part in start.allocations if part.node_id in words]
        if on and start.job_id in lacking:
            found[start.job_id] = Wait("starting", on[0])
    return found

"""Whether a plan that was made a moment ago still holds."""

from collections.abc import Iterable

from server.placement.state import NodeCapacity, SharedEngine, Start


def still_free(
    starts: Iterable[Start], nodes: Iterable[NodeCapacity], engines: Iterable[SharedEngine]
) -> list[Start]:
    """Those of an earlier plan's starts that still find room, each counted against those behind it."""
    slots: dict[str, int] = {}
    gpus: dict[str, set[str]] = {}
    for node in nodes:
        slots[node.id], gpus[node.id] = node.free_cpu_slots, set(node.free_gpus)
    room = {e.id: (e.node, e.max_adapters, set(e.jobs)) for e in engines if e.state == "ready"}
    found = []
    for start in starts:
        wanted: dict[str, set[str]] = {}
        for part in start.allocations:
            if part.engine_id is None:
                wanted.setdefault(part.node_id, set()).update(part.gpu_uuids)
        if not all(
            uuids <= gpus.get(node_id, set()) if uuids else slots.get(node_id, 0) > 0
            for node_id, uuids in wanted.items()
        ):
            continue
        shared = next((part for part in start.allocations if part.engine_id is not None), None)
        if shared is not None and shared.engine_id is not None:
            node_id, most, jobs = room.get(shared.engine_id, (None, 0, set()))
            if node_id != shared.node_id or len(jobs - {start.job_id}) >= most:
                continue
            jobs.add(start.job_id)
        for node_id, uuids in wanted.items():
            if uuids:
                gpus[node_id] -= uuids
            else:
                slots[node_id] -= 1
        found.append(start)
    return found

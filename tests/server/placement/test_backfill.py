"""What is kept for a large job."""

from powermean.contracts.attempts import GpuInfo
from server.placement.state import NodeCapacity
from tests.support.clusters import HOUR, job, node, planned, runs


def busy(node_id: str, name: str) -> NodeCapacity:
    info = tuple(GpuInfo(uuid=f"{node_id}-{n}", name=name, memory_mb=80_000) for n in range(2))
    return node(node_id, 2, free=0, gpu_info=info)


def test_of_several_types_the_one_that_is_free_first_is_kept():
    nodes = [busy("a1", "A100"), busy("a2", "A100"), busy("h", "H100")]
    ends = {"a1": 15 * HOUR, "a2": 14 * HOUR, "h": 11 * HOUR}
    running = [runs(f"on-{on}", "b", on, (0, 1), ends_at=at) for on, at in ends.items()]
    _, made = planned(nodes, [job("large", gpus=2)], running=running)
    wait = made.why["large"]
    assert (wait.kind, wait.kept, wait.at) == ("reserved", ("h",), 11 * HOUR)

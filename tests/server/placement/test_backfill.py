"""What is kept for a large job."""

from dataclasses import replace

import pytest

from powermean.contracts.attempts import GpuInfo
from server.placement.state import NodeCapacity, Share
from tests.support.clusters import HOUR, job, node, planned, runs, started


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


@pytest.mark.parametrize("small", ["a100", None])
def test_of_a_node_with_several_types_only_the_one_that_is_asked_for_is_kept(small: str | None):
    """The A100s of `mixed` are free or soon are. They help no job that asks for H100s, and are for others."""
    names = ("A100", "A100", "A100", "H100", "H100")
    info = tuple(GpuInfo(uuid=f"mixed-{n}", name=name, memory_mb=80_000) for n, name in enumerate(names))
    mixed = replace(node("mixed", 5, free=0, gpu_info=info), free_gpus=("mixed-2",))
    running = [
        runs("on-a", "b", "mixed", (0, 1), ends_at=11 * HOUR),
        runs("on-h", "b", "mixed", (3, 4), ends_at=13 * HOUR),
    ]
    waiting = [job("large", gpus=2, gpu_type="H100"), job("small", gpu_type=small, queued_at=1.0)]
    _, made = planned([mixed], waiting, running=running)
    wait = made.why["large"]
    assert (wait.kind, wait.kept, wait.at) == ("reserved", ("mixed",), 13 * HOUR)
    assert [start.allocations[0].gpu_uuids for start in made.starts] == [("mixed-2",)]
    assert "small" not in made.why


def test_a_job_to_which_others_give_way_counts_in_what_a_kept_node_has_to_spare():
    """`n` leaves one GPU over once `large` starts there: not one for each of two."""
    running = [
        runs("ends", "b", "n", (0, 1, 2), ends_at=11 * HOUR),
        runs("leaves", "c", "n", (3,), stopping=True),
    ]
    shares = {"c": Share(gpu_limit=1)}
    waiting = [
        job("large", gpus=4, queued_at=0.0),
        job("of-c", project="c", queued_at=1.0),
        job("next", queued_at=2.0),
    ]
    _, made = planned([node("n", 5, free=1)], waiting, running=running, shares=shares)
    wait = made.why["large"]
    assert (wait.kind, wait.kept, wait.at) == ("reserved", ("n",), 11 * HOUR)
    assert (made.why["of-c"].kind, made.why["of-c"].kept) == ("checkpoint", ("n",))
    assert started(made) == []

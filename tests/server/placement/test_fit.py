"""Which nodes and GPUs do for a job: gangs, types, memory, labels, closed nodes."""

from dataclasses import replace
from typing import Any

import pytest

from powermean.contracts.attempts import GpuInfo
from server.jobs.demand import AdapterNeed
from server.placement.state import (
    NodeCapacity,
    Share,
    SharedEngine,
)
from server.placement.why import explain
from tests.support.clusters import HOUR, job, node, planned, runs, started, stopped


def test_a_gang_gets_all_of_its_nodes_or_none():
    gang = job("gang", 4, nodes=2)
    _, made = planned([node("n", 8, 4), node("m", 4, 3)], [gang])
    assert started(made) == []
    assert made.why["gang"].text == "waiting for 4 free GPUs on one node, on 2 nodes at once"
    _, made = planned([node("n", 8, 4), node("m", 4)], [gang])
    assert [(part.role, part.node_id) for part in made.starts[0].allocations] == [
        *(("trainer", "m"), ("rollout", "m"), ("trainer", "n"), ("rollout", "n"))
    ]


def with_gpus(node_id: str, *names: str, **more: Any) -> NodeCapacity:
    info = tuple(GpuInfo(uuid=f"{node_id}-{n}", name=x, memory_mb=80_000) for n, x in enumerate(names))
    return node(node_id, len(names), gpu_info=info, **more)


A, H, PART = "NVIDIA A100", "NVIDIA H100", "H100"


def test_ranks_that_train_together_get_gpus_of_one_type():
    nodes = [with_gpus("a", A, A, A), with_gpus("h1", H, H), with_gpus("h2", H, H, A)]
    _, made = planned(nodes, [job("pair", 2, nodes=2), job("three", 3)])
    where = {start.job_id: start.allocations for start in made.starts}
    assert {part.node_id for part in where["pair"]} == {"h1", "h2"}
    assert where["pair"][-1].gpu_uuids == ("h2-0", "h2-1")
    assert {part.node_id for part in where["three"]} == {"a"}


@pytest.mark.parametrize(("project", "value"), [("b", 0), ("a", -100)], ids=["reclaim", "priority"])
def test_on_a_node_with_several_types_those_stop_who_hold_the_type_asked_for(project: str, value: int):
    """`cheap` loses least, but holds none of it; one of the two that are needed is about to be free."""
    nodes = [with_gpus("n", A, H, H, A, H, free=0)]
    running = [
        runs("cheap", project, "n", (0, 3), value=value, saved_at=9.9 * HOUR),
        runs("one", project, "n", (1,), value=value, saved_at=9 * HOUR),
        runs("other", project, "n", (2,), value=value, saved_at=8 * HOUR),
        runs("leaves", project, "n", (4,), value=value, stopping=True, stops_for="pair"),
    ]
    waiting = [job("pair", 2, gpu_type="h100"), job("next", 1, gpu_type="h100", queued_at=1.0)]
    _, made = planned(nodes, waiting, running=running, shares={"a": Share(2 if project == "b" else 0)})
    assert stopped(made) == (["one"] if project == "b" else ["one", "other"])
    assert made.why["pair"].kind == "checkpoint"


def test_gpus_of_several_types_do_for_ranks_that_are_alone():
    _, made = planned([with_gpus("n", A, H)], [job("split", 1, rollout_gpus=1)])
    assert started(made) == ["split"]


def test_a_gang_waits_for_nodes_of_one_type_and_says_so():
    nodes = [with_gpus("a", A, A), with_gpus("h", H, H)]
    state, made = planned(nodes, [job("gang", 2, nodes=2), job("wide", 4, nodes=2)])
    assert made.starts == []
    assert made.why["gang"].kind == "no_node"
    assert made.why["gang"].text == (
        "waiting for 2 GPUs on each of 2 nodes, all of one type: the connected nodes have several types"
    )
    assert made.why["wide"].text == "waiting for a node with 4 GPUs: the largest connected one has 2"
    more = [*nodes, with_gpus("h2", H, H, free=1)]
    state, made = planned(more, [job("gang", 2, nodes=2)])
    words = explain(state, made)["gang"].words(lambda _: True)
    assert words.startswith("needs 2 GPUs on each of 2 nodes, all of one type")


def test_a_pools_node_counts_as_the_type_that_its_pool_names():
    there, coming = with_gpus("n", H, H), with_gpus("pool gpu", PART, PART, declared=True)
    _, made = planned([there, coming], [job("gang", 2, nodes=2)])
    assert started(made) == ["gang"]
    _, made = planned([with_gpus("n", A, A), coming], [job("gang", 2, nodes=2)])
    assert started(made) == []


def test_a_gang_on_cpus_gets_a_slot_on_each_node():
    nodes = [replace(node(f"n{n}", 0), cpu_slots=2, free_cpu_slots=free) for n, free in enumerate((1, 2, 0))]
    _, made = planned(nodes, [job("gang", 0, nodes=2), job("three", 0, nodes=3), job("four", 0, nodes=4)])
    assert [(part.role, part.node_id, part.gpu_uuids) for part in made.starts[0].allocations] == [
        *(("trainer", "n1", ()), ("rollout", "n1", ()), ("trainer", "n0", ()), ("rollout", "n0", ()))
    ]
    assert made.why["three"].text == "waiting for a free CPU slot on each of 3 nodes"
    assert made.why["four"].text == (
        "waiting for 4 nodes with a CPU slot each (resources.nodes): 3 are connected"
    )


@pytest.mark.parametrize(("reach", "required"), [(None, True), ("n1", True), ("n1", False)])
def test_a_gang_shares_an_engine_that_all_of_its_nodes_reach(reach: str | None, required: bool):
    nodes = [node(f"n{n}", 1) for n in range(3)]
    engine = SharedEngine(
        "e", "e1", "m", "bfloat16", "ready", max_adapters=4, max_lora_rank=16, node="n1", reach=reach
    )
    need = AdapterNeed("m", "bfloat16", 8, 100, required)
    _, made = planned(nodes, [job("gang", adapter=need, nodes=2)], engines=[engine])
    if reach and required:
        assert made.why["gang"].text == "waiting for an engine that 2 nodes reach: only n1 has e1"
        return
    slots = [part.engine_id for part in made.starts[0].allocations if part.role == "rollout"]
    assert slots == ([None, None] if reach else ["e"])


def test_gpus_of_the_type_and_memory_and_nodes_with_the_labels_asked_for():
    nodes = [
        with_gpus("mixed", "NVIDIA A100", "NVIDIA H100"),
        with_gpus("pair", "NVIDIA H100", "NVIDIA H100", labels=frozenset({("zone", "b")})),
    ]
    _, made = planned(nodes, [job("one", gpu_type="h100"), job("two", 2, gpu_type="h100")])
    where = {start.job_id: start.allocations[0] for start in made.starts}
    assert where["one"].gpu_uuids == ("mixed-1",)
    assert where["two"].node_id == "pair"
    _, made = planned(nodes, [job("j", labels=(("zone", "b"),)), job("k", labels=(("zone", "c"),))])
    assert made.starts[0].allocations[0].node_id == "pair"
    assert made.why["k"].text == "waiting for a node with zone=c: no connected node has it"
    _, made = planned(nodes, [job("j", 2, gpu_type="a100"), job("k", gpu_memory_mb=90_000)])
    assert (
        made.why["j"].text
        == "waiting for a node with 2 GPUs (GPUs called a100): the largest connected one has 1"
    )
    assert (
        made.why["k"].text
        == "waiting for a node with a GPU (87.89 GiB a GPU): the largest connected one has 0"
    )


def test_a_closed_node_takes_nothing_and_says_why():
    _, made = planned([node("n", 4, 0, closed="n is draining (new disks)")], [job("j")])
    assert made.why["j"].text == "waiting for a node: n is draining (new disks)"

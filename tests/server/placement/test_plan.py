"""What is planned for small clusters, by example."""

from dataclasses import replace

import pytest

from powermean.contracts.attempts import GpuInfo
from server.placement import plan as planning
from server.placement.fit import could_run
from server.placement.plan import plan
from server.placement.state import (
    ClusterState,
    NodeCapacity,
    SharedEngine,
    WaitingEngine,
    WaitingJob,
)
from tests.support.plan_states import engine, lora, node, on_engine, texts


def started_on(state: ClusterState) -> dict[str, str]:
    return {start.job_id: start.allocations[0].node_id for start in plan(state).starts}


def test_a_gpu_job_takes_the_tightest_gap():
    state = ClusterState([node("a", gpus=8), node("b", gpus=8, free=2)], [WaitingJob("j", 2)])
    assert started_on(state) == {"j": "b"}


def test_cpu_jobs_spread():
    state = ClusterState([node("a", slots=2), node("b", slots=2)], [WaitingJob("j", 0), WaitingJob("k", 0)])
    assert started_on(state) == {"j": "a", "k": "b"}


def test_a_large_job_is_not_starved_by_small_ones():
    state = ClusterState([node("a", gpus=4, free=2)], [WaitingJob("large", 4), WaitingJob("small", 1)])
    made = plan(state)
    assert made.starts == []
    assert texts(made)["large"] == "waiting for 4 free GPUs on one node"
    assert texts(made)["small"] == "waiting behind earlier jobs"


def test_a_job_that_fits_nowhere_blocks_nobody_and_says_why():
    state = ClusterState([node("a", gpus=4)], [WaitingJob("huge", 16), WaitingJob("small", 1)])
    made = plan(state)
    assert [start.job_id for start in made.starts] == ["small"]
    assert texts(made) == {"huge": "waiting for a node with 16 GPUs: the largest connected one has 4"}


def test_gpu_jobs_do_not_hold_back_cpu_jobs():
    state = ClusterState([node("a", slots=1, gpus=1, free=0)], [WaitingJob("g", 1), WaitingJob("c", 0)])
    assert started_on(state) == {"c": "a"}


def test_a_node_that_let_the_job_down_comes_last_but_is_not_ruled_out():
    both = [node("a", slots=2), node("b", slots=1)]
    job = WaitingJob("j", 0, avoid=frozenset({"a"}))
    assert started_on(ClusterState(both, [job])) == {"j": "b"}
    assert started_on(ClusterState(both[:1], [job])) == {"j": "a"}


def test_without_nodes_the_reason_is_that():
    assert texts(plan(ClusterState([], [WaitingJob("j", 0)]))) == {
        "j": "waiting for a node: none is connected"
    }


def shared_on(state: ClusterState) -> dict[str, str | None]:
    return {start.job_id: on_engine(start) for start in plan(state).starts}


def test_lora_jobs_share_an_engine_as_long_as_it_has_slots_and_then_wait_or_get_their_own():
    jobs = [lora("j1"), lora("j2"), lora("j3"), lora("j4", required=True)]
    state = ClusterState([node("a", slots=8)], jobs, [engine("e")])
    assert shared_on(state) == {"j1": "e", "j2": "e", "j3": None}
    assert texts(plan(state)) == {"j4": "waiting for a free slot in engine e (all 2 taken)"}


def test_a_job_that_has_a_slot_still_needs_no_second_one():
    full = engine("e", jobs=frozenset({"j", "k"}))
    assert shared_on(ClusterState([node("a", slots=1)], [lora("j", required=True)], [full])) == {"j": "e"}


def test_the_trainer_goes_where_it_reaches_the_engine():
    both = [node("a", slots=1), node("b", slots=4)]
    trainers = started_on(ClusterState(both, [lora("j", required=True)], [engine("e")]))
    assert trainers == {"j": "a"}
    anywhere = started_on(ClusterState(both, [lora("j", required=True)], [engine("e", reach=None)]))
    assert anywhere == {"j": "b"}


def test_what_a_job_that_must_share_waits_for():
    def why(*there: SharedEngine, rank: int = 8, slots: int = 1, free: int = 1) -> str:
        cluster = [node("a", slots=slots, free_slots=free), node("b", slots=1)]
        return texts(plan(ClusterState(cluster, [lora("j", rank=rank, required=True)], there)))["j"]

    assert why() == "waiting for an engine to be declared for m in float32"
    assert why(engine("e", model="other")) == why()
    assert why(engine("e", state="starting")) == "waiting for engine e to be ready (starting)"
    assert "takes ranks up to 16, the job has 32" in why(engine("e"), rank=32)
    assert "takes 50 tokens, the job has up to 100" in why(engine("e", max_tokens=50))
    assert why(engine("e"), free=0) == "waiting for a free CPU slot"
    assert why(engine("e"), slots=0, free=0) == "waiting for engine e on a node that can hold the trainer"


def test_an_engine_serves_the_projects_that_it_names():
    theirs = engine("e", projects=frozenset({"theirs"}))
    jobs = [lora("j"), lora("k", required=True), lora("l", project="theirs")]
    state = ClusterState([node("a", slots=4)], jobs, [theirs])
    assert shared_on(state) == {"j": None, "l": "e"}
    assert texts(plan(state)) == {"k": "waiting for an engine that serves project ours"}
    open_to_all = ClusterState([node("a", slots=4)], jobs, [theirs, engine("f")])
    assert shared_on(open_to_all) == {"j": "f", "k": "f", "l": "e"}


def test_a_job_that_waits_for_an_engine_blocks_nobody():
    state = ClusterState([node("a", slots=1)], [lora("j", required=True), WaitingJob("k", 0)])
    assert started_on(state) == {"k": "a"}


def test_a_job_that_demands_vllm_goes_where_it_is():
    both = [node("a", slots=4), node("b", slots=1, vllm=True)]
    jobs = [WaitingJob("j", 0, vllm=True), WaitingJob("k", 0, vllm=True), WaitingJob("l", 0)]
    assert started_on(ClusterState(both, jobs)) == {"j": "b", "l": "a"}
    why = texts(plan(ClusterState(both[:1], jobs[:1])))
    assert why == {"j": "waiting for a node with vLLM: no connected node has it"}


def test_an_engine_has_its_gpu_before_any_job_and_is_not_starved():
    one = WaitingEngine("e", gpus=1)
    made = plan(ClusterState([node("a", gpus=1, vllm=True)], [WaitingJob("j", 1)], (), [one]))
    assert [(p.engine_id, p.gpu_uuids) for p in made.placements] == [("e", ("a-0",))]
    assert texts(made) == {"j": "waiting for 1 free GPU on one node"}
    two = WaitingEngine("e", gpus=2)
    busy = ClusterState([node("a", gpus=2, free=1, vllm=True)], [WaitingJob("j", 1)], (), [two])
    assert plan(busy).engines_why == {"e": "waiting for 2 free GPUs on a node with vLLM"}
    assert texts(plan(busy)) == {"j": "waiting for 1 free GPU on one node"}


def test_an_engine_on_the_cpu_takes_no_slot():
    made = plan(
        ClusterState([node("a", slots=1, vllm=True)], [WaitingJob("j", 0)], (), [WaitingEngine("e", 0)])
    )
    assert len(made.placements) == len(made.starts) == 1


def test_why_an_engine_waits():
    def why(wanted: WaitingEngine, *there: NodeCapacity) -> str:
        return plan(ClusterState(there, (), (), [wanted])).engines_why["e"]

    assert why(WaitingEngine("e", 0)) == "waiting for a node to connect"
    assert why(WaitingEngine("e", 0, "b"), node("a", vllm=True)) == "waiting for node b to connect"
    assert why(WaitingEngine("e", 0, "a"), node("a")) == "waiting for node a to have vLLM"
    assert "no connected node has that" in why(WaitingEngine("e", 1), node("a", vllm=True))


def test_a_split_job_gets_its_gpus_and_its_engines_on_one_node_or_waits_for_them() -> None:
    job = WaitingJob("j", gpus=1, rollout_gpus=1)
    (start,) = plan(ClusterState([node("a", gpus=1), node("b", gpus=2)], [job])).starts
    assert [(p.role, p.node_id, p.gpu_uuids) for p in start.allocations] == [
        ("trainer", "b", ("b-0",)),
        ("rollout", "b", ("b-1",)),
    ]
    assert texts(plan(ClusterState([node("a", gpus=2, free=1)], [job]))) == {
        "j": "waiting for 2 free GPUs on one node"
    }
    assert (
        "with 2 GPUs: the largest connected one has 1"
        in texts(plan(ClusterState([node("a", gpus=1)], [job])))["j"]
    )


def test_a_long_line_is_as_much_work_as_its_shapes(monkeypatch: pytest.MonkeyPatch):
    looked: list[str] = []
    tries = planning._Planning._tries
    monkeypatch.setattr(
        planning._Planning, "_tries", lambda self, job: looked.append(job.id) or tries(self, job)
    )
    jobs = [lora(f"j{number}", tokens=number, gpus=number % 2) for number in range(1000)]
    cluster = [node("a", slots=2, free_slots=1, gpus=2, free=1), node("b", slots=1, free_slots=0)]
    made = plan(ClusterState(cluster, jobs, [engine("e", max_tokens=500)]))
    assert len(made.starts) == 2
    assert len(made.why) == 998
    assert len(looked) < 20


def of_kind(node_id: str, *cards: tuple[str, int], labels: dict[str, str] | None = None) -> NodeCapacity:
    """A node with GPUs of these names and memories."""
    info = tuple(
        GpuInfo(uuid=f"{node_id}-{i}", name=name, memory_mb=memory) for i, (name, memory) in enumerate(cards)
    )
    found = frozenset((labels or {}).items())
    return replace(node(node_id, slots=1, gpus=len(cards)), gpu_info=info, labels=found)


A10, H100 = ("NVIDIA A10", 23_028), ("NVIDIA H100 80GB HBM3", 81_559)


def test_gpus_are_of_the_kind_that_was_asked_for():
    mixed = [of_kind("a", A10, A10), of_kind("b", A10, H100)]
    asked = [
        WaitingJob("named", 1, gpu_type="h100"),
        WaitingJob("large", 1, gpu_memory_mb=40_000, queued_at=1.0),
        WaitingJob("any", 1),
        WaitingJob("two", 2, gpu_type="h100"),
    ]
    made = plan(ClusterState(mixed, asked))
    assert {start.job_id: start.allocations[0].gpu_uuids for start in made.starts} == {
        "named": ("b-1",),
        "any": ("a-0",),
    }
    assert texts(made) == {
        "large": "waiting for 1 free GPU on one node",
        "two": "waiting for a node with 2 GPUs (GPUs called h100): the largest connected one has 1",
    }


def test_labels_choose_nodes():
    zones = [of_kind("a", labels={"zone": "a"}), of_kind("b", labels={"zone": "b", "rack": "3"})]
    asked = [
        WaitingJob("both", 0, labels=(("rack", "3"), ("zone", "b"))),
        WaitingJob("neither", 0, labels=(("rack", "3"), ("zone", "a"))),
    ]
    made = plan(ClusterState(zones, asked))
    assert [(start.job_id, start.allocations[0].node_id) for start in made.starts] == [("both", "b")]
    assert texts(made) == {"neither": "waiting for a node with rack=3, zone=a: no connected node has it"}
    assert [n.id for n in zones if could_run(asked[0], n)] == ["b"]


def test_who_has_a_slot_in_an_engine_asks_it_of_the_trainers_node():
    zones = [of_kind("a", labels={"zone": "a"}), of_kind("b", labels={"zone": "b"})]
    job = replace(lora("job"), labels=(("zone", "b"),))
    made = plan(ClusterState(zones, [job], [engine("e", "a", reach=None)]))
    assert [part.node_id for start in made.starts for part in start.allocations] == ["b", "a"]

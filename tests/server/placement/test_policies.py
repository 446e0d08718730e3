"""Each policy by itself: who goes first, who gives way, what is kept, what fits."""

from dataclasses import replace
from typing import Any

import pytest

from powermean.contracts.attempts import GpuInfo
from server.jobs.demand import AdapterNeed
from server.placement.state import (
    NodeCapacity,
    Rules,
    RunningJob,
    Share,
    SharedEngine,
    WaitingEngine,
)
from server.placement.why import explain
from tests.support.clusters import HOUR, job, node, planned, runs, started, stopped
from tests.support.instructions import instructions_counted


def test_a_quota_goes_before_borrowers_however_long_they_wait():
    waiting = [job("old", project="b"), job("owner", project="a", queued_at=9 * HOUR)]
    _, made = planned([node("n", 1)], waiting, shares={"a": Share(gpu_quota=1)})
    assert started(made) == ["owner"]


def test_borrowers_share_by_weight():
    waiting = [job(f"{project}{number}", project=project) for project in "ab" for number in range(8)]
    _, made = planned([node("n", 6)], waiting, shares={"a": Share(weight=2.0)})
    assert sorted(name[0] for name in started(made)) == ["a"] * 4 + ["b"] * 2


def test_the_dominant_share_counts_slots_beside_gpus():
    """A project that uses half of the CPU slots borrows as much as one that uses half of the GPUs."""
    busy = RunningJob("r", "a", (("n", ()),))
    nodes = [replace(node("n", 4, 1), cpu_slots=2, free_cpu_slots=1)]
    other = runs("s", "b", "n", (0,))
    _, made = planned(nodes, [job("a1", project="a"), job("b1", project="b")], running=[busy, other])
    assert started(made) == ["b1"]


def test_priority_and_age_count_together():
    day, rules = 86_400.0, Rules(point_s=864.0)
    high = job("high", value=100, queued_at=2 * day)
    _, made = planned([node("n", 1)], [job("old", queued_at=1.1 * day), high], rules=rules, now=3 * day)
    assert started(made) == ["high"]
    _, made = planned([node("n", 1)], [job("older", queued_at=0.9 * day), high], rules=rules, now=3 * day)
    assert started(made) == ["older"]


def test_a_job_that_gave_way_returns_to_its_place_but_not_before_the_one_it_left():
    back = job("back", queued_at=9 * HOUR, first_queued_at=0.0)
    _, made = planned([node("n", 1)], [job("later", queued_at=5 * HOUR), back])
    assert started(made) == ["back"]
    high = job("high", value=1, queued_at=8 * HOUR)
    _, made = planned([node("n", 1)], [high, back])
    assert started(made) == ["high"]


def test_the_victim_loses_least_and_only_as_many_as_needed_stop():
    running = [
        runs("dear", "b", "n", (0, 1), saved_at=8 * HOUR),
        runs("cheap", "b", "n", (2, 3), saved_at=9.9 * HOUR),
        runs("cheaper", "b", "n", (4,), saved_at=9.99 * HOUR),
    ]
    shares = {"a": Share(gpu_quota=4)}
    _, made = planned([node("n", 5, 0)], [job("j", 2)], running=running, shares=shares)
    assert stopped(made) == ["cheap"]
    assert made.stops[0].made_for == "j"
    assert made.stops[0].reason == "preempted: another project takes back 2 GPUs of its quota"


def test_no_more_is_taken_back_than_is_borrowed():
    running = [runs(f"b{number}", "b", "n", (number,)) for number in range(4)]
    shares = {"a": Share(gpu_quota=4), "b": Share(gpu_quota=3)}
    _, made = planned([node("n", 4, 0)], [job("j1"), job("j2")], running=running, shares=shares)
    assert len(made.stops) == 1
    assert made.why["j2"].kind == "busy"


def test_nobody_stops_where_that_helps_nobody():
    """The node's other GPUs are held by a job that keeps them: no stop there makes room for four."""
    running = [runs("kept", "a", "n", (0, 1)), runs("borrowed", "b", "n", (2, 3))]
    _, made = planned([node("n", 4, 0)], [job("j", 4)], running=running, shares={"a": Share(gpu_quota=8)})
    assert made.stops == []


def test_what_others_leave_is_for_the_job_that_they_left_it_to():
    """Also when it is free already, and somebody else would be next."""
    shares = {"a": Share(weight=0.1)}
    high, next_ = job("high", value=100, queued_at=9 * HOUR), job("next", project="b")
    low = runs("low", "a", "n", (0,), value=0)
    held = [low, runs("more", "a", "n", (1,), value=100)]
    _, made = planned([node("n", 2, 0)], [high, next_], running=held, shares=shares)
    assert stopped(made) == ["low"]
    high = replace(high, promised=("n",))
    stopping = [replace(low, stopping=True, stops_for="high"), held[1]]
    _, made = planned([node("n", 2, 0)], [high, next_], running=stopping, shares=shares)
    assert made.stops == []
    assert made.why["high"].kept == ("n",)
    left = job("low", queued_at=10 * HOUR, first_queued_at=0.0)
    _, made = planned([node("n", 2, 1)], [high, next_, left], running=held[1:], shares=shares)
    assert started(made) == ["high"]


def test_a_place_that_was_left_is_kept_whatever_becomes_of_those_who_left_it():
    """The one that gave way is gone: it ended in the meantime, or somebody paused it."""
    waiting = [job("next", project="b"), job("high", queued_at=9 * HOUR, promised=("n",))]
    state, made = planned([node("n", 1), node("m", 1, 0)], waiting, shares={"b": Share(gpu_quota=1)})
    assert started(made) == ["high"]
    assert {name: why.position for name, why in explain(state, made, first=2).items()} == {"next": 2}


def test_the_line_begins_with_those_who_were_promised_a_place():
    waiting = [job("next", project="b"), job("high", queued_at=9 * HOUR, promised=("n",))]
    low = runs("low", "a", "n", (0,), stopping=True, stops_for="high")
    state, made = planned([node("n", 1, 0)], waiting, running=[low], shares={"b": Share(gpu_quota=1)})
    told = explain(state, made)
    assert [(told[name].position, told[name].ahead) for name in ("high", "next")] == [(1, 0), (2, 1)]


def test_small_jobs_fill_what_is_kept_for_a_large_one_if_they_end_before():
    running = [runs("r", "b", "n", (0, 1, 2, 3), ends_at=12 * HOUR)]
    large = job("large", 6)
    short, long = (job(name, seconds=hours * HOUR) for name, hours in (("short", 1.9), ("long", 2.1)))
    _, made = planned([node("n", 8, 4)], [large, short, long, job("unknown")], running=running)
    assert made.why["large"].at == 12 * HOUR
    assert sorted(started(made)) == ["long", "short"]  # two GPUs are left over when the large job starts
    assert made.why["unknown"].kind == "behind"


def test_a_job_of_unknown_length_that_does_not_fit_holds_up_no_short_one():
    running = [runs("r", "b", "n", (0, 1, 2, 3), ends_at=12 * HOUR)]
    waiting = [job("large", 8), job("endless", queued_at=1.0), job("short", queued_at=2.0, seconds=HOUR)]
    _, made = planned([node("n", 8, 4)], waiting, running=running)
    assert started(made) == ["short"]


def test_nobody_fills_what_is_kept_where_no_end_is_known():
    running = [runs("r", "b", "n", (0, 1, 2, 3))]
    _, made = planned([node("n", 8, 4)], [job("large", 6), job("short", seconds=1.0)], running=running)
    assert started(made) == []
    _, made = planned([node("n", 8, 4), node("m", 1)], [job("large", 6), job("short")], running=running)
    assert started(made) == ["short"]


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


@pytest.mark.parametrize("ends_at", [None, 11 * HOUR])
def test_an_estimate_is_given_where_the_running_jobs_pace_says_something(ends_at: float | None):
    running = [runs("r", "b", "n", (0, 1), ends_at=ends_at), runs("s", "b", "n", (2, 3), ends_at=12 * HOUR)]
    waiting = [job("first", 4), job("second", 1)]
    state, made = planned([node("n", 4, 0)], waiting, running=running)
    why = explain(state, made)
    assert [why[one.id].position for one in waiting] == [1, 2]
    assert why["first"].start_at == (None if ends_at is None else 12 * HOUR)
    assert why["second"].start_at is None  # the first gives nothing back, as far as anybody knows
    assert why["second"].words(lambda _: True) == "needs 1 GPU; ahead of it: first (priority normal)"


def test_an_unknown_start_hides_only_the_estimates_of_jobs_that_could_have_the_same_gpus():
    """Of the node's two types, the one that nobody knows about is of no use to the job behind."""
    names = ("NVIDIA A100", "NVIDIA A100", "NVIDIA H100", "NVIDIA H100")
    info = tuple(GpuInfo(uuid=f"n-{n}", name=name, memory_mb=80_000) for n, name in enumerate(names))
    running = [runs("a", "b", "n", (0, 1), ends_at=11 * HOUR), runs("h", "b", "n", (2, 3))]
    waiting = [
        job("unknown", gpu_type="h100"),
        job("known", 2, gpu_type="a100"),
        job("behind", gpu_type="h100", value=-1),
        job("any", value=-2),
    ]
    state, made = planned([node("n", 4, 0, gpu_info=info)], waiting, running=running)
    found = {name: why.start_at for name, why in explain(state, made).items()}
    assert found == {"unknown": None, "known": 11 * HOUR, "behind": None, "any": None}


def test_no_start_is_estimated_on_a_node_that_drains():
    drains = node("n", 1, 0, closed="n is draining (new disks)")
    nodes, running = [drains, node("m", 1, 0)], [runs("r", "b", "n", (0,), ends_at=11 * HOUR)]
    state, made = planned(nodes, [job("j")], running=[*running, runs("s", "b", "m", (0,))])
    assert explain(state, made)["j"].start_at is None


def test_owners_who_go_first_are_named_to_those_who_may_see_them():
    running = [runs("r", "c", "n", (0, 1), started_at=10 * HOUR)]
    waiting = [job("own", 2, "a", priority="high"), job("mine", 2, "b")]
    state, made = planned([node("n", 2, 0)], waiting, running=running, shares={"a": Share(gpu_quota=2)})
    why = explain(state, made)["mine"]
    assert "a is under its quota and goes first" in why.words(lambda _: True)
    assert "ahead of it: own (priority high)" in why.words(lambda _: True)
    hidden = why.words(lambda project: project == "b")
    assert "another project is under its quota and goes first" in hidden
    assert "own" not in hidden
    assert why.text == "waiting for 2 free GPUs on one node"


def test_a_reason_says_each_thing_once():
    """`n` has a GPU, but it is kept for `big`; two projects go first, and five jobs."""
    running = [runs("r", "d", "n", (0, 1, 2), started_at=10 * HOUR)]
    waiting = [
        *(job("big", 4, "b"), job("b2", 4, "b", queued_at=1.0), job("b3", 4, "b", queued_at=2.0)),
        *(job("c1", 4, "c", queued_at=3.0), job("c2", 4, "c", queued_at=4.0), job("mine", 1, queued_at=5.0)),
    ]
    shares = {"b": Share(gpu_quota=12), "c": Share(gpu_quota=8)}
    state, made = planned([node("n", 4, 1)], waiting, running=running, shares=shares)
    why = explain(state, made)["mine"]
    assert why.words(lambda _: True) == (
        "needs 1 GPU; n has 1 free, kept for big; projects under their quotas go first: b, c; "
        "ahead of it: b2 (priority normal), c2 (priority normal), b3 (priority normal), "
        "2 more of other projects"
    )
    assert why.words(lambda project: project == "a") == (
        "needs 1 GPU; n has 1 free, kept for a job of another project; "
        "projects under their quotas go first: others; ahead of it: 5 jobs of other projects"
    )


def test_a_job_that_was_told_to_stop_counts_for_its_projects_limit_until_it_has_left():
    shares = {"a": Share(gpu_limit=2)}
    running = [runs("leaves", "a", "n", (0,), stopping=True), runs("stays", "a", "n", (1,))]
    waiting = [job("next"), job("other", project="b", queued_at=1.0)]
    _, made = planned([node("n", 2, 0), node("m", 1)], waiting, running=running, shares=shares)
    assert started(made) == ["other"]
    assert made.why["next"].kept == ("n",)
    _, made = planned([node("n", 2, 1)], waiting[:1], running=running[1:], shares=shares)
    assert started(made) == ["next"]


def test_an_engine_that_waits_keeps_its_own_gpus_and_no_more():
    """Owners take their quotas back on the rest of the node, and what was left for a job is that job's."""
    there = replace(node("n", 8, 0), engines=("vllm",))
    running = [runs(f"b{number}", "b", "n", (number,)) for number in range(8)]
    engine, shares = WaitingEngine("e", 1), {"a": Share(gpu_quota=4)}
    waiting = [job("a1"), job("a2")]
    _, made = planned([there], waiting, running=running, shares=shares, unplaced=[engine])
    assert len(made.stops) == 2
    left = job("b0", project="b", queued_at=9 * HOUR)
    free = replace(node("n", 8, 1), engines=("vllm",))
    _, made = planned(
        [free], [job("a1", promised=("n",)), left], running=running[1:], shares=shares, unplaced=[engine]
    )
    assert started(made) == ["a1"]


def test_a_job_that_fits_nowhere_holds_up_nobody_of_its_project():
    shares = {"a": Share(gpu_limit=2)}
    never = replace(job("never", 2, queued_at=0.0), gpu_type="b200")
    running = [runs("r", "a", "n", (0,))]
    _, made = planned(
        [node("n", 8, 7)], [never, job("small", queued_at=9 * HOUR)], running=running, shares=shares
    )
    assert started(made) == ["small"]


def test_who_passed_by_age_is_not_stopped_for_those_it_passed():
    old = runs("old", "a", "n", (0,), value=-100, queued_at=-80 * HOUR)
    _, made = planned([node("n", 1, 0)], [job("new", queued_at=9 * HOUR)], running=[old])
    assert made.stops == []
    _, made = planned(
        [node("n", 1, 0)], [job("new", queued_at=9 * HOUR)], running=[replace(old, queued_at=8 * HOUR)]
    )
    assert stopped(made) == ["old"]


@pytest.mark.parametrize("quota", [0, 1])
def test_priority_reaches_into_no_other_project(quota: int):
    shares = {"a": Share(gpu_quota=quota), "c": Share(gpu_quota=quota)}
    waiting = [job("new", value=100, queued_at=9 * HOUR), job("long", project="c", queued_at=0.0)]
    _, made = planned([node("n", 1)], waiting, shares=shares)
    assert started(made) == ["long"]


def test_what_leaves_a_draining_node_is_for_nobody():
    shares = {"a": Share(gpu_quota=1)}
    drains = replace(node("n1", 1, 0), closed="n1 is draining (by Ada)")
    leaves, borrows = runs("leaves", "b", "n1", (0,), stopping=True), runs("borrows", "b", "n2", (0,))
    _, made = planned([drains, node("n2", 1, 0)], [job("owner")], running=[leaves, borrows], shares=shares)
    assert stopped(made) == ["borrows"]


def test_nobody_is_stopped_for_a_gpu_that_is_ill():
    shares = {"a": Share(gpu_quota=1), "b": Share(gpu_quota=1)}
    running = [
        runs("on the ill one", "b", "n", (0,), saved_at=9.99 * HOUR, ill=frozenset({"n-0"})),
        runs("on the other", "b", "n", (1,)),
    ]
    _, made = planned([replace(node("n", 1, 0))], [job("owner")], running=running, shares=shares)
    assert stopped(made) == ["on the other"]


def test_a_job_that_others_give_way_to_keeps_its_slot_in_the_shared_engine():
    need = AdapterNeed("m", "bfloat16", 8, 100, required=True)
    engine = SharedEngine("e", "e", "m", "bfloat16", "ready", max_adapters=1, max_lora_rank=8, node="n")
    shares = {"a": Share(gpu_quota=1)}
    owner = replace(job("owner"), adapter=need, labels=(("zone", "a"),))
    other = replace(job("other", project="c"), adapter=need)
    nodes = [replace(node("n", 1, 0), labels=frozenset({("zone", "a")})), node("n2", 1)]
    _, made = planned(
        nodes, [owner, other], running=[runs("b", "b", "n", (0,))], shares=shares, engines=[engine]
    )
    assert stopped(made) == ["b"]
    assert started(made) == []
    assert made.why["other"].kind == "engine"


def test_a_job_that_must_share_an_engine_counts_without_one_of_its_own():
    need = AdapterNeed("m", "bfloat16", 8, 100, required=True)
    engine = SharedEngine("e", "e", "m", "bfloat16", "ready", max_adapters=1, max_lora_rank=8, node="n")
    shares = {"a": Share(gpu_limit=1)}
    split = replace(job("split"), adapter=need, rollout_gpus=1)
    _, made = planned([node("n", 4)], [split], shares=shares, engines=[engine])
    assert started(made) == ["split"]


@pytest.mark.slow
def test_a_line_four_times_as_long_takes_no_sixteen_times_as_long_to_explain():
    """10,000 jobs took 4 s of CPU when each looked at all before it. What is counted is instructions."""

    def instructions(count: int) -> int:
        line = [job(f"j{number:05}", queued_at=float(number), first_queued_at=0.0) for number in range(count)]
        state, made = planned([node("n", 1, 0)], line, running=[runs("r", "b", "n", (0,))])
        with instructions_counted() as counted:
            found = explain(state, made)
        last = max(found.values(), key=lambda why: why.position)
        assert (last.position, last.ahead) == (count, count - 1)
        return counted.total

    assert instructions(400) < 6 * instructions(100)

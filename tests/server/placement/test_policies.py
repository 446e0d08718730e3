"""Each policy by itself: who goes first, who gives way, what is kept."""

from dataclasses import replace

import pytest

from server.jobs.demand import AdapterNeed
from server.placement.state import (
    Rules,
    RunningJob,
    Share,
    SharedEngine,
    WaitingEngine,
)
from server.placement.why import explain
from tests.support.clusters import HOUR, job, node, planned, runs, started, stopped


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

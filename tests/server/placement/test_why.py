"""Why a job waits, and until when."""

import pytest

from powermean.contracts.attempts import GpuInfo
from server.placement.state import (
    Share,
)
from server.placement.why import explain
from tests.support.clusters import HOUR, job, node, planned, runs
from tests.support.instructions import instructions_counted


@pytest.mark.parametrize("ends_at", [None, 11 * HOUR])
def test_an_estimate_is_given_where_the_running_jobs_pace_says_something(ends_at: float | None):
    running = [runs("r", "b", "n", (0, 1), ends_at=ends_at), runs("s", "b", "n", (2, 3), ends_at=12 * HOUR)]
    waiting = [job("first", 4), job("second", 1)]
    state, made = planned([node("n", 4, 0)], waiting, running=running)
    why = explain(state, made)
    assert [why[one.id].position for one in waiting] == [1, 2]
    assert why["first"].start_at == (None if ends_at is None else 12 * HOUR)
    assert why["second"].start_at is None  # the first gives nothing back, as far as anybody knows
    assert (
        why["second"].words(lambda _: True)
        == "needs 1 GPU; in use by: r, s; ahead of it: first (priority normal)"
    )


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


def test_who_has_what_it_needs_is_named_on_a_small_cluster():
    running = [runs(f"r{number}", "ab"[number % 2], "n", (number,)) for number in range(5)]
    state, made = planned([node("n", 5, 0)], [job("j")], running=running)
    why = explain(state, made)["j"]
    assert why.words(lambda _: True) == "needs 1 GPU; in use by: r0, r1, r2, 2 more"
    assert why.words(lambda project: project == "a") == (
        "needs 1 GPU; in use by: r0, a job of another project, r2, 2 more"
    )
    assert str(why.help).startswith("A quota for the project")

    names = ("NVIDIA A100", "NVIDIA H100")
    info = tuple(GpuInfo(uuid=f"n-{n}", name=name, memory_mb=80_000) for n, name in enumerate(names))
    both = [runs("a", "b", "n", (0,)), runs("h", "b", "n", (1,))]
    state, made = planned([node("n", 2, 0, gpu_info=info)], [job("j", gpu_type="H100")], running=both)
    assert explain(state, made)["j"].words(lambda _: True) == "needs 1 H100 GPU; in use by: h"

    full = [node(f"n{number}", 1, 0) for number in range(4)]
    state, made = planned(full, [job("j")], running=[runs("r", "a", "n0", (0,))])
    why = explain(state, made)["j"]
    assert why.words(lambda _: True) == "needs 1 GPU; none of the 4 nodes that could run it has one free"
    assert why.help == "It starts when one of the project's own jobs has ended or is paused."


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

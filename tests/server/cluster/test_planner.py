"""The planner's laws, for any cluster and any line of jobs."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from server.cluster.planner import ClusterState, NodeCapacity, WaitingJob, plan


def node(
    node_id: str, *, slots: int = 0, gpus: int = 0, free_slots: int | None = None, free: int | None = None
):
    uuids = tuple(f"{node_id}-{i}" for i in range(gpus))
    return NodeCapacity(
        id=node_id,
        cpu_slots=slots,
        gpus=gpus,
        free_cpu_slots=slots if free_slots is None else free_slots,
        free_gpus=uuids if free is None else uuids[:free],
    )


@st.composite
def nodes(draw: st.DrawFn) -> list[NodeCapacity]:
    made = []
    for number in range(draw(st.integers(0, 5))):
        slots, gpus = draw(st.integers(0, 4)), draw(st.integers(0, 8))
        free_slots, free = draw(st.integers(0, slots)), draw(st.integers(0, gpus))
        made.append(node(f"n{number}", slots=slots, gpus=gpus, free_slots=free_slots, free=free))
    return made


@st.composite
def states(draw: st.DrawFn) -> ClusterState:
    found = draw(nodes())
    jobs = [
        WaitingJob(
            f"job{number}",
            gpus=draw(st.integers(0, 9)),
            avoid=frozenset(draw(st.sets(st.sampled_from(["n0", "n1", "n2"])))),
        )
        for number in range(draw(st.integers(0, 12)))
    ]
    return ClusterState(found, jobs)


@given(states())
def test_every_job_starts_or_is_told_why_not(state: ClusterState):
    made = plan(state)
    starts = [start.job_id for start in made.starts]
    assert Counter([*starts, *made.why]) == Counter(job.id for job in state.waiting)
    assert all(made.why.values())


@given(states())
def test_nothing_is_given_out_twice_or_that_is_not_free(state: ClusterState):
    made = plan(state)
    wanted = {job.id: job.gpus for job in state.waiting}
    gpus: Counter[tuple[str, str]] = Counter()
    slots: Counter[str] = Counter()
    for start in made.starts:
        trainer, rollout = start.allocations
        assert (trainer.role, rollout.role) == ("trainer", "rollout")
        assert (trainer.node_id, trainer.gpu_uuids) == (rollout.node_id, rollout.gpu_uuids)
        assert len(set(trainer.gpu_uuids)) == wanted[start.job_id]
        gpus.update((trainer.node_id, uuid) for uuid in trainer.gpu_uuids)
        if not trainer.gpu_uuids:
            slots[trainer.node_id] += 1
    free = {(n.id, uuid) for n in state.nodes for uuid in n.free_gpus}
    assert set(gpus) <= free
    assert not gpus or max(gpus.values()) == 1
    assert all(slots[n.id] <= n.free_cpu_slots for n in state.nodes)


@given(states())
def test_nobody_is_overtaken_by_a_job_of_its_line(state: ClusterState):
    """Once a job that could run on some node waits, none behind it in the same line (CPU, GPU) starts."""
    started = {start.job_id for start in plan(state).starts}
    for needs_gpus in (False, True):
        waits = False
        for job in state.waiting:
            if (job.gpus > 0) != needs_gpus:
                continue
            possible = any(n.gpus >= job.gpus if needs_gpus else n.cpu_slots > 0 for n in state.nodes)
            waits = waits or (possible and job.id not in started)
            assert not (waits and job.id in started)


@given(states())
def test_no_capacity_idles_that_the_first_of_a_line_could_use(state: ClusterState):
    made = plan(state)
    used = Counter(part.node_id for s in made.starts for part in s.allocations[:1] if not part.gpu_uuids)
    for job in state.waiting:
        if job.id in made.why and job.gpus == 0:
            assert all(n.free_cpu_slots == used[n.id] for n in state.nodes)


@given(states())
def test_the_same_state_gives_the_same_plan(state: ClusterState):
    assert plan(state) == plan(state)


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
    assert made.why["large"] == "waiting for 4 free GPUs on one node"
    assert made.why["small"] == "waiting behind earlier jobs"


def test_a_job_that_fits_nowhere_blocks_nobody_and_says_why():
    state = ClusterState([node("a", gpus=4)], [WaitingJob("huge", 16), WaitingJob("small", 1)])
    made = plan(state)
    assert [start.job_id for start in made.starts] == ["small"]
    assert made.why == {"huge": "waiting for a node with 16 GPUs: the largest one connected has 4"}


def test_gpu_jobs_do_not_hold_back_cpu_jobs():
    state = ClusterState([node("a", slots=1, gpus=1, free=0)], [WaitingJob("g", 1), WaitingJob("c", 0)])
    assert started_on(state) == {"c": "a"}


def test_a_node_that_let_the_job_down_comes_last_but_is_not_ruled_out():
    both = [node("a", slots=2), node("b", slots=1)]
    job = WaitingJob("j", 0, avoid=frozenset({"a"}))
    assert started_on(ClusterState(both, [job])) == {"j": "b"}
    assert started_on(ClusterState(both[:1], [job])) == {"j": "a"}


def test_without_nodes_the_reason_is_that():
    assert plan(ClusterState([], [WaitingJob("j", 0)])).why == {"j": "waiting for a node: none is connected"}

"""How many nodes the work justifies: laws, whatever waits and whatever there is."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from powermean.contracts.attempts import GpuInfo
from powermean.contracts.pools import Shape
from server.cluster.pilots import as_node
from server.placement.fit import could_run
from server.placement.outlook import awaited, awaited_by_engines
from server.placement.plan import plan
from server.placement.state import ClusterState, Coming, NodeCapacity, Share, WaitingEngine, WaitingJob
from server.pools.sizing import Check, PilotFacts, PoolFacts, Sizes, sizes

SHAPES = st.builds(
    Shape,
    gpus=st.sampled_from([0, 1, 2, 4]),
    gpu_type=st.sampled_from(["", "H100", "A100"]),
    cpu_slots=st.integers(0, 2),
    labels=st.sampled_from([{}, {"zone": "a"}]),
)
JOBS = st.builds(
    WaitingJob,
    id=st.uuids().map(str),
    gpus=st.sampled_from([0, 1, 1, 2, 4, 8]),
    nodes=st.sampled_from([1, 1, 2]),
    project=st.sampled_from(["a", "b"]),
    gpu_type=st.sampled_from([None, None, "h100"]),
    labels=st.sampled_from([(), (("zone", "a"),)]),
    queued_at=st.floats(0, 100),
).map(lambda job: job if job.gpus else replace(job, gpu_type=None))
SHARES = st.fixed_dictionaries({"a": st.builds(Share, gpu_limit=st.sampled_from([None, 2]))})
PILOTS = st.tuples(st.booleans(), st.booleans(), st.booleans(), st.sampled_from([0.0, 30.0, 90.0]))


@st.composite
def pools_of(draw: st.DrawFn) -> list[PoolFacts]:
    found = []
    for name in ("big", "small")[: draw(st.integers(1, 2))]:
        least = draw(st.integers(0, 2))
        most = draw(st.integers(least, 4))
        pilots = [
            PilotFacts(f"{name}-{place}", f"{name}-{place}", reports, busy and reports, leaves, idle)
            for place, (reports, busy, leaves, idle) in enumerate(draw(st.lists(PILOTS, max_size=most)))
        ]
        ready = draw(st.sampled_from([True, True, False]))
        found.append(PoolFacts(name, draw(SHAPES), least, most, 60.0, ready, tuple(pilots)))
    return found


def state_of(pools: list[PoolFacts], jobs: list[WaitingJob], shares: dict[str, Share]) -> ClusterState:
    """A cluster of the pools' nodes alone; what is busy has nothing free."""
    nodes: list[NodeCapacity] = []
    coming: list[Coming] = []
    for pool in pools:
        for one in pool.pilots:
            node = as_node(one.node_id, pool.shape)
            if one.reports:
                closed = f"{one.node_id} is draining" if one.leaves else None
                taken = one.busy or one.leaves
                nodes.append(
                    replace(node, closed=closed, **({"free_cpu_slots": 0, "free_gpus": ()} if taken else {}))
                )
            elif not one.leaves:
                coming.append(Coming(node, f"pool {pool.name} is starting a node"))
    return ClusterState(nodes=nodes, waiting=jobs, shares=shares, coming=tuple(coming))


def grown(
    state: ClusterState, pools: list[PoolFacts], starts: dict[str, int]
) -> tuple[ClusterState, list[PoolFacts]]:
    """Once these nodes have been asked for."""
    coming, more = list(state.coming), []
    for pool in pools:
        new = [f"{pool.name}-new{place}" for place in range(starts.get(pool.name, 0))]
        coming += [Coming(as_node(name, pool.shape), f"pool {pool.name} is starting a node") for name in new]
        more.append(replace(pool, pilots=(*pool.pilots, *(PilotFacts(name, name) for name in new))))
    return replace(state, coming=tuple(coming)), more


WORK = st.lists(JOBS, max_size=6, unique_by=lambda job: job.id)


@given(pools_of(), WORK, SHARES)
def test_never_above_max_nor_below_min(
    pools: list[PoolFacts], jobs: list[WaitingJob], shares: dict[str, Share]
):
    found = sizes(state_of(pools, jobs, shares), pools)
    for pool in pools:
        started = found.starts.get(pool.name, 0)
        assert started == 0 or len(pool.pilots) + started <= pool.max
        assert started == 0 or pool.ready
        staying = [one for one in pool.pilots if not one.leaves]
        gone = [one for one in staying if one.id in found.let_go]
        assert len(staying) - len(gone) >= min(pool.min, len(staying))
        if pool.ready:
            assert len(staying) - len(gone) + started >= min(
                pool.min, pool.max - len(pool.pilots) + len(staying)
            )


@given(pools_of(), WORK, SHARES)
def test_what_was_asked_for_is_asked_for_once(
    pools: list[PoolFacts], jobs: list[WaitingJob], shares: dict[str, Share]
):
    """Asking again, with all that was asked for on its way, asks for nothing and lets nothing of it go."""
    state = state_of(pools, jobs, shares)
    found = sizes(state, pools)
    then_state, then_pools = grown(state, pools, found.starts)
    again = sizes(then_state, then_pools)
    assert again.starts == {}
    assert not any("new" in name for name in again.let_go)


@given(pools_of(), WORK, SHARES)
def test_each_new_node_is_for_work_that_it_can_hold(
    pools: list[PoolFacts], jobs: list[WaitingJob], shares: dict[str, Share]
):
    found = sizes(state_of(pools, jobs, shares), pools)
    for pool in pools:
        staying = sum(not one.leaves for one in pool.pilots)
        beyond = found.starts.get(pool.name, 0) - max(0, pool.min - staying)
        able = [job for job in jobs if could_run(job, as_node("n", pool.shape))]
        assert beyond <= sum(job.nodes for job in able)


@given(pools_of(), WORK, SHARES)
def test_nothing_that_is_needed_busy_or_hardly_idle_is_let_go(
    pools: list[PoolFacts], jobs: list[WaitingJob], shares: dict[str, Share]
):
    found = sizes(state_of(pools, jobs, shares), pools)
    known = {one.id: one for pool in pools for one in pool.pilots}
    assert not found.needed & set(found.let_go)
    for name in found.let_go:
        one = known[name]
        assert not one.busy
        assert not one.leaves
        assert one.unneeded_s >= 60.0


@given(pools_of(), WORK, SHARES)
def test_whoever_is_told_of_a_starting_node_could_run_on_one(
    pools: list[PoolFacts], jobs: list[WaitingJob], shares: dict[str, Share]
):
    state = state_of(pools, jobs, shares)
    made = plan(state)
    waiting = {job.id: job for job in jobs}
    for job_id, wait in awaited(state, made).items():
        assert job_id in made.why
        assert wait.kind == "starting"
        assert any(could_run(waiting[job_id], one.node) for one in state.coming)


def test_a_project_s_limit_bounds_what_is_asked_for():
    pool = PoolFacts("gpu", Shape(gpus=1), max=9)
    jobs = [WaitingJob(f"job-{place}", 1, project="a") for place in range(5)]
    state = ClusterState(nodes=(), waiting=jobs, shares={"a": Share(gpu_limit=2)})
    assert sizes(state, [pool]).starts == {"gpu": 2}


def test_jobs_that_share_a_node_ask_for_one():
    pool = PoolFacts("cpu", Shape(cpu_slots=4), max=9)
    jobs = [WaitingJob(f"job-{place}", 0) for place in range(5)]
    assert sizes(ClusterState(nodes=(), waiting=jobs), [pool]).starts == {"cpu": 2}


def test_a_gang_asks_for_all_of_its_nodes_or_none():
    jobs = [WaitingJob("gang", 4, nodes=2)]
    state = ClusterState(nodes=(), waiting=jobs)
    assert sizes(state, [PoolFacts("gpu", Shape(gpus=4), max=1)]).starts == {}
    assert sizes(state, [PoolFacts("gpu", Shape(gpus=4), max=2)]).starts == {"gpu": 2}


def test_a_pool_that_fails_leaves_its_work_to_another():
    pools = [PoolFacts("spot", Shape(gpus=1), ready=False), PoolFacts("own", Shape(gpus=1))]
    state = ClusterState(nodes=(), waiting=[WaitingJob("job", 1)])
    assert sizes(state, pools).starts == {"own": 1}


def test_what_a_failing_pool_was_asked_for_keeps_no_work_from_another():
    gpu = Shape(gpus=1)
    asked = PilotFacts("a", "a", asked=True, unneeded_s=600)
    waiting = [WaitingJob("job", 1)]
    state = ClusterState(nodes=(), waiting=waiting, coming=(Coming(as_node("a", gpu), "starting"),))
    failing, own = PoolFacts("spot", gpu, ready=False, pilots=(asked,)), PoolFacts("own", gpu)
    alone = sizes(state, [failing])
    assert (alone.starts, alone.needed, alone.let_go) == ({}, {"a"}, [])
    assert sizes(state, [failing, own]).starts == {"own": 1}
    assert sizes(state, [replace(failing, ready=True), own]).starts == {}
    there = replace(state, nodes=(as_node("n1", gpu),))
    assert sizes(there, [failing, own]).let_go == ["a"]


def test_a_spec_to_be_checked_brings_one_node_that_could_run_it():
    pool = PoolFacts("gpu", Shape(gpus=1), max=3)
    checks = [Check(WaitingJob("", 1)), Check(WaitingJob("", 8)), Check(WaitingJob("", 0), frozenset({"n1"}))]
    assert sizes(ClusterState(nodes=(), waiting=()), [pool], checks).starts == {"gpu": 1}


def test_an_engine_that_waits_for_a_pool_s_node_names_the_pool():
    large = as_node("gpu-1", Shape(gpus=8, engines=("transformers", "vllm")))
    small, without = (as_node(name, Shape(gpus=1)) for name in ("gpu-2", "gpu-3"))
    full = Coming(large, "pool gpu: it has its 4 nodes")
    starting = Coming(large, "pool gpu is starting a node")
    engines = [WaitingEngine("e", gpus=2), WaitingEngine("cpu", gpus=0)]  # no pool is asked for a CPU's

    def told(**pools: tuple[Coming, ...]) -> dict[str, str]:
        state = ClusterState((small,), (), (), engines, **pools)
        return awaited_by_engines(state, plan(state))

    plainly = "waiting for a node with vLLM and 2 GPUs: no connected node has that"
    assert told(withheld=(full,), coming=(Coming(without, "no"),)) == {"e": f"{plainly}; {full.words}"}
    assert told(withheld=(full,), coming=(starting,)) == {"e": f"{plainly}; {starting.words}"}
    assert told(coming=(Coming(without, "no"),)) == {}


def test_a_replay_brings_a_node_if_there_is_none_and_keeps_one():
    pool = PoolFacts("gpu", Shape(gpus=1, cpu_slots=0), max=3)
    state = ClusterState(nodes=(), waiting=())
    assert sizes(state, [pool], [Check(None)]).starts == {"gpu": 1}
    idle = replace(pool, pilots=(PilotFacts("n1", "n1", reports=True, unneeded_s=600),))
    there = replace(state, nodes=(as_node("n1", pool.shape),))
    assert sizes(there, [idle], [Check(None, frozenset({"n1"}))]) == Sizes({}, {"n1"}, [])
    assert sizes(there, [idle]).let_go == ["n1"]


def test_a_gang_that_finds_some_of_its_nodes_asks_for_the_rest():
    """A pool with no room for all of them has room for those."""
    shape = Shape(gpus=4, gpu_type="H100")
    there = replace(as_node("n1", shape), declared=False, gpu_info=as_reported("n1", "NVIDIA H100 80GB"))
    pool = PoolFacts("gpu", shape, max=3, pilots=(PilotFacts("n1", "n1", reports=True),))
    state = ClusterState(nodes=(there,), waiting=[WaitingJob("gang", 4, nodes=3)])
    assert sizes(state, [pool]).starts == {"gpu": 2}
    assert sizes(replace(state, waiting=[WaitingJob("gang", 4, nodes=4)]), [pool]).starts == {}


def test_a_node_is_not_kept_for_a_gang_whose_other_node_is_refused():
    shape = Shape(gpus=4)
    refused = PilotFacts("n2", "n2", asked=True, unneeded_s=600)
    pilots = (PilotFacts("n1", "n1", reports=True, unneeded_s=600), refused)
    pool = PoolFacts("gpu", shape, max=2, pilots=pilots, ready=False)
    coming = (Coming(as_node("n2", shape), "starting"),)
    gang = [WaitingJob("gang", 4, nodes=2)]
    state = ClusterState(nodes=(as_node("n1", shape),), waiting=gang, coming=coming)
    assert sizes(state, [pool]).let_go == ["n1"]
    assert sizes(state, [replace(pool, ready=True)]).let_go == [], "it is on its way"


def test_a_gang_of_more_nodes_than_others_get_at_once():
    pool = PoolFacts("gpu", Shape(gpus=1), max=40)
    state = ClusterState(nodes=(), waiting=[WaitingJob("gang", 1, nodes=16)])
    assert sizes(state, [pool]).starts == {"gpu": 16}


def as_reported(node_id: str, name: str) -> tuple[GpuInfo, ...]:
    return tuple(GpuInfo(uuid=f"{node_id}/{place}", name=name, memory_mb=80_000) for place in range(4))

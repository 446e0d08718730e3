"""The planner's laws, for any cluster and any line of jobs."""

from collections import Counter

import pytest
from hypothesis import given

from server.placement import plan as planning
from server.placement.plan import plan
from server.placement.state import (
    ClusterState,
    WaitingJob,
)
from tests.support.plan_states import on_engine, states, texts


def could_use(state: ClusterState, job: WaitingJob) -> set[str]:
    """Nodes that could hold the job with an engine of its own, if they were empty."""
    gpus = job.gpus + job.rollout_gpus
    return {
        n.id
        for n in state.nodes
        if (n.gpus >= gpus if gpus else n.cpu_slots > 0) and (not job.vllm or "vllm" in n.engines)
    }


@given(states())
def test_every_job_starts_or_is_told_why_not(state: ClusterState):
    made = plan(state)
    starts = [start.job_id for start in made.starts]
    assert Counter([*starts, *made.why]) == Counter(job.id for job in state.waiting)
    assert all(texts(made).values())


@given(states())
def test_every_engine_gets_a_node_or_is_told_why_not(state: ClusterState):
    made = plan(state)
    placed = [placement.engine_id for placement in made.placements]
    assert Counter([*placed, *made.engines_why]) == Counter(e.id for e in state.unplaced)
    assert all(made.engines_why.values())


@given(states())
def test_nothing_is_given_out_twice_or_that_is_not_free(state: ClusterState):
    made = plan(state)
    wanted = {job.id: job for job in state.waiting}
    gpus: Counter[tuple[str, str]] = Counter(
        (p.node_id, uuid) for p in made.placements for uuid in p.gpu_uuids
    )
    slots: Counter[str] = Counter()
    for start in made.starts:
        trainer, rollout = start.allocations
        assert (trainer.role, rollout.role) == ("trainer", "rollout")
        job = wanted[start.job_id]
        if on_engine(start) is not None:
            assert rollout.gpu_uuids == ()
        elif job.rollout_gpus:
            assert trainer.node_id == rollout.node_id
            assert len(set(rollout.gpu_uuids)) == job.rollout_gpus
            gpus.update((rollout.node_id, uuid) for uuid in rollout.gpu_uuids)
        else:
            assert (trainer.node_id, trainer.gpu_uuids) == (rollout.node_id, rollout.gpu_uuids)
        assert len(set(trainer.gpu_uuids)) == job.gpus
        gpus.update((trainer.node_id, uuid) for uuid in trainer.gpu_uuids)
        if not trainer.gpu_uuids:
            slots[trainer.node_id] += 1
    free = {(n.id, uuid) for n in state.nodes for uuid in n.free_gpus}
    assert set(gpus) <= free
    assert not gpus or max(gpus.values()) == 1
    assert all(slots[n.id] <= n.free_cpu_slots for n in state.nodes)


@given(states())
def test_engines_get_what_they_were_declared_with(state: ClusterState):
    found = {n.id: n for n in state.nodes}
    declared = {e.id: e for e in state.unplaced}
    for placement in plan(state).placements:
        one = declared[placement.engine_id]
        assert one.node in (None, placement.node_id)
        assert "vllm" in found[placement.node_id].engines
        assert len(set(placement.gpu_uuids)) == one.gpus


@given(states())
def test_an_engine_never_has_more_jobs_than_slots_and_only_such_as_it_serves(state: ClusterState):
    jobs = {job.id: job for job in state.waiting}
    found = {e.id: e for e in state.engines}
    on: dict[str, set[str]] = {e.id: set(e.jobs) for e in state.engines}
    for start in plan(state).starts:
        if (engine_id := on_engine(start)) is None:
            continue
        one, need = found[engine_id], jobs[start.job_id].adapter
        assert need is not None
        assert one.is_open_to(jobs[start.job_id].project)
        assert (one.state, one.model, one.dtype) == ("ready", need.model, need.dtype)
        assert one.max_lora_rank >= need.rank
        assert one.max_tokens is None or one.max_tokens >= need.tokens
        assert start.allocations[1].node_id == one.node
        assert one.reach in (None, start.allocations[0].node_id)
        on[engine_id].add(start.job_id)
    assert all(len(on[e.id]) <= e.max_adapters for e in state.engines)


@given(states())
def test_engines_of_their_own_are_of_the_kind_that_jobs_demand(state: ClusterState):
    jobs = {job.id: job for job in state.waiting}
    found = {n.id: n for n in state.nodes}
    for start in plan(state).starts:
        job = jobs[start.job_id]
        if on_engine(start) is None:
            assert job.adapter is None or not job.adapter.required
            assert not job.vllm or "vllm" in found[start.allocations[1].node_id].engines


@given(states())
def test_no_capacity_idles_that_a_waiting_job_could_use(state: ClusterState):
    made = plan(state)
    used = Counter(s.allocations[0].node_id for s in made.starts if not s.allocations[0].gpu_uuids)
    for job in state.waiting:
        if job.id in made.why and job.gpus == 0 and not (job.adapter and job.adapter.required):
            usable = could_use(state, job)
            assert all(n.free_cpu_slots == used[n.id] for n in state.nodes if n.id in usable)


@given(states())
def test_the_same_state_gives_the_same_plan(state: ClusterState):
    assert plan(state) == plan(state)


@given(states())
def test_what_is_remembered_of_a_shape_changes_no_plan(state: ClusterState):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning._Planning, "_shape", lambda *_: None)
        each_by_itself = plan(state)
    assert plan(state) == each_by_itself

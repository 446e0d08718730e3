"""A scheduler's turn plans without a lock and writes little at a time: what changes in between counts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy.orm import Session

from powermean.contracts.api import JobState
from server.cluster import scheduler
from server.db.session import changes
from server.placement.plan import plan
from server.placement.state import ClusterState, Plan
from tests.server.cluster.test_scheduling import held, let_leader_lease_run_out
from tests.support.service_driver import ServiceDriver


def turn_with(
    service: ServiceDriver, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object]
) -> None:
    """A turn of the scheduler; `meanwhile` happens after it has planned and before it writes."""

    def plan_and_more(state: ClusterState) -> Plan:
        made = plan(state)
        assert made.starts
        meanwhile()
        return made

    monkeypatch.setattr(scheduler, "plan", plan_and_more)
    service.scheduler.turn()
    monkeypatch.setattr(scheduler, "plan", plan)


@pytest.mark.slow
def test_a_job_cancelled_after_the_plan_does_not_start(
    service: ServiceDriver, monkeypatch: pytest.MonkeyPatch
):
    job_id = service.queued()
    service.report()
    turn_with(service, monkeypatch, lambda: service.person.post(f"/v1/jobs/{job_id}/cancel"))
    job = service.job(job_id)
    assert (job.state, job.attempts) == (JobState.CANCELLED, ())
    assert held(service) == []


def test_what_a_node_lost_after_the_plan_is_not_given_out(
    service: ServiceDriver, monkeypatch: pytest.MonkeyPatch
):
    jobs = [service.queued(resources={"gpus": 1}) for _ in range(2)]
    service.report(gpus=2, cpu_slots=0)
    turn_with(service, monkeypatch, lambda: service.report(gpus=1, cpu_slots=0))
    assert [service.job(job_id).state for job_id in jobs] == [JobState.STARTING, JobState.QUEUED]


def test_a_leader_that_was_replaced_after_the_plan_starts_nothing(
    service: ServiceDriver, monkeypatch: pytest.MonkeyPatch
):
    job_id = service.queued()
    service.report()

    def replace() -> None:
        monkeypatch.setattr(scheduler, "plan", plan)
        let_leader_lease_run_out(service)
        service.replica("second").turn()

    turn_with(service, monkeypatch, replace)
    assert [attempt.number for attempt in service.job(job_id).attempts] == [1]


@pytest.mark.slow
def test_a_long_line_is_told_little_by_little(service: ServiceDriver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scheduler, "PHASES_AT_ONCE", 3)
    monkeypatch.setattr(scheduler, "PHASES_A_TURN", 6)
    jobs = [service.queued() for _ in range(8)]
    sizes: list[int] = []
    write = service.database.write

    @contextmanager
    def counted() -> Iterator[Session]:
        with write() as session:
            yield session
            sizes.append(len(changes(session).jobs))

    monkeypatch.setattr(service.database, "write", counted)
    assert service.scheduler.turn()  # there is more to do
    assert not service.scheduler.turn()
    assert [size for size in sizes if size] == [3, 3, 2]
    assert {service.job(job_id).phase for job_id in jobs} == {"waiting for a node: none is connected"}


def test_a_turn_that_changes_nothing_takes_no_write_lock(
    service: ServiceDriver, monkeypatch: pytest.MonkeyPatch
):
    service.report()
    for _ in range(3):
        service.queued()
    service.submit(resources={"gpus": 1})
    service.scheduler.turn()
    service.relay.turn()
    monkeypatch.setattr(service.database, "write", None)
    service.scheduler.turn()
    service.relay.turn()

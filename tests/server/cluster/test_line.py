"""A scheduler's turn reads what has changed, not the whole line of queued jobs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event

from powermean.contracts.api import JobState
from server.cluster import line, pilots, scheduler
from server.placement.state import ClusterState
from tests.support.service_driver import ServiceDriver


@contextmanager
def rows_read(service: ServiceDriver, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The queued jobs whose rows the scheduler reads."""
    read = line._read
    ids: list[str] = []

    def noted(*arguments: Any) -> dict[str, line.Queued]:
        found = read(*arguments)
        ids.extend(found)
        return found

    monkeypatch.setattr(line, "_read", noted)
    yield ids
    monkeypatch.setattr(line, "_read", read)


@pytest.mark.slow
def test_a_turn_reads_only_jobs_that_changed(service: ServiceDriver, monkeypatch: pytest.MonkeyPatch):
    jobs = [service.queued() for _ in range(6)]
    service.scheduler.turn()
    with rows_read(service, monkeypatch) as ids:
        service.scheduler.turn()
        assert ids == []
        another = service.queued()
        service.person.post(f"/v1/jobs/{jobs[0]}/cancel")
        service.scheduler.turn()
        assert ids == [another]
    service.report(cpu_slots=8)
    service.scheduler.turn()
    assert [service.job(one).state for one in [*jobs, another]] == [
        JobState.CANCELLED,
        *[JobState.STARTING] * 6,
    ]


@pytest.mark.slow
def test_what_did_not_change_is_not_planned_again(service: ServiceDriver, monkeypatch: pytest.MonkeyPatch):
    planned: list[ClusterState] = []
    plan = scheduler.plan
    monkeypatch.setattr(scheduler, "plan", lambda state: planned.append(state) or plan(state))
    service.report(cpu_slots=0)
    service.queued()
    for _ in range(4):
        service.scheduler.turn()
    assert len(planned) == 2  # one that told what the job waits for, and one that found nothing to do
    job_id = service.queued()
    service.report(cpu_slots=2)
    service.scheduler.turn()
    assert service.job(job_id).state is JobState.STARTING


@pytest.mark.slow
def test_a_job_that_another_server_queued_is_found_by_reading_the_whole_line(
    service: ServiceDriver, monkeypatch: pytest.MonkeyPatch
):
    service.report(cpu_slots=2)
    service.queued()
    service.scheduler.turn()
    monkeypatch.setattr(service.database, "_listeners", [])  # as another process, whose commits nobody tells
    job_id = service.queued()
    service.scheduler.turn()
    assert service.job(job_id).state is JobState.QUEUED
    monkeypatch.setattr(line, "REFRESH_S", 0.0)
    service.scheduler.turn()
    assert service.job(job_id).state is JobState.STARTING


def test_a_new_leader_reads_the_whole_line(service: ServiceDriver, monkeypatch: pytest.MonkeyPatch):
    second = service.replica("second")
    service.scheduler.turn()
    second.turn()  # follows
    jobs = [service.queued() for _ in range(3)]
    service.scheduler.turn()
    service.scheduler.stop()
    with rows_read(service, monkeypatch) as ids:
        second.turn()
    assert ids == jobs


def test_what_a_turn_could_not_read_is_read_by_the_next(
    service: ServiceDriver, monkeypatch: pytest.MonkeyPatch
):
    service.scheduler.turn()
    job_id = service.queued()
    read = line._read

    def fail(*_arguments: Any) -> dict[str, line.Queued]:
        raise RuntimeError("the database is away")

    monkeypatch.setattr(line, "_read", fail)
    with pytest.raises(RuntimeError):
        service.scheduler.turn()
    monkeypatch.setattr(line, "_read", read)
    service.report(cpu_slots=1)
    service.scheduler.turn()
    assert service.job(job_id).state is JobState.STARTING


def test_unchecked_jobs_are_read_by_kind(service: ServiceDriver):
    """Jobs that no node has checked are many in a burst; a turn reads one row for those that are alike."""
    service.report()
    for _ in range(5):
        service.submit()
    service.scheduler.turn()
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        statements.append(statement)

    event.listen(service.database.engine, "before_cursor_execute", note)
    service.scheduler.turn()
    event.remove(service.database.engine, "before_cursor_execute", note)
    of_jobs = [one for one in statements if "FROM jobs" in one]
    assert len(of_jobs) == 1
    assert "SELECT DISTINCT jobs.demand, jobs.phase" in of_jobs[0]


def test_pools_are_read_once_for_all_kinds_that_nobody_can_check(
    service: ServiceDriver, monkeypatch: pytest.MonkeyPatch
):
    read: list[str] = []
    outlook = pilots.outlook
    monkeypatch.setattr(pilots, "outlook", lambda *given: read.append("") or outlook(*given))
    for cpu_slots in (1, 2):
        service.submit(resources={"node_labels": {"kind": f"k{cpu_slots}"}})
    service.scheduler._unchecked()
    assert len(read) == 1

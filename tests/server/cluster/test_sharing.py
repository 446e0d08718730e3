"""Projects share the cluster through the scheduler: who gives way, how, and what those who wait are told."""

from datetime import timedelta

import pytest
from sqlalchemy import update

from powermean.contracts.api import JobState
from server.cluster import line, queue_view, sharing
from server.db.models import Attempt, Job, Project
from server.db.session import database_now
from server.settings import Settings
from tests.support.service_driver import AttemptDriver, ServiceDriver

TWO_GPUS = {"gpus": 1, "placement": "split"}


def quota(service: ServiceDriver, project: str, **changes: int) -> str:
    service.project(project)
    if changes:
        with service.database.write() as session:
            session.execute(update(Project).where(Project.id == project).values(**changes))
    return project


def queued(service: ServiceDriver, project: str, priority: str = "normal", **spec: object) -> str:
    job_id = service.queued(project=project, **spec)
    if priority != "normal":
        with service.database.write() as session:
            session.execute(update(Job).where(Job.id == job_id).values(priority=priority))
        service.scheduler.line.recheck([job_id])
    return job_id


def started(service: ServiceDriver, job_id: str) -> AttemptDriver:
    service.scheduler.turn()
    return service.claim(f"{job_id}.1")


def order(service: ServiceDriver, job_id: str) -> tuple[str, str | None]:
    with service.database.read() as session:
        attempt = session.get_one(Attempt, f"{job_id}.1")
        return attempt.order, attempt.order_reason


def patient(service: ServiceDriver) -> None:
    """A job gives way however short it has run."""
    service.settings = Settings(**service.settings.model_dump() | {"min_run_s": 0.0})
    service.scheduler.settings = service.settings


@pytest.mark.slow
def test_an_owner_takes_its_quota_back_and_the_borrower_goes_on_later(service: ServiceDriver):
    patient(service)
    owner, borrower = quota(service, "team-a", gpu_quota=1), quota(service, "team-b")
    service.report(gpus=1, cpu_slots=0)
    runs = queued(service, borrower, resources={"gpus": 1})
    attempt = started(service, runs)
    waits = queued(service, owner, resources={"gpus": 1})
    service.scheduler.turn()
    reason = "preempted: another project takes back 1 GPU of its quota"  # its people may not know of team-a
    assert order(service, runs) == ("checkpoint_and_exit", reason)
    assert service.job(waits).phase == "waiting for others to save their checkpoints and give way"
    service.scheduler.turn()  # nobody else is told to
    assert attempt.beat().json()["order"] == "checkpoint_and_exit"
    attempt.commit(3)
    assert attempt.finish("checkpointed").status_code == 204
    service.scheduler.turn()
    assert service.job(waits).state is JobState.STARTING
    assert service.job(runs).state is JobState.QUEUED
    with service.database.read() as session:
        assert session.get_one(Job, runs).preemptions == 1
    service.claim(f"{waits}.1").finish("failed", error={"code": "x", "message": "y"})
    service.scheduler.turn()
    assert service.job(runs).attempts[-1].number == 2


@pytest.mark.slow
def test_a_place_is_kept_also_when_the_one_that_left_it_is_paused(service: ServiceDriver):
    patient(service)
    owner, borrower = quota(service, "team-a", gpu_quota=1), quota(service, "team-b")
    service.report(gpus=1, cpu_slots=0)
    runs = queued(service, borrower, resources={"gpus": 1})
    attempt = started(service, runs)
    waits = queued(service, owner, resources={"gpus": 1})
    service.scheduler.turn()
    with service.database.write() as session:  # somebody else is under their quota now, and waits for longer
        session.execute(update(Project).where(Project.id == owner).values(gpu_quota=0))
        session.execute(update(Job).where(Job.id == runs).values(pause_requested=True))
    third = quota(service, "team-c", gpu_quota=1)
    first = queued(service, third, resources={"gpus": 1})
    attempt.commit(3)
    attempt.finish("checkpointed")
    service.scheduler.turn()
    assert service.job(runs).state is JobState.PAUSED
    assert [service.job(one).state for one in (waits, first)] == [JobState.STARTING, JobState.QUEUED]


@pytest.mark.slow
def test_priority_goes_first_within_a_project_and_no_further(service: ServiceDriver):
    patient(service)
    ours, theirs = quota(service, "team-a"), quota(service, "team-b")
    service.report(gpus=2, cpu_slots=0)
    low, other = (queued(service, p, "low", resources={"gpus": 1}) for p in (ours, theirs))
    started(service, low)
    service.claim(f"{other}.1")
    high = queued(service, ours, "high", resources={"gpus": 1})
    service.scheduler.turn()
    assert order(service, low) == (
        "checkpoint_and_exit",
        f"preempted: priority high goes before low, for {high}",
    )
    assert order(service, other) == ("continue", None)


def test_nobody_is_stopped_who_has_hardly_begun(service: ServiceDriver):
    owner, borrower = quota(service, "team-a", gpu_quota=1), quota(service, "team-b")
    service.report(gpus=1, cpu_slots=0)
    runs = queued(service, borrower, resources={"gpus": 1})
    started(service, runs)
    queued(service, owner, resources={"gpus": 1})
    service.scheduler.turn()
    assert order(service, runs) == ("continue", None)


@pytest.mark.slow
def test_a_projects_limit_holds_and_blocks_nobody_else(service: ServiceDriver):
    limited, free = quota(service, "team-a", gpu_limit=1), quota(service, "team-b")
    service.report(gpus=3, cpu_slots=0)
    first, second = (queued(service, limited, resources={"gpus": 1}) for _ in range(2))
    large = queued(service, limited, resources=TWO_GPUS)
    other = queued(service, free, resources={"gpus": 1})
    service.scheduler.turn()
    assert {service.job(one).state for one in (first, other)} == {JobState.STARTING}
    assert service.job(second).phase == "waiting for its project to use less: it may have 1 GPU"
    assert service.job(large).phase == "its project may have 1 GPU, and the job needs 2"


@pytest.mark.slow
def test_a_waiting_job_is_told_why_and_nobody_is_told_of_projects_that_they_cannot_see(
    service: ServiceDriver,
):
    owner, borrower = quota(service, "team-a", gpu_quota=2), quota(service, "team-b")
    service.report(gpus=2, cpu_slots=0)
    runs = queued(service, owner, resources={"gpus": 1})
    started(service, runs)
    theirs = queued(service, owner, resources=TWO_GPUS)
    ours = queued(service, borrower, resources=TWO_GPUS)
    service.scheduler.turn()
    with service.database.read() as session:
        why = queue_view.waiting(session, service.settings)
    assert [why[one].position for one in (theirs, ours)] == [1, 2]
    words = why[ours].words(lambda _project: True)
    needs, ahead = "needs 2 GPUs on one node; node-1 has 1 free, kept for", "ahead of it:"
    assert words == f"{needs} {theirs}; {ahead} {theirs} (priority normal)"
    hidden = why[ours].words(lambda project: project == borrower)
    assert hidden == f"{needs} a job of another project; {ahead} 1 job of other projects"
    for named in (theirs, owner):
        assert named not in (service.job(ours).phase or "")


@pytest.mark.slow
def test_the_hours_that_a_job_may_still_run_are_known_to_the_plan(service: ServiceDriver):
    project = quota(service, "team-a")
    service.report(gpus=1, cpu_slots=0)
    spec = {"resources": {"gpus": 1}, "limits": {"wall_hours": 2.0}}
    runs, waits = queued(service, project, **spec), queued(service, project, **spec)
    attempt = started(service, runs)
    open_end = queued(service, project, resources={"gpus": 1})
    with service.database.write() as session:
        now = database_now(session)
        session.get_one(Attempt, attempt.id).claimed_at = now - timedelta(hours=1.5)
        values = sharing.priorities(session)
        (found,) = sharing.running(session, values, now)
        assert found.ends_at == (now + timedelta(hours=0.5)).timestamp()
        seconds = {one.job.id: one.job.seconds for one in line.queued(session)}
        assert seconds == {waits: 7200.0, open_end: None}
    attempt.finish("checkpointed")
    with service.database.write() as session:
        row = session.get_one(Attempt, attempt.id)
        row.claimed_at, row.ended_at = now - timedelta(hours=1.5), now
        assert {one.job.id: one.job.seconds for one in line.queued(session)}[runs] == 1800.0

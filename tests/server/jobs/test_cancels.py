"""Cancels that come together: as alone, and none stands or falls with another."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import event, select, update

from server.db.models import Allocation, Attempt, Base, Job, Outbox
from server.db.scoped import ScopedDatabase
from server.db.session import Changes
from server.identity.callers import Caller
from server.jobs import service as alone
from server.jobs.cancels import Cancellation, accept
from server.jobs.events import lock_job
from tests.support.service_driver import ServiceDriver

ADMIN = Caller("person-root", "Root", None, "admin", {}, "default")


def paused(service: ServiceDriver) -> str:
    job_id = service.queued()
    assert service.person.post(f"/v1/jobs/{job_id}/pause").json()["state"] == "paused"
    return job_id


def to_be_paused(service: ServiceDriver) -> str:
    job_id = service.submit()
    assert service.person.post(f"/v1/jobs/{job_id}/pause").json()["pause_requested"]
    return job_id


def restarting(service: ServiceDriver) -> str:
    attempt = service.running()
    attempt.finish("failed", retryable=True)
    return str(attempt.claim.job_id)


def ended(service: ServiceDriver) -> str:
    job_id = service.submit()
    service.person.post(f"/v1/jobs/{job_id}/cancel")
    return job_id


def deleted(service: ServiceDriver) -> str:
    job_id = service.submit()
    with service.database.write() as session:
        session.execute(update(Job).where(Job.id == job_id).values(deleted_at=datetime.now(UTC)))
    return job_id


WAITING: dict[str, Callable[[ServiceDriver], str]] = {
    "validating": lambda service: service.submit(),
    "validating, then to be paused": to_be_paused,
    "queued": lambda service: service.queued(),
    "paused": paused,
}
LEFT_OPEN: dict[str, Callable[[ServiceDriver], str]] = {
    "starting": lambda service: service.started(),
    "running": lambda service: service.running().claim.job_id,
    "restarting": restarting,
    "ended": ended,
    "deleted": deleted,
    "not there": lambda service: "job-none",
}


def stored(service: ServiceDriver, model: type[Base], **wanted: Any) -> list[dict[str, Any]]:
    table = model.__table__
    with service.database.read() as session:
        return [dict(row) for row in session.execute(select(table).filter_by(**wanted)).mappings()]


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def answered(service: ServiceDriver, *ids: str, caller: Caller = ADMIN) -> list[bool]:
    """Whether these cancels were answered, by job."""
    with service.database.write() as session:
        return [view is not None for view in accept(session, [Cancellation(caller, one) for one in ids])]


@pytest.mark.parametrize("make", WAITING.values(), ids=WAITING)
def test_a_job_ends_as_if_its_cancel_had_come_alone(service: ServiceDriver, make):
    ids = make(service), make(service)
    told: list[Changes] = []
    service.database.listen(told.append)
    with service.database.write() as session:
        (one,) = accept(session, [Cancellation(ADMIN, ids[0])])
    with ScopedDatabase(service.database, None).write() as scoped:
        apart = alone.cancel(scoped, ids[1], "Ada")
    assert one is not None
    own = "id", "created_at", "queued_at", "finished_at"
    jobs = [stored(service, Job, id=job_id)[0] for job_id in ids]
    assert without(jobs[0], *own) == without(jobs[1], *own)
    assert without(dict(one), *own) == without(dict(apart), *own)
    assert one == service.job(ids[0]).model_copy(update={"owner": None})
    logs = [service.events(job_id) for job_id in ids]
    assert [(each.seq, each.kind) for each in logs[0]] == [(each.seq, each.kind) for each in logs[1]]
    assert without(logs[0][-1].data, *own) == without(logs[1][-1].data, *own)
    assert logs[0][-1].data["finished_at"] == one.model_dump(mode="json")["finished_at"]
    assert all(message["done_at"] for job_id in ids for message in stored(service, Outbox, subject=job_id))
    first, second = told
    assert (first.jobs, second.jobs, first.plan) == ({ids[0]}, {ids[1]}, second.plan)


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize("make", LEFT_OPEN.values(), ids=LEFT_OPEN)
def test_what_has_to_be_looked_at_is_left_open(service: ServiceDriver, make):
    job_id = make(service)
    assert answered(service, service.submit(), job_id, service.submit()) == [True, False, True]


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_nobody_ends_what_they_may_not(service: ServiceDriver):
    job_id = service.submit()
    for caller in (replace(ADMIN, cluster_role="auditor"), replace(ADMIN, cluster_role=None)):
        assert answered(service, job_id, caller=caller) == [False]
    member = replace(ADMIN, cluster_role=None, roles={"default": "member"})
    assert answered(service, job_id, caller=member) == [False]
    owner = replace(member, person_id=service.job(job_id).created_by)
    assert answered(service, job_id, caller=owner) == [True]


def test_cancels_of_any_number_of_jobs_take_as_many_statements(service: ServiceDriver):
    ids = [service.submit() for _ in range(9)]
    seen: list[str] = []
    event.listen(service.database.engine, "before_cursor_execute", lambda *given: seen.append(given[2]))
    assert answered(service, *ids[:3]) == [True] * 3
    few = [one.partition(" ")[0] for one in seen if "SAVEPOINT" not in one]
    assert few[1:] == ["SELECT", "UPDATE", "UPDATE", "INSERT"]  # the first is BEGIN, or asks for the time
    seen.clear()
    assert answered(service, *ids[3:]) == [True] * 6
    assert [one.partition(" ")[0] for one in seen if "SAVEPOINT" not in one] == few


@pytest.mark.parametrize("kind", ["postgres"], indirect=True)
def test_a_job_that_somebody_holds_is_left_open_and_holds_up_no_other(service: ServiceDriver):
    ids = [service.submit() for _ in range(3)]
    with service.database.write() as session:
        lock_job(session, ids[1])  # a cancel that waited for it would wait until the test fails
        assert answered(service, *ids) == [True, False, True]
    assert answered(service, ids[1]) == [True]


@pytest.mark.slow
def test_whoever_cancels_at_once_gets_their_job_and_an_entry_each(service: ServiceDriver):
    waiting = [service.submit() for _ in range(5)]
    running = service.running().claim.job_id
    ids = [*waiting, *waiting, running]
    with ThreadPoolExecutor(len(ids)) as pool:
        answers = list(pool.map(lambda one: service.person.post(f"/v1/jobs/{one}/cancel").json(), ids))
    assert [(one["id"], one["state"], one["cancel_requested"]) for one in answers] == [
        (job_id, "running" if job_id == running else "cancelled", True) for job_id in ids
    ]
    assert all(
        [each.data["state"] for each in service.events(one)] == ["validating", "cancelled"] for one in waiting
    )
    service.app.state.journal.seal()
    entries = service.person.get("/v1/audit", params={"verb": "job.change"}).json()["items"]
    assert sorted(entry["target"] for entry in entries) == sorted(ids)
    assert {(entry["request"], entry["project"]) for entry in entries} == {
        ("POST /v1/jobs/{job_id}/cancel", "default")
    }


@pytest.mark.slow
def test_jobs_that_start_while_they_are_cancelled_hold_nothing_at_the_end(service: ServiceDriver):
    ids = [service.queued() for _ in range(8)]
    service.report(cpu_slots=8)
    with ThreadPoolExecutor(9) as pool:
        turn = pool.submit(service.scheduler.turn)
        answers = list(pool.map(lambda one: service.person.post(f"/v1/jobs/{one}/cancel").json(), ids))
        turn.result()
    assert (
        {one["state"] for one in answers} == {"cancelled"} == {row["state"] for row in stored(service, Job)}
    )
    assert {row["state"] for row in stored(service, Attempt)} <= {"ended"}
    assert all(row["released_at"] for row in stored(service, Allocation))
    assert all(row["done_at"] for row in stored(service, Outbox))

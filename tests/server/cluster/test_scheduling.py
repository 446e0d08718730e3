"""The scheduler's turns: what starts, what is given up, what is handed out again, and who leads."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from powermean.artefacts import TEMPORARY_FOLDER
from powermean.contracts.api import JobState
from powermean.contracts.names import START_TASK
from server.cluster import scheduler
from server.cluster.leadership import Standing, acquire_lead
from server.cluster.scheduler import NEVER
from server.db.models import Allocation, Attempt, Leader, Node, Outbox
from server.db.session import Database, database_now
from server.jobs.states import CHECKING
from tests.support.service_driver import ServiceDriver, error_of


def lease_of(service: ServiceDriver, attempt_id: str):
    with service.database.read() as session:
        return session.get_one(Attempt, attempt_id).lease_expires_at


def held(service: ServiceDriver) -> list[str]:
    with service.database.read() as session:
        query = select(Allocation.attempt_id).where(Allocation.released_at.is_(None)).distinct()
        return sorted(session.execute(query).scalars())


def let_leader_lease_run_out(service: ServiceDriver) -> None:
    with service.database.write() as session:
        session.execute(update(Leader).values(expires_at=database_now(session) - timedelta(seconds=1)))


def silence_node(service: ServiceDriver, node_id: str) -> None:
    """As if it had been silent for an hour, and the scheduler had led for long."""
    service.scheduler.leads_since = NEVER
    with service.database.write() as session:
        seen_at = database_now(session) - timedelta(hours=1)
        session.execute(update(Node).where(Node.id == node_id).values(seen_at=seen_at))


@pytest.mark.slow
def test_jobs_start_first_come_first_served(service: ServiceDriver):
    first, second = service.queued(), service.queued()
    service.report(cpu_slots=1)
    service.scheduler.turn()
    assert service.job(first).state is JobState.STARTING
    assert service.job(second).state is JobState.QUEUED
    assert service.job(second).phase == "waiting for a free CPU slot"
    service.claim(f"{first}.1").finish("failed", error={"code": "x", "message": "y"})
    service.scheduler.turn()
    assert service.job(second).state is JobState.STARTING


def test_a_gpu_job_gets_its_gpus_and_nobody_elses(service: ServiceDriver):
    service.report(gpus=2, cpu_slots=0)
    jobs = [service.queued(resources={"gpus": 1}) for _ in range(3)]
    service.scheduler.turn()
    given = [uuid for job in jobs[:2] for uuid in service.job(job).attempts[0].allocations[0].gpu_uuids]
    assert sorted(given) == ["node-1-gpu-0", "node-1-gpu-1"]
    assert service.job(jobs[2]).attempts == ()


def test_a_job_that_publishes_as_only_vllm_can_goes_where_vllm_is(service: ServiceDriver):
    job_id = service.queued(rollout={"engine": "auto", "publish": "gloo"})
    service.report("node-1", cpu_slots=4)
    service.report("node-2", cpu_slots=1, engines=("transformers", "vllm"))
    service.scheduler.turn()
    assert {part.node_id for part in service.job(job_id).attempts[0].allocations} == {"node-2"}


@pytest.mark.slow
def test_a_split_job_holds_its_engines_gpu_as_well(service: ServiceDriver):
    service.report(gpus=3, cpu_slots=0)
    split, other = (service.queued(resources={"gpus": 1, "placement": "split"}) for _ in range(2))
    service.scheduler.turn()
    trainer, rollout = service.job(split).attempts[0].allocations
    assert len({*trainer.gpu_uuids, *rollout.gpu_uuids}) == 2
    assert service.job(other).phase == "waiting for 2 free GPUs on one node"
    service.claim(f"{split}.1").finish("failed", error={"code": "x", "message": "y"})
    service.report(gpus=3, cpu_slots=0)
    service.scheduler.turn()
    assert service.job(other).state is JobState.STARTING


def test_a_waiting_job_says_what_it_waits_for_once(service: ServiceDriver):
    job_id = service.queued(resources={"gpus": 1, "placement": "split"})
    service.report()
    for _ in range(3):
        service.scheduler.turn()
    assert service.job(job_id).phase == "waiting for a node with 2 GPUs: the largest connected one has 0"
    assert len([event for event in service.events(job_id) if event.kind == "state"]) == 3


def test_a_silent_node_gets_no_job(service: ServiceDriver):
    service.report()
    silence_node(service, "node-1")
    job_id = service.queued()
    service.scheduler.turn()
    assert service.job(job_id).phase == "waiting for a node: none is connected"
    assert service.person.get("/v1/nodes").json()["items"][0]["alive"] is False


def test_a_job_is_not_checked_on_a_full_disk(service: ServiceDriver):
    service.report(full_disk="/data")
    job_id = service.submit()
    service.scheduler.turn()
    service.relay.turn()
    assert service.job(job_id).phase == "waiting for a node that can check the spec: its disk is full"
    assert service.sender.sent == []
    service.report()
    service.scheduler.turn()
    assert service.job(job_id).phase == CHECKING


@pytest.mark.slow
def test_a_job_says_which_node_checks_it_since_when(service: ServiceDriver, monkeypatch: pytest.MonkeyPatch):
    job_id, other = service.submit(), service.submit()
    now = datetime(2126, 11, 27, 12, 4, 59, tzinfo=UTC)  # no clock has got there: nodes were seen before it

    def told_at(when: datetime) -> tuple[str | None, str | None]:
        monkeypatch.setattr(scheduler, "database_now", lambda _session: when)
        service.scheduler.turn()
        return service.job(job_id).phase, service.job(other).phase

    service.report(checking=(job_id,))
    service.report("node-2", checking=(job_id, "job_that_is_gone"))
    checked = "node node-1 has been checking the spec since 12:04 UTC"
    assert told_at(now) == (checked, CHECKING)
    assert told_at(now + timedelta(minutes=3)) == (checked, CHECKING)
    service.report()  # it was stopped
    service.report("node-2", checking=(job_id,))
    assert told_at(now + timedelta(minutes=3))[0] == "node node-2 has been checking the spec since 12:07 UTC"
    service.report("node-2")
    assert told_at(now)[0] == CHECKING


def test_a_job_says_why_a_node_could_not_use_the_store(service: ServiceDriver):
    """Until its spec is checked; the node is asked again meanwhile."""
    service.report()
    job_id = service.submit()
    address = f"/v1/jobs/{job_id}/validation"
    why = {"store_error": "node node-1: the folder /data is not the artefact store"}
    service.node.post(address, json=why).raise_for_status()
    for checking in ((job_id,), ()):
        service.report(checking=checking)
        service.scheduler.turn()
        assert service.job(job_id).state == "validating"
        assert service.job(job_id).phase == f"waiting for the artefact store: {why['store_error']}"
    service.relay.turn()
    assert [subject for _, _, subject in service.sender.sent] == [job_id]
    wrong = {"errors": [{"code": "unknown_model", "message": "there is none"}]}
    service.node.post(address, json=why | wrong).raise_for_status()
    assert service.job(job_id).error.message == "there is none"


@pytest.mark.slow
def test_a_job_that_met_a_full_disk_waits_for_room_and_goes_on(service: ServiceDriver):
    attempt = service.running()
    error = {"code": "disk_full", "message": "The disk of /data on the node is full."}
    assert attempt.finish("failed", error=error, retryable=True).status_code == 204
    service.report(full_disk="/data")
    job_id = attempt.claim.job_id
    for _ in range(3):  # its restarts are not used up while it waits
        service.scheduler.turn()
        job = service.job(job_id)
        assert (job.state, job.phase) == (
            JobState.QUEUED,
            "waiting for room: the disk of /data on node-1 is full",
        )
    assert service.person.get("/v1/nodes").json()["items"][0]["full_disk"] == "/data"
    service.report()
    service.scheduler.turn()
    service.claim(f"{job_id}.2")


@pytest.mark.slow
def test_what_a_lapsed_attempt_holds_is_free_once_its_processes_are_gone(service: ServiceDriver):
    attempt = service.running()
    service.let_lease_run_out(attempt.id)
    service.report(running=(attempt.id,))  # cut off, but alive: it may still use its GPUs
    service.scheduler.turn()
    job = service.job(attempt.claim.job_id)
    assert (job.state, job.phase) == (JobState.QUEUED, "waiting for a free CPU slot")
    assert held(service) == [attempt.id]
    service.report(running=())
    service.scheduler.turn()
    assert service.job(job.id).state is JobState.STARTING
    assert held(service) == [f"{job.id}.2"]


def test_a_report_frees_nothing_of_a_living_attempt(service: ServiceDriver):
    attempt = service.running()
    service.report(running=())
    assert held(service) == [attempt.id]


def test_a_lapsed_attempt_goes_on_on_another_node_at_once(service: ServiceDriver):
    attempt = service.running()
    service.let_lease_run_out(attempt.id)
    service.report("node-2")
    service.scheduler.turn()
    second = service.claim(f"{attempt.claim.job_id}.2")
    assert second.claim.allocations[0].node_id == "node-2"
    assert attempt.beat().status_code == 409
    assert held(service) == [attempt.id, second.id]


def test_an_attempt_that_nobody_claims_is_planned_elsewhere_and_is_no_restart(service: ServiceDriver):
    job_id = service.started(max_restarts=0)
    service.report("node-2")
    service.let_lease_run_out(f"{job_id}.1")
    service.scheduler.turn()
    job = service.job(job_id)
    assert job.state is JobState.STARTING
    assert [attempt.allocations[0].node_id for attempt in job.attempts] == ["node-1", "node-2"]
    assert held(service) == [f"{job_id}.2"]
    late = service.node.post(f"/v1/attempts/{job_id}.1/claim")
    assert error_of(late)["code"] == "fenced"
    assert [owed.subject for owed in owed_messages(service, START_TASK)] == [f"{job_id}.2"]


def owed_messages(service: ServiceDriver, task: str) -> list[Outbox]:
    with service.database.read() as session:
        query = select(Outbox).where(Outbox.task == task, Outbox.done_at.is_(None))
        return list(session.execute(query).scalars())


def test_a_restart_waits_for_its_pause(service: ServiceDriver):
    slow = service.settings.model_copy(update={"restart_backoff_s": 3600.0})
    attempt = service.running()
    service.let_lease_run_out(attempt.id)
    service.scheduler.settings = slow
    service.report()
    service.scheduler.turn()
    service.report()
    service.scheduler.turn()
    assert service.job(attempt.claim.job_id).state is JobState.QUEUED


def test_one_replica_leads(service: ServiceDriver):
    second = service.replica("second")
    service.scheduler.turn()
    job_id = service.queued()
    service.report()
    second.turn()
    assert service.job(job_id).state is JobState.QUEUED
    service.scheduler.turn()
    assert service.job(job_id).state is JobState.STARTING


@pytest.mark.parametrize("end", ["lease runs out", "resigns"])
def test_another_replica_takes_over(service: ServiceDriver, end):
    service.scheduler.turn()
    if end == "resigns":
        service.scheduler.stop()
    else:
        let_leader_lease_run_out(service)
    job_id = service.queued()
    service.report()
    service.replica("second").turn()
    assert service.job(job_id).state is JobState.STARTING


@pytest.mark.slow
def test_a_new_leader_extends_all_leases_before_it_reaps(service: ServiceDriver):
    attempt = service.running()
    unclaimed = service.queued()
    service.report("node-2")
    service.scheduler.turn()
    for attempt_id in (attempt.id, f"{unclaimed}.1"):
        service.let_lease_run_out(attempt_id)
    let_leader_lease_run_out(service)
    second = service.replica("second")
    with service.database.read() as session:
        before = database_now(session)
    second.turn()
    assert lease_of(service, attempt.id) >= before + timedelta(seconds=service.settings.lease_s)
    assert lease_of(service, f"{unclaimed}.1") >= before + timedelta(seconds=service.settings.claim_s)
    assert attempt.beat().status_code == 200
    service.let_lease_run_out(attempt.id)
    second.turn()
    assert attempt.beat().status_code == 409


def test_a_leader_that_slept_extends_leases_too(service: ServiceDriver):
    attempt = service.running()
    let_leader_lease_run_out(service)
    service.let_lease_run_out(attempt.id)
    service.scheduler.turn()
    assert attempt.beat().status_code == 200


def test_standing(database: Database):
    def standing(holder: str) -> Standing:
        with database.write() as session:
            return acquire_lead(session, holder, lease_s=60)

    def time_left() -> float:
        with database.read() as session:
            return (session.get_one(Leader, "scheduler").expires_at - database_now(session)).total_seconds()

    def let_pass(seconds: float) -> None:
        with database.write() as session:
            lease = session.get_one(Leader, "scheduler")
            lease.expires_at -= timedelta(seconds=seconds)

    assert standing("a") is Standing.NEW_LEADER
    assert standing("a") is Standing.LEADER
    assert standing("b") is Standing.FOLLOWER
    let_pass(20)
    assert standing("a") is Standing.LEADER
    assert time_left() < 41  # renewed in the second half alone: each renewal is a write
    let_pass(20)
    assert standing("a") is Standing.LEADER
    assert time_left() > 50
    let_pass(61)
    assert standing("b") is Standing.NEW_LEADER
    assert standing("a") is Standing.FOLLOWER


@pytest.mark.slow
def test_nodes_show_what_they_have_and_hold(service: ServiceDriver):
    attempt = service.running()
    service.report("node-2", gpus=2, cpu_slots=0)
    first, second = service.person.get("/v1/nodes").json()["items"]
    assert (first["id"], first["alive"], first["attempts"]) == ("node-1", True, [attempt.id])
    assert (second["id"], len(second["gpus"]), second["attempts"]) == ("node-2", 2, [])


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_nodes_name_is_checked(service: ServiceDriver):
    answer = service.node.put("/v1/nodes/a%20b", json={"hostname": "x", "version": "0"})
    assert answer.status_code == 422
    assert error_of(answer)["fields"][0]["path"] == "node_id"


def test_a_new_leader_sweeps_what_writers_left_half_written(service: ServiceDriver):
    let_leader_lease_run_out(service)
    folder = Path(service.settings.artefacts_url.removeprefix("file://")) / TEMPORARY_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "old").touch()
    os.utime(folder / "old", (0, 0))
    service.replica("second").turn()
    assert not (folder / "old").exists()

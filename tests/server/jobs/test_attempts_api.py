"""The life of an attempt over REST: claim, heartbeats, checkpoints, the end, and what follows."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from httpx import Response
from sqlalchemy import select

from powermean.contracts.api import JobState
from powermean.tokens import sign_attempt_token
from server.db.models import Checkpoint, Garbage, JobEvent, Metric
from server.db.session import database_now
from tests.support.service_driver import (
    AttemptDriver,
    ServiceDriver,
    error_of,
    example_checkpoint,
    example_ref,
    example_result,
)

WRITES = [
    ("heartbeat", {"phase": "training"}),
    ("metrics", {"rows": [{"step": 1, "name": "reward", "value": 0.5}]}),
    ("trajectories", {"step": 1, "rows": []}),
    ("checkpoints", example_checkpoint("job-x", 1, "a")),
    ("finish", {"outcome": "failed"}),
]


def test_a_claim_brings_all_that_running_needs(service: ServiceDriver):
    attempt = service.running()
    claim = attempt.claim
    assert claim.number == 1
    assert claim.spec.name == "adding up"
    assert {part.role for part in claim.allocations} == {"trainer", "rollout"}
    assert {part.node_id for part in claim.allocations} == {"node-1"}
    assert claim.resume is None
    assert attempt.beat().status_code == 200
    job = service.job(claim.job_id)
    assert job.state is JobState.RUNNING
    assert job.started_at is not None


def test_of_many_claims_one_wins(service: ServiceDriver):
    job_id = service.started()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: service.node.post(f"/v1/attempts/{job_id}.1/claim"), range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7
    assert {error_of(answer)["code"] for answer in answers if answer.status_code == 409} == {"fenced"}


def test_a_claim_whose_answer_was_lost_is_repeated_by_its_id_alone(service: ServiceDriver):
    job_id = service.started()

    def claim(*key: str) -> Response:
        headers = {"Idempotency-Key": key[0]} if key else {}
        return service.node.post(f"/v1/attempts/{job_id}.1/claim", headers=headers)

    first, again = claim("mine"), claim("mine")
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json()["claim"] | {"token": ""} == again.json()["claim"] | {"token": ""}
    assert [answer.status_code for answer in (claim("another"), claim())] == [409, 409]
    service.let_lease_run_out(f"{job_id}.1")
    service.scheduler.turn()
    assert claim("mine").status_code == 409


def test_claims_of_what_is_not_there(service: ServiceDriver):
    job_id = service.queued()
    for attempt_id in (f"{job_id}.1", "job-none.1", "nonsense"):
        assert service.node.post(f"/v1/attempts/{attempt_id}/claim").status_code == 404


def test_a_heartbeat_renews_lease_and_token_and_shows_the_phase(service: ServiceDriver):
    attempt = service.running()
    service.let_lease_run_out(attempt.id)
    reply = attempt.beat("step 3: generate").json()
    assert reply["order"] == "continue"
    attempt.token = reply["token"]
    service.scheduler.turn()
    assert attempt.beat("step 3: generate").status_code == 200
    assert service.job(attempt.claim.job_id).phase == "step 3: generate"
    phases = [e.data["phase"] for e in service.events(attempt.claim.job_id) if e.kind == "state"]
    assert phases.count("step 3: generate") == 1


@pytest.mark.parametrize(("what", "body"), WRITES)
def test_a_lapsed_attempt_writes_nothing(service: ServiceDriver, what, body):
    attempt = service.running()
    service.let_lease_run_out(attempt.id)
    service.scheduler.turn()
    answer = attempt.post(what, body)
    assert answer.status_code == 409
    assert error_of(answer)["code"] == "fenced"
    with service.database.read() as session:
        assert session.execute(select(Metric)).first() is None
        assert session.execute(select(Checkpoint)).first() is None
    assert service.job(attempt.claim.job_id).state is JobState.QUEUED


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("what", "body"), WRITES)
def test_one_attempts_token_is_no_other_attempts(service: ServiceDriver, what, body):
    attempt = service.running()
    service.report("node-2")
    other = service.running()
    attempt.token = other.token
    assert attempt.post(what, body).status_code == 403
    attempt.token = "nonsense"
    assert attempt.post(what, body).status_code == 401


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_token_signed_for_an_attempt_that_nobody_claimed_writes_nothing(service: ServiceDriver):
    job_id = service.started()
    token = sign_attempt_token(service.app.state.key_pair.private_pem, job_id, 1)
    answer = service.client(token).post(f"/v1/attempts/{job_id}.1/heartbeat", json={"phase": "x"})
    assert answer.status_code == 409


def test_the_next_attempt_goes_on_from_the_last_checkpoint(service: ServiceDriver):
    first = service.running()
    job_id = first.claim.job_id
    for step in (5, 10):
        assert first.commit(step).status_code == 204
    service.let_lease_run_out(first.id)
    service.scheduler.turn()
    service.report(running=())
    service.scheduler.turn()
    second = service.claim(f"{job_id}.2")
    assert second.claim.resume is not None
    assert second.claim.resume.step == 10
    job = service.job(job_id)
    assert [attempt.first_step for attempt in job.attempts] == [0, 11]
    assert [attempt.state for attempt in job.attempts] == ["lapsed", "running"]
    assert job.step == 10
    rewinds = [event.data for event in service.events(job_id) if event.kind == "rewind"]
    assert rewinds == [{"attempt": 2, "from_step": 11}]
    assert first.commit(15).status_code == 409


def test_committing_twice_is_committing_once(service: ServiceDriver):
    attempt = service.running()
    for _ in range(2):
        assert attempt.commit(5).status_code == 204
    with service.database.read() as session:
        assert [c.step for c in session.execute(select(Checkpoint)).scalars()] == [5]
    assert [e.data["step"] for e in service.events(attempt.claim.job_id) if e.kind == "checkpoint"] == [5]


def test_a_late_repeat_of_an_older_commit_does_not_bring_it_back(service: ServiceDriver):
    attempt = service.running(checkpoints={"every": 5, "keep": 1})
    for step in (5, 10, 5):
        assert attempt.commit(step).status_code == 204
    with service.database.read() as session:
        assert [c.step for c in session.execute(select(Checkpoint)).scalars()] == [10]


def test_old_checkpoints_are_dropped_and_their_files_with_them(service: ServiceDriver):
    attempt = service.running(checkpoints={"every": 1, "keep": 2})
    store = service.scheduler.artefacts
    owner = f"jobs/{attempt.claim.job_id}/checkpoints"
    shared = store.put_bytes(owner, "tokenizer", b"same").model_dump()
    own = [store.put_bytes(f"{owner}/{i}", "weights", b"%d" % i).model_dump() for i in range(4)]
    for step in range(4):
        manifest = {"files": {"tokenizer": shared, "weights": own[step]}}
        assert attempt.post("checkpoints", {"step": step + 1, "manifest": manifest}).status_code == 204
    with service.database.read() as session:
        assert sorted(c.step for c in session.execute(select(Checkpoint)).scalars()) == [3, 4]
    service.scheduler.turn()
    assert [ref.key for ref in store.list(owner)] == sorted([shared["key"], own[2]["key"], own[3]["key"]])
    with service.database.read() as session:
        assert session.execute(select(Garbage)).first() is None


def test_what_killed_attempts_left_in_the_store_goes_when_the_job_is_over(service: ServiceDriver):
    attempt = service.running()
    store, owner = service.scheduler.artefacts, f"jobs/{attempt.claim.job_id}"
    for name in ("weights/1.3", "checkpoints/1-10", "checkpoints/1-20", "model", "texts/1"):
        store.put_bytes(f"{owner}/{name}", "data", b"x")
    committed = store.list(f"{owner}/checkpoints/1-10")[0].model_dump()
    attempt.post("checkpoints", {"step": 10, "manifest": {"files": {"data": committed}}})
    attempt.finish("failed", error={"code": "x", "message": "y"})
    service.scheduler.turn()
    left = {ref.key.removeprefix(f"{owner}/").rpartition("/")[0] for ref in store.list(owner)}
    assert left == {"checkpoints/1-10", "model", "texts/1"}


def huge_checkpoint(job_id: str):
    commit = example_checkpoint(job_id, 1, "a", "b")
    for ref in commit["manifest"]["files"].values():
        ref["size"] = 2**62
    return commit


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("commit", "path"),
    [
        (example_checkpoint("JOB", 21, "a"), "step"),
        (example_checkpoint("JOB", 2), "manifest.files"),
        (example_checkpoint("JOB", -1, "a"), "step"),
        (example_checkpoint("another-job", 1, "a"), "manifest.files.a.key"),
        (huge_checkpoint("JOB"), "manifest.files"),
        ({"step": 1, "manifest": {"files": {"a": example_ref("a", "..")}}}, "manifest.files.a.key"),
    ],
)
def test_a_checkpoint_that_cannot_be_is_refused(service: ServiceDriver, commit, path):
    attempt = service.running()
    answer = attempt.post("checkpoints", json.loads(json.dumps(commit).replace("JOB", attempt.claim.job_id)))
    assert answer.status_code == 422
    assert error_of(answer)["fields"][0]["path"] == path


@pytest.mark.slow
def test_a_finished_job(service: ServiceDriver):
    attempt = service.running()
    for _ in range(2):  # the first answer may be lost
        assert attempt.finish("finished", result=example_result(attempt.claim.job_id)).status_code == 204
    job = service.job(attempt.claim.job_id)
    assert job.state is JobState.FINISHED
    assert job.result is not None
    assert job.result.reward_after == 0.8
    assert (job.step, job.attempts[0].state) == (20, "ended")
    assert attempt.beat().status_code == 409
    assert service.person.post(f"/v1/jobs/{job.id}/cancel").json()["state"] == "finished"


def test_a_job_that_trained_no_step_has_failed(service: ServiceDriver):
    attempt = service.running()
    assert attempt.finish("finished").status_code == 204
    job = service.job(attempt.claim.job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.code == "no_steps"
    assert attempt.finish("finished", result=example_result(attempt.claim.job_id, 0)).status_code == 422


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_result_with_more_steps_than_the_job_has_is_refused(service: ServiceDriver):
    attempt = service.running()
    answer = attempt.finish("finished", result=example_result(attempt.claim.job_id, 21))
    assert answer.status_code == 422
    assert error_of(answer)["fields"][0]["path"] == "result.steps"


def test_what_a_database_cannot_hold_is_no_accident(service: ServiceDriver, kind: str):
    answer = service.running().beat("a\0b")
    assert answer.status_code == (422 if kind == "postgres" else 200)


def fail(attempt: AttemptDriver, retryable: bool = True) -> None:
    error = {"code": "trainer_killed", "message": "the trainer was killed by signal 9"}
    assert attempt.finish("failed", retryable=retryable, error=error).status_code == 204


def next_attempt(service: ServiceDriver, attempt: AttemptDriver) -> AttemptDriver:
    service.scheduler.turn()
    return service.claim(f"{attempt.claim.job_id}.{attempt.claim.number + 1}")


def test_restarts_end_at_the_limit_with_the_reason(service: ServiceDriver):
    attempt = service.running(max_restarts=2)
    for _ in range(2):
        fail(attempt)
        job = service.job(attempt.claim.job_id)
        assert job.state is JobState.QUEUED
        assert "killed by signal 9" in str(job.phase)
        attempt = next_attempt(service, attempt)
    fail(attempt)
    job = service.job(attempt.claim.job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.code == "trainer_killed"
    assert "gave up after 2 restarts" in job.error.message
    assert len(job.attempts) == 3


@pytest.mark.slow
def test_progress_earns_new_restarts(service: ServiceDriver):
    attempt = service.running(max_restarts=1)
    for step in range(1, 5):
        attempt.commit(step)
        fail(attempt)
        attempt = next_attempt(service, attempt)
    assert attempt.claim.number == 5
    attempt.commit(4)  # no progress: this is where it went on
    fail(attempt)
    assert service.job(attempt.claim.job_id).state is JobState.FAILED


def test_a_failure_of_its_own_making_is_not_tried_again(service: ServiceDriver):
    attempt = service.running()
    fail(attempt, retryable=False)
    job = service.job(attempt.claim.job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.message == "the trainer was killed by signal 9"


def test_a_checkpointed_attempt_goes_on_elsewhere_without_using_up_a_restart(service: ServiceDriver):
    attempt = service.running(max_restarts=0)
    attempt.commit(3)
    assert attempt.finish("checkpointed").status_code == 204
    attempt = next_attempt(service, attempt)
    assert attempt.claim.resume is not None
    assert attempt.claim.resume.step == 3


@pytest.mark.parametrize("outcome", ["failed", "checkpointed", "cancelled"])
def test_a_cancelled_job_is_cancelled_however_its_attempt_ends(service: ServiceDriver, outcome):
    attempt = service.running()
    service.person.post(f"/v1/jobs/{attempt.claim.job_id}/cancel")
    attempt.finish(outcome, retryable=True)
    assert service.job(attempt.claim.job_id).state is JobState.CANCELLED


def test_a_cancelled_job_whose_attempt_falls_silent_is_cancelled(service: ServiceDriver):
    attempt = service.running()
    service.person.post(f"/v1/jobs/{attempt.claim.job_id}/cancel")
    service.let_lease_run_out(attempt.id)
    service.scheduler.turn()
    assert service.job(attempt.claim.job_id).state is JobState.CANCELLED


def test_time_left_follows_the_last_steps(service: ServiceDriver):
    attempt = service.running()
    job_id = attempt.claim.job_id
    assert service.job(job_id).seconds_left is None
    rows = [{"step": step, "name": "time/step", "value": 3.0} for step in range(1, 6)]
    rows.append({"step": 5, "name": "reward", "value": 0.5})
    assert attempt.post("metrics", {"rows": rows}).status_code == 204
    assert service.job(job_id).seconds_left == pytest.approx(3.0 * 15)


def test_time_left_runs_down_within_a_step(service: ServiceDriver):
    attempt = service.running()
    job_id = attempt.claim.job_id
    rows = [{"step": 1, "name": "time/step", "value": 30.0}, {"step": 1, "name": "reward", "value": 0.5}]
    attempt.post("metrics", {"rows": rows})
    attempt.post("trajectories", {"step": 1, "rows": []})
    for passed, left in ((10, 30.0 * 19 - 10), (300, 30.0 * 18)):  # a long step ends at any moment
        with service.database.write() as session:
            for event in session.scalars(select(JobEvent).where(JobEvent.kind == "trajectories")):
                event.created_at = database_now(session) - timedelta(seconds=passed)
        assert service.job(job_id).seconds_left == pytest.approx(left, abs=2)


ENDS = [
    ({"outcome": "failed", "error": {"code": "x", "message": "no memory"}}, "failed", "no memory"),
    ({"outcome": "failed"}, "failed", "the attempt failed without giving a reason; its log may say more"),
    ({"outcome": "checkpointed", "reason": "its node was stopped"}, "checkpointed", "its node was stopped"),
    ({"outcome": "checkpointed"}, "checkpointed", "it stopped at a checkpoint, as ordered"),
    ({"outcome": "cancelled"}, "cancelled", "the attempt was stopped on its node, not by an order"),
]


@pytest.mark.parametrize(("report", "outcome", "reason"), ENDS)
def test_every_end_names_its_cause(service: ServiceDriver, report, outcome, reason):
    attempt = service.running()
    attempt.post("finish", report)
    ended = service.job(attempt.claim.job_id).attempts[0]
    assert (ended.outcome, ended.reason) == (outcome, reason)


def test_an_attempt_that_was_ordered_to_cancel_has_no_error(service: ServiceDriver):
    attempt = service.running()
    service.person.post(f"/v1/jobs/{attempt.claim.job_id}/cancel")
    attempt.finish("cancelled")
    job = service.job(attempt.claim.job_id)
    ended = job.attempts[0]
    assert (job.error, ended.error) == (None, None)
    assert (ended.outcome, ended.reason) == ("cancelled", "the job was cancelled")


def test_an_end_without_a_report_names_its_cause(service: ServiceDriver):
    withdrawn = service.started()
    service.person.post(f"/v1/jobs/{withdrawn}/cancel")
    assert service.job(withdrawn).attempts[0].reason == "the job was cancelled"
    attempt = service.running()
    service.let_lease_run_out(attempt.id)
    service.scheduler.turn()
    lapsed = service.job(attempt.claim.job_id).attempts[0]
    assert (lapsed.outcome, lapsed.reason) == ("lapsed", "attempt 1 stopped sending heartbeats")


def test_events_count_up_without_a_gap(service: ServiceDriver):
    attempt = service.running()
    attempt.commit(5)
    attempt.post("metrics", {"rows": [{"step": 6, "name": "reward", "value": 1.0}]})
    attempt.finish("finished", result=example_result(attempt.claim.job_id))
    job = service.job(attempt.claim.job_id)
    with service.database.read() as session:
        metric_seqs = set(session.execute(select(Metric.seq)).scalars())
    numbers = [event.seq for event in service.events(job.id)]
    assert numbers == sorted(numbers)
    assert set(numbers) | metric_seqs == set(range(1, job.seq + 1))
    assert not set(numbers) & metric_seqs

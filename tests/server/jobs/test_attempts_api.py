"""What attempts report over REST: claims, heartbeats, the time that is left, and writes that are refused."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from httpx import Response
from sqlalchemy import select

from powermean.contracts.api import JobState
from powermean.tokens import sign_attempt_token
from server.db.models import Checkpoint, JobEvent, Metric
from server.db.session import database_now
from tests.support.service_driver import ServiceDriver, error_of, example_checkpoint, example_result

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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_what_a_database_cannot_hold_is_no_accident(service: ServiceDriver, kind: str):
    answer = service.running().beat("a\0b")
    assert answer.status_code == (422 if kind == "postgres" else 200)


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

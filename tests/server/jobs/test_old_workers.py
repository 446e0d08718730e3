"""Workers of the version before: they get what they understand, and no jobs that they don't."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from powermean.contracts.api import JobState
from powermean.contracts.names import node_queue
from powermean.contracts.revisions import FIRST
from tests.support.service_driver import ServiceDriver

FROZEN = Path(__file__).parents[2] / "powermean/contracts/revision_1.json"
OLD = json.loads(FROZEN.read_text())["$defs"]


def reads(contract: str, answer: object) -> None:
    """As such a worker does."""
    Draft202012Validator({"$ref": f"#/$defs/{contract}", "$defs": OLD}).validate(answer)


def test_they_run_jobs_as_before(service: ServiceDriver):
    reads("NodeOrders", service.report("n1", revision=FIRST).model_dump(mode="json"))
    job_id = service.submit()
    reads("ValidationWithSecrets", service.node.get(f"/v1/jobs/{job_id}/validation").json())
    service.validate(job_id)
    service.scheduler.turn()
    claimed = service.node.post(f"/v1/attempts/{job_id}.1/claim")  # without a body
    assert claimed.status_code == 200, claimed.text
    reads("ClaimWithSecrets", claimed.json())
    attempt = {"Authorization": f"Bearer {claimed.json()['claim']['token']}"}
    beat = service.anyone.post(
        f"/v1/attempts/{job_id}.1/heartbeat", json={"phase": "loading"}, headers=attempt
    )
    assert beat.status_code == 200, beat.text
    reads("HeartbeatReply", beat.json())


@pytest.mark.parametrize(
    "changes",
    [{"resources": {"nodes": 2}}, {"optimizer": {"schedule": "cosine"}}, {"checkpoints": {"best": "reward"}}],
)
def test_a_job_with_new_fields_waits_for_new_workers(service: ServiceDriver, changes: dict[str, object]):
    for node_id in ("n1", "n2"):
        service.report(node_id, revision=FIRST)
    job_id = service.queued(**changes)
    service.scheduler.turn()
    job = service.job(job_id)
    assert job.state is JobState.QUEUED
    assert "those of n1, n2 don't know what the job asks for" in (job.phase or "")
    for node_id in ("n1", "n2"):
        service.report(node_id)
    service.scheduler.turn()
    assert service.job(job_id).state is JobState.STARTING


def test_an_old_worker_checks_no_spec_with_new_fields(service: ServiceDriver):
    service.report("n1", revision=FIRST)
    service.submit(resources={"nodes": 2})
    service.relay.turn()
    assert service.sender.sent == []
    service.report("n2")
    job_id = service.submit(resources={"nodes": 2})
    service.relay.turn()
    assert [queue for _, queue, subject in service.sender.sent if subject == job_id] == [node_queue("n2")]

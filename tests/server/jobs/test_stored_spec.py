"""A spec that a version with other rules has stored: its job is shown, and not run."""

from typing import Any

import pytest

from powermean.contracts.job import JobSpec
from server.db.models import Job
from server.jobs.stored_spec import SpecRefusedError, as_stored
from tests.support.service_driver import ServiceDriver, example_spec

GIVEN = JobSpec.model_validate(example_spec()).model_dump(mode="json", by_alias=True)


def changed(path: str, value: object) -> dict[str, Any]:
    part, name = path.split(".")
    return GIVEN | {part: GIVEN[part] | {name: value}}


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("rollout.top_k", 5, "there is no such field"),
        ("rollout.publish", "ipc", "ipc is for GPUs and resources.gpus is 0"),
        ("training.epochs", 10**9, "less than or equal to"),
        ("algorithm.ess_target", "rising", "interpolate"),
    ],
)
def test_what_is_refused_now_has_its_default_and_is_named(path: str, value: object, why: str) -> None:
    spec, refused = as_stored(changed(path, value))
    assert spec == JobSpec.model_validate(GIVEN)
    ((found, message),) = [(one.path, one.message) for one in refused]
    assert (found, why in message) == (path, True), message


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [("rollout.stop", [5], "rollout.stop.0"), ("algorithm.name", "of another version", "algorithm.name")],
)
def test_of_a_part_without_a_default_the_whole_has_its_own(path: str, value: object, named: str) -> None:
    spec, refused = as_stored(changed(path, value))
    assert spec == JobSpec.model_validate(GIVEN)
    assert refused[0].path == named


def test_what_has_no_default_is_refused() -> None:
    with pytest.raises(SpecRefusedError, match=r"training\.steps: .*another one stored"):
        as_stored(changed("training.steps", 0))


def test_its_job_is_listed_and_shown_and_fails_when_it_should_run(service: ServiceDriver) -> None:
    job_id = service.started()
    with service.database.write() as session:
        job = session.get_one(Job, job_id)
        job.spec = job.spec | {"rollout": job.spec["rollout"] | {"publish": "ipc", "top_k": 5}}
    assert [one["id"] for one in service.person.get("/v1/jobs").json()["items"]] == [job_id]
    shown = service.person.get(f"/v1/jobs/{job_id}").json()
    assert shown["spec"]["rollout"]["publish"] == "auto"
    assert sorted(one["path"] for one in shown["spec_refused"]) == ["rollout.publish", "rollout.top_k"]
    refused = service.node.post(f"/v1/attempts/{job_id}.1/claim")
    assert refused.status_code == 409
    error = service.job(job_id).error
    assert error is not None
    assert (error.code, "another one stored" in error.message) == ("spec_refused", True)
    assert "Submit it again" in (error.remedy or "")
    with service.database.write() as session:
        job = session.get_one(Job, job_id)
        job.spec = job.spec | {"training": {}}
    gone = service.person.get(f"/v1/jobs/{job_id}")
    assert (gone.status_code, gone.json()["error"]["code"]) == (409, "spec_refused")
    assert service.person.get(f"/v1/jobs/{job_id}/text").status_code == 200
    assert service.person.get("/v1/jobs").status_code == 200


def test_it_ends_without_harm_to_other_jobs(service: ServiceDriver) -> None:
    """Also where there is no default: the scheduler looks at all jobs in one turn."""
    checked = service.person.post("/v1/jobs", json=example_spec()).json()["id"]
    service.report("another")
    lost, restarted = service.running(), service.running()
    with service.database.write() as session:
        for job_id in (checked, lost.claim.job_id, restarted.claim.job_id):
            job = session.get_one(Job, job_id)
            job.spec = job.spec | {"training": {}}
    assert service.node.get(f"/v1/jobs/{checked}/validation").status_code == 409
    restarted.finish("failed", error={"code": "x", "message": "y"}, retryable=True)
    service.let_lease_run_out(lost.id)
    service.scheduler.turn()
    service.scheduler.turn()
    with service.database.read() as session:
        states = {job_id: session.get_one(Job, job_id).state for job_id in (checked, lost.claim.job_id)}
        second = session.get_one(Job, restarted.claim.job_id)
        assert states[checked] == "failed"
        assert states[lost.claim.job_id] in ("queued", "starting")
        assert (second.attempt, second.state) == (2, "starting")

"""A spec that a version with other rules has stored: its job is shown, not run, and loses nothing by it."""

import hashlib
import json
from typing import Any

import pytest

from powermean.contracts.job import JobSpec
from powermean.contracts.revisions import OF_SPECS, without_later
from server.db.models import Job
from server.jobs.stored_spec import readable
from server.storage.retention import apply_retention
from tests.support.live_server import listening
from tests.support.service_driver import ADMIN_KEY, ServiceDriver, error_of, example_spec
from tests.support.stored_things import finish
from tests.support.terminal import powermean

GIVEN = JobSpec.model_validate(example_spec()).model_dump(mode="json", by_alias=True)


def changed(path: str, value: object) -> dict[str, Any]:
    part, name = path.split(".")
    return GIVEN | {part: GIVEN[part] | {name: value}}


def restore(service: ServiceDriver, job_id: str, path: str, value: object) -> None:
    """As if another version had stored this field of the job's spec."""
    part, name = path.split(".")
    with service.database.write() as session:
        job = session.get_one(Job, job_id)
        job.spec = job.spec | {part: job.spec[part] | {name: value}}


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
    spec, refused = readable(changed(path, value), JobSpec)
    assert spec == JobSpec.model_validate(GIVEN)
    ((found, message),) = [(one.path, one.message) for one in refused]
    assert (found, why in message) == (path, True), message


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("rollout.stop", [5], ["rollout.stop.0"]),
        ("optimizer.betas", [2.0, 3.0], ["optimizer.betas.0", "optimizer.betas.1"]),
        ("algorithm.name", "of another version", ["algorithm.name", "algorithm"]),
    ],
)
def test_of_a_part_without_a_default_the_whole_has_its_own(
    path: str, value: object, named: list[str]
) -> None:
    given = changed(path, value) | {"seed": 7}
    given["optimizer"] = given["optimizer"] | {"eps": 1e-4}
    spec, refused = readable(given, JobSpec)
    assert spec == JobSpec.model_validate(
        GIVEN | {"seed": 7, "optimizer": GIVEN["optimizer"] | {"eps": 1e-4}}
    )
    assert [one.path for one in refused] == named


def test_what_has_no_default_is_refused() -> None:
    spec, refused = readable(changed("training.steps", 0), JobSpec)
    assert (spec, [one.path for one in refused]) == (None, ["training.steps"])


def test_what_is_wrong_only_beside_a_default_says_so() -> None:
    given = changed("rollout.engine", "of another version")
    given["rollout"] = given["rollout"] | {"publish": "in_place"}
    _, (engine, publish) = readable(given, JobSpec)
    assert (engine.path, publish.path) == ("rollout.engine", "rollout.publish")
    assert publish.message.startswith("with the default of rollout.engine: in_place is for the transformers")
    given = changed("rollout.publish", "ipc")
    given["rollout"] = given["rollout"] | {"top_k": 5}  # has no default, and so nothing follows from it
    _, (_, publish) = readable(given, JobSpec)
    assert publish.message.startswith("ipc is for GPUs")


@pytest.mark.slow
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
    shown = service.person.get(f"/v1/jobs/{job_id}").json()
    assert (shown["spec"], [one["path"] for one in shown["spec_refused"]][-1]) == (None, "training.steps")
    assert service.person.get(f"/v1/jobs/{job_id}/text").status_code == 200
    assert service.person.get("/v1/jobs").status_code == 200


@pytest.mark.slow
def test_it_ends_without_harm_to_other_jobs(service: ServiceDriver) -> None:
    """Also where there is no default: the scheduler looks at all jobs in one turn."""
    checked = service.person.post("/v1/jobs", json=example_spec()).json()["id"]
    service.report("another")
    lost, restarted = service.running(), service.running()
    restarted.post("metrics", {"rows": [{"step": 1, "update": 0, "name": "p/mean", "value": 0.9}]})
    with service.database.write() as session:
        for job_id in (checked, lost.claim.job_id, restarted.claim.job_id):
            job = session.get_one(Job, job_id)
            wrong = {"training": {"minibatches": "auto", "epochs": None}, "evaluation": {"every": "auto"}}
            job.spec = job.spec | wrong | {"max_restarts": None}
    for numbers in ("metrics", "health"):
        answer = service.person.get(f"/v1/jobs/{restarted.claim.job_id}/{numbers}")
        assert answer.status_code == 200, answer.text
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "value", "left"),
    [
        ("checkpoints.keep", 1000, [1, 2, 3, 4]),
        ("checkpoints.best_is", "nearest", [1, 2, 3, 4]),
        ("checkpoints.best", "", [1, 2, 3, 4]),
        ("training.steps", 0, [1, 4]),  # has no default, and no part in what is kept
        ("checkpoints.keep_days", 30, [1, 2, 3, 4]),  # might be a rule to keep more
    ],
)
def test_no_checkpoint_goes_by_a_rule_that_nobody_chose(
    service: ServiceDriver, path: str, value: object, left: list[int]
) -> None:
    attempt = service.running(checkpoints={"keep": 1, "best": "eval/reward", "best_is": "lowest"})
    job_id = attempt.claim.job_id
    restore(service, job_id, path, value)
    for step, reward in ((1, 0.1), (2, 0.5), (3, 0.4), (4, 0.3)):
        row = {"step": step, "update": -1, "name": "eval/reward", "value": reward}
        assert attempt.post("metrics", {"rows": [row]}).is_success
        assert attempt.commit(step).status_code == 204
    assert [one["step"] for one in checkpoints_of(service, job_id)] == left
    finish(service, attempt)
    rules = {"checkpoints_last": 0}
    assert service.person.put("/v1/projects/default/retention", json=rules).status_code == 200
    apply_retention(service.database, service.database.write)
    kept = [one["step"] for one in checkpoints_of(service, job_id)]
    assert kept == (left if path.startswith("checkpoints") else [1])


def checkpoints_of(service: ServiceDriver, job_id: str) -> Any:
    answer = service.person.get(f"/v1/jobs/{job_id}/checkpoints")
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]


LORA = {"rank": 8, "alpha": 16.0, "target_modules": ["q_proj"], "dropout": 0.0}


@pytest.mark.slow
def test_a_fork_goes_on_unless_it_needs_what_is_refused(service: ServiceDriver) -> None:
    attempt = service.running(
        model={"name": "tiny/model", "lora": LORA}, checkpoints={"best": "eval/reward", "best_is": "lowest"}
    )
    job_id = attempt.claim.job_id
    assert attempt.commit(1).status_code == 204
    finish(service, attempt)

    def forked(source: str, **model: Any) -> Any:
        return service.person.post("/v1/jobs", json=example_spec(model={"from": source} | model))

    restore(service, job_id, "checkpoints.best_is", "nearest")
    restore(service, job_id, "training.steps", 0)
    best = error_of(forked(f"{job_id}@best", lora=LORA))
    assert (best["code"], best["fields"][0]["path"]) == ("invalid", "model.from")
    assert f"{job_id}: checkpoints.best_is: 'nearest' is not one of" in best["message"]
    assert "a checkpoint by its step" in best["remedy"]
    assert forked(f"{job_id}@1", lora=LORA).status_code == 202
    assert forked(job_id).status_code == 202
    gone = service.person.get(f"/v1/jobs/{job_id}/checkpoints/best/files")
    assert (gone.status_code, error_of(gone)["code"]) == (409, "spec_refused")
    restore(service, job_id, "model.lora", LORA | {"rank": 10_000})
    adapter = error_of(forked(f"{job_id}@1", lora=LORA))
    assert f"{job_id}: model.lora.rank: " in adapter["message"]
    assert "final model" in adapter["remedy"]
    assert forked(job_id).status_code == 202
    restore(service, job_id, "model.name", "a name of another version")
    unnamed = error_of(forked(job_id))
    assert f"{job_id}: model.name: " in unnamed["message"]
    assert unnamed["remedy"] == "Give another model."


@pytest.mark.parametrize("how", ["", "/text"])
def test_a_submit_is_repeated_to_a_server_of_another_version(service: ServiceDriver, how: str) -> None:
    def submit(status: int, path: str = how, **changes: Any) -> str:
        spec = example_spec(**changes)
        body = {"text": json.dumps(spec)} if path else spec
        answer = service.person.post(f"/v1/jobs{path}", json=body, headers={"Idempotency-Key": "once"})
        assert answer.status_code == status, answer.text
        return str(answer.json().get("id"))

    def stored(path: str, value: object) -> None:
        """As another version stores the spec and its sha256: with this field, or without it if None."""
        part, name = path.split(".")
        with service.database.write() as session:
            job = session.get_one(Job, job_id)
            whole = JobSpec.model_validate(example_spec()).model_dump(mode="json")
            whole[part] = {
                key: each for key, each in (whole[part] | {name: value}).items() if each is not None
            }
            job.spec, job.spec_sha256 = whole, "of another version"

    job_id = submit(202)
    with service.database.read() as session:
        said = session.get_one(Job, job_id).spec_sha256
    known = without_later(JobSpec.model_validate(example_spec()), OF_SPECS)
    assert said == hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest(), "as 0.1.0 has it"
    for path, value in (("training.parallel", None), ("training.of_a_later_one", 1), ("optimizer.eps", 1e-4)):
        stored(path, value)
        assert submit(200) == job_id, path
        assert submit(200, "/text") == job_id, "written in another way"
        submit(409, seed=1)
    stored("resources.nodes", None)
    with service.database.write() as session:
        session.get_one(Job, job_id).spec_text = None  # from before texts were kept
    assert submit(200) == job_id


@pytest.mark.slow
def test_any_job_is_shown_cancelled_paused_and_deleted(
    service: ServiceDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = service.running()
    running, queued = attempt.claim.job_id, service.queued()
    checked = service.person.post("/v1/jobs", json=example_spec()).json()["id"]
    for job_id in (running, queued, checked):
        restore(service, job_id, "training.steps", 0)

    def told(job_id: str, order: str, **body: Any) -> dict[str, Any]:
        answer = service.person.post(f"/v1/jobs/{job_id}/{order}", json=body or None)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        assert found["spec"] is None
        return found

    restore(service, running, "training.minibatches", 5000)  # its health is judged by them
    browser = service.browser()
    assert browser.post("/v1/sessions", json={"key": ADMIN_KEY}).status_code == 201
    for page in ("", "/charts", "/spec", "/cancel"):
        assert browser.get(f"/jobs/{running}{page}").status_code == 200, page
    assert "training.steps" in browser.get(f"/jobs/{running}/spec").text
    with listening(service.app) as url:
        monkeypatch.setenv("POWERMEAN_URL", url)
        monkeypatch.setenv("POWERMEAN_API_KEY", ADMIN_KEY)
        printed = powermean("show", running).stdout
    assert "spec: training.steps: Input should be greater than or equal to 1" in printed
    assert '"training": {"steps": 20}' in printed, "as submitted"
    assert told(running, "pause")["pause_requested"]
    assert told(queued, "pause")["state"] == "paused"
    assert told(queued, "resume")["state"] == "queued"
    assert told(queued, "priority", priority="low")["priority"] == "low"
    assert told(running, "cancel")["cancel_requested"]
    assert attempt.finish("cancelled").status_code == 204
    for job_id in (queued, checked):
        assert told(job_id, "cancel")["state"] == "cancelled"
    for job_id in (running, queued, checked):
        assert service.person.delete(f"/v1/jobs/{job_id}").status_code == 204

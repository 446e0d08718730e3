"""Jobs that train on from another job's weights: what they may begin with, and that it stays for them."""

from typing import Any

import pytest

from powermean.contracts.forks import Origin
from tests.support.service_driver import ServiceDriver, example_spec
from tests.support.stored_things import commit, finish, full_job, refs_below, sweep

LORA = {"rank": 8, "alpha": 16.0, "target_modules": ["q_proj"]}


def forked(service: ServiceDriver, source: str, **changes: Any) -> Any:
    model = {"from": source} | changes.pop("model", {})
    return service.person.post("/v1/jobs", json=example_spec(name="on", model=model, **changes))


def origin_of(service: ServiceDriver, job_id: str) -> Origin:
    """What a node is told that checks the job."""
    answer = service.node.get(f"/v1/jobs/{job_id}/validation")
    return Origin.model_validate(answer.json()["task"]["origin"])


def kept_by_forks(service: ServiceDriver) -> dict[str, int]:
    """Fork -> bytes of files that only forks keep; the storage page has the same sum."""
    found = service.person.get("/v1/projects/default/storage").json()
    sizes = {thing["id"]: thing["bytes"] for thing in found["largest"] if thing["kind"] == "forks"}
    (use,) = (one for one in found["uses"] if one["kind"] == "forks")
    assert (use["bytes"], use["count"]) == (sum(sizes.values()), len(sizes))
    return sizes


def wrong(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 422, answer.text
    field: dict[str, Any] = answer.json()["error"]["fields"][0]
    return field


@pytest.mark.slow
def test_a_fork_is_told_what_it_begins_with_and_both_show_it(service: ServiceDriver):
    parent = full_job(service)
    answer = forked(service, f"{parent}@1")
    assert answer.status_code == 202, answer.text
    child = answer.json()
    assert child["forked_from"] == {"job": parent, "step": 1}
    assert child["spec"]["model"]["from"] == f"{parent}@1"
    assert child["model"] == f"{parent}@1"
    origin = origin_of(service, child["id"])
    assert (origin.job_id, origin.step, origin.kind) == (parent, 1, "weights")
    assert origin.first_model.name == "tiny/model"
    assert list(origin.files.files) == ["weights"]
    service.validate(child["id"])
    service.report()
    service.scheduler.turn()
    assert service.claim(f"{child['id']}.1").claim.origin == origin
    whole = forked(service, parent).json()
    shown = service.person.get(f"/v1/jobs/{parent}").json()
    assert [(one["job"], one["name"], one["step"]) for one in shown["forks"]] == [
        (whole["id"], "on", None),
        (child["id"], "on", 1),
    ]
    listed = service.person.get("/v1/jobs").json()["items"]
    assert {one["model"] for one in listed} == {"tiny/model", parent, f"{parent}@1"}


def test_what_can_not_be_trained_on_from_is_named(service: ServiceDriver):
    attempt = service.running()
    job = attempt.claim.job_id
    nothing = wrong(forked(service, f"{job}@40"))
    assert nothing["path"] == "model.from"
    assert nothing["message"] == f"{job} has no checkpoint of step 40"
    assert (
        "no checkpoint either; a running job saves the first after checkpoints.every steps"
        in nothing["remedy"]
    )
    commit(service, attempt, 5)
    commit(service, attempt, 7)
    assert "It has checkpoints of steps 5, 7: give" in wrong(forked(service, f"{job}@40"))["remedy"]
    unfinished = wrong(forked(service, job))
    assert unfinished["message"] == f"{job} is running and has no final model"
    assert f"give {job}@7" in unfinished["remedy"]
    assert wrong(forked(service, "job-0000000000000000"))["message"] == "no job job-0000000000000000"
    assert wrong(forked(service, "elsewhere"))["path"] == "model.from"
    both = wrong(forked(service, job, model={"name": "tiny/model"}))
    assert "exactly one of name, folder and from" in both["message"]


@pytest.mark.slow
def test_a_deleted_job_and_another_projects_are_none(service: ServiceDriver):
    parent = full_job(service)
    service.person.post("/v1/projects", json={"name": "other"})
    elsewhere = wrong(forked(service, parent, project="other"))
    assert elsewhere["message"] == f"{parent} belongs to project default, this job to other"
    stranger = service.someone(project="other", name="Eve")
    assert (
        wrong(stranger.post("/v1/jobs", json=example_spec(model={"from": parent}, project="other")))[
            "message"
        ]
        == f"no job {parent}"
    )
    assert service.person.delete(f"/v1/jobs/{parent}?cascade=true").is_success
    assert wrong(forked(service, parent))["message"] == f"no job {parent}"


@pytest.mark.slow
def test_its_files_stay_until_the_last_fork_is_gone(service: ServiceDriver):
    parent = full_job(service)
    first, second = forked(service, f"{parent}@1").json()["id"], forked(service, f"{parent}@1").json()["id"]
    whole = forked(service, parent).json()["id"]
    files = {ref.key for ref in refs_below(service, f"jobs/{parent}")}
    began = {key for key in files if "/checkpoints/1-1/" in key or "/model/" in key}
    assert len(began) == 2
    assert kept_by_forks(service) == {}
    assert service.person.delete(f"/v1/jobs/{parent}/files").is_success
    assert service.person.delete(f"/v1/jobs/{parent}/checkpoints/1").is_success
    assert service.person.delete(f"/v1/jobs/{parent}?cascade=true").is_success
    sweep(service)
    assert {ref.key for ref in refs_below(service, f"jobs/{parent}")} == began
    # Of two forks with the same files, the older one has them.
    assert kept_by_forks(service) == {first: len("weights 1"), whole: len("the model")}
    assert service.person.get(f"/v1/jobs/{first}").json()["forked_from"] == {"job": parent, "step": 1}
    for job, left in ((first, 2), (whole, 1), (second, 0)):
        service.person.post(f"/v1/jobs/{job}/cancel")
        assert service.person.delete(f"/v1/jobs/{job}").is_success
        sweep(service)
        assert len(refs_below(service, f"jobs/{parent}")) == left
        assert len(kept_by_forks(service)) == left


@pytest.mark.slow
def test_an_adapter_goes_on_as_the_same_adapter(service: ServiceDriver):
    attempt = service.running(model={"name": "tiny/model", "lora": LORA})
    job = attempt.claim.job_id
    commit(service, attempt, 5)
    none = wrong(forked(service, f"{job}@5"))
    assert none["path"] == "model.lora"
    assert "rank 8, alpha 16.0, target_modules q_proj, and lora is not given" in none["message"]
    assert wrong(forked(service, f"{job}@5", model={"lora": LORA | {"rank": 4}}))["path"] == "model.lora"
    answer = forked(service, f"{job}@5", model={"lora": LORA | {"dropout": 0.1}})
    assert answer.status_code == 202, answer.text
    origin = origin_of(service, answer.json()["id"])
    assert (origin.kind, origin.base, origin.name) == ("adapter", None, "tiny/model")
    finish(service, attempt)
    over = service.running(model={"from": job, "lora": LORA})  # a new adapter over the merged model
    commit(service, over, 3)
    last = forked(service, f"{over.claim.job_id}@3", model={"lora": LORA}).json()["id"]
    origin = origin_of(service, last)
    assert origin.base is not None
    assert (origin.kind, origin.base.kind, origin.base.job_id) == ("adapter", "model", job)


@pytest.mark.slow
def test_no_declared_engine_serves_a_fork_of_all_weights(service: ServiceDriver):
    parent = full_job(service)
    refused = wrong(forked(service, parent, model={"lora": LORA}, rollout={"sharing": "shared"}))
    assert refused["path"] == "rollout.sharing"
    assert "no declared engine" in refused["message"]

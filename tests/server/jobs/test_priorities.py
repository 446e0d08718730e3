"""Priority classes, and who may give a job which."""

import pytest

from tests.support.service_driver import ServiceDriver, error_of, example_spec

NAMES = "Choose among high, normal, low."


def test_there_are_three_to_begin_with_and_everyone_sees_them(service: ServiceDriver):
    found = service.someone("viewer").get("/v1/priorities").json()["items"]
    assert [(one["name"], one["value"], one["role"]) for one in found] == [
        ("high", 100, "maintainer"),
        ("normal", 0, "member"),
        ("low", -100, "member"),
    ]


def test_a_spec_names_its_class(service: ServiceDriver):
    assert service.job(service.submit()).priority == "normal"
    job = service.job(service.submit(priority="low"))
    assert (job.priority, job.spec.priority) == ("low", "low")
    assert [one["priority"] for one in service.person.get("/v1/jobs").json()["items"]] == ["low", "normal"]


def test_one_that_is_not_there_is_refused_with_the_names_of_those_that_are(service: ServiceDriver):
    job_id = service.submit()
    for answer in (
        service.person.post("/v1/jobs", json=example_spec(priority="urgent")),
        service.person.post(f"/v1/jobs/{job_id}/priority", json={"priority": "urgent"}),
    ):
        assert answer.status_code == 422
        (field,) = error_of(answer)["fields"]
        assert (field["path"], field["message"]) == ("priority", "there is no priority class urgent")
        assert field["remedy"] == NAMES


def test_one_above_ones_role_is_refused_with_class_and_role(service: ServiceDriver):
    ada, chief = service.someone(name="Ada"), service.someone("maintainer", name="Bea")
    why = "priority high needs a maintainer of project default, and you are a member"
    answer = ada.post("/v1/jobs", json=example_spec(priority="high"))
    assert answer.status_code == 422
    assert [(one["path"], one["message"]) for one in error_of(answer)["fields"]] == [("priority", why)]
    job_id = ada.post("/v1/jobs", json=example_spec()).json()["id"]
    answer = ada.post(f"/v1/jobs/{job_id}/priority", json={"priority": "high"})
    assert (answer.status_code, error_of(answer)["message"]) == (403, why)
    assert ada.post(f"/v1/jobs/{job_id}/priority", json={"priority": "low"}).json()["priority"] == "low"
    assert chief.post(f"/v1/jobs/{job_id}/priority", json={"priority": "high"}).json()["priority"] == "high"
    other = chief.post("/v1/jobs", json=example_spec()).json()["id"]
    assert ada.post(f"/v1/jobs/{other}/priority", json={"priority": "low"}).status_code == 403


def test_administrators_make_change_and_remove_classes(service: ServiceDriver):
    ada = service.someone("maintainer")
    path, rank = "/v1/priorities/urgent", {"value": 1000, "role": "admin"}
    assert ada.put(path, json=rank).status_code == 403
    assert service.person.put(path, json=rank).json() == {"name": "urgent", **rank}
    answer = ada.post("/v1/jobs", json=example_spec(priority="urgent"))
    assert "needs an administrator" in error_of(answer)["message"]
    assert service.person.put(path, json=rank | {"role": "member"}).status_code == 200
    job_id = ada.post("/v1/jobs", json=example_spec(priority="urgent")).json()["id"]
    answer = service.person.delete(path)
    assert (answer.status_code, error_of(answer)["message"]) == (
        409,
        "1 jobs that have not ended have priority urgent",
    )
    service.person.post(f"/v1/jobs/{job_id}/cancel")
    assert ada.delete(path).status_code == 403
    assert service.person.delete(path).status_code == 204
    assert service.person.delete(path).status_code == 404
    assert service.person.get(path).status_code == 404
    assert service.person.delete("/v1/priorities/normal").status_code == 409


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_what_a_class_can_not_be(service: ServiceDriver):
    assert service.person.put("/v1/priorities/Urgent", json={"value": 1}).status_code == 422
    for rank in ({}, {"value": 10**7}, {"value": 1, "role": "viewer"}):
        assert service.person.put("/v1/priorities/urgent", json=rank).status_code == 422


def test_followers_are_told_and_an_ended_job_keeps_its_own(service: ServiceDriver):
    job_id = service.queued()
    before = len(service.events(job_id))
    for _ in range(2):  # the repeat tells nobody
        answer = service.person.post(f"/v1/jobs/{job_id}/priority", json={"priority": "high"})
        assert answer.status_code == 200
    told = service.events(job_id)[before:]
    assert [event.data["priority"] for event in told] == ["high"]
    service.person.post(f"/v1/jobs/{job_id}/cancel")
    answer = service.person.post(f"/v1/jobs/{job_id}/priority", json={"priority": "low"})
    assert (answer.status_code, error_of(answer)["message"]) == (
        409,
        f"job {job_id} has ended (cancelled): its priority can't be changed",
    )

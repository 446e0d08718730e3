"""Quotas: who sees whose, and changes by administrators that nobody overwrites unseen."""

from typing import Any

import pytest

from tests.support.service_driver import ServiceDriver, error_of

QUOTA = {"gpu_quota": 4, "gpu_limit": 8, "cpu_quota": 2, "cpu_limit": None, "weight": 2.0, "version": 0}


def put(service: ServiceDriver, project: str = "default", **changes: Any) -> Any:
    return service.person.put(f"/v1/projects/{project}/quota", json=QUOTA | changes)


def quotas(client: Any) -> dict[str, Any]:
    answer = client.get("/v1/quotas")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_a_quota_is_set_and_its_use_is_counted(service: ServiceDriver):
    attempt = service.running_on(8, resources={"gpus": 1, "placement": "split"})
    changed = put(service, cpu_quota=0)
    assert changed.status_code == 200, changed.text
    (item,) = quotas(service.person)["items"]
    assert item["gpus"] == {"quota": 4, "limit": 8, "used": 2}
    assert item["cpu_slots"] == {"quota": 0, "limit": None, "used": 0}
    assert (item["weight"], item["version"]) == (2.0, 1)
    assert changed.json() == item | {"warnings": []}
    assert attempt.finish("cancelled").status_code == 204
    assert quotas(service.person)["items"][0]["gpus"]["used"] == 0


def test_a_gpu_that_trainer_and_engine_share_counts_once(service: ServiceDriver):
    service.running_on(2, resources={"gpus": 1})
    assert quotas(service.person)["items"][0]["gpus"]["used"] == 1


def test_a_cpu_job_takes_one_slot(service: ServiceDriver):
    service.running()
    found = quotas(service.person)
    assert found["items"][0]["cpu_slots"]["used"] == 1
    assert found["cluster"]["cpu_slots"] == {"total": 1, "used": 1, "quotas": 0}


def test_two_administrators_at_once_see_each_others_change(service: ServiceDriver):
    assert put(service, gpu_quota=1).status_code == 200
    late = put(service, gpu_quota=7)
    assert late.status_code == 409
    said = {one["path"]: one["message"] for one in error_of(late)["fields"]}
    assert (said["gpu_quota"], said["version"], said["cpu_limit"]) == ("is now 1", "is now 1", "is now none")
    assert quotas(service.person)["items"][0]["gpus"]["quota"] == 1
    assert put(service, gpu_quota=7, version=1).status_code == 200


def test_a_change_whose_answer_got_lost_may_be_sent_again(service: ServiceDriver):
    first, again = put(service, gpu_quota=3), put(service, gpu_quota=3)
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.json() == first.json()
    assert put(service, gpu_quota=3, weight=1.5).status_code == 409


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"gpu_quota": 9}, "gpu_quota"),
        ({"cpu_quota": 3, "cpu_limit": 2}, "cpu_quota"),
        ({"gpu_quota": -1}, "gpu_quota"),
        ({"gpu_limit": -1}, "gpu_limit"),
        ({"weight": 0}, "weight"),
        ({"weight": -1}, "weight"),
        ({"weight": "NaN"}, "weight"),
        ({"weight": 1e-300}, "weight"),
        ({"gpu_quota": 2**40}, "gpu_quota"),
        ({"more": 1}, "more"),
    ],
)
def test_what_makes_no_sense_is_refused_at_its_field(service: ServiceDriver, wrong, field):
    answer = put(service, **wrong)
    assert answer.status_code == 422, answer.text
    assert field in {one["path"] for one in error_of(answer)["fields"]}
    assert quotas(service.person)["items"][0]["version"] == 0


def test_nan_as_json_is_refused(service: ServiceDriver):
    body = (
        '{"gpu_quota": 1, "gpu_limit": null, "cpu_quota": 0, "cpu_limit": null, "weight": NaN, "version": 0}'
    )
    headers = {"Content-Type": "application/json"}
    answer = service.person.put("/v1/projects/default/quota", content=body, headers=headers)
    assert answer.status_code == 422, answer.text


def test_more_than_the_cluster_has_is_accepted_with_a_warning(service: ServiceDriver):
    service.report(gpus=4)
    service.project("team-b")
    assert put(service, "team-b", gpu_quota=3, cpu_quota=0).json()["warnings"] == []
    (warning,) = put(service, gpu_quota=6, cpu_quota=0).json()["warnings"]
    assert warning.startswith("all quotas add up to 9 GPUs, 5 more than the 4 ")


def test_members_see_their_own_projects_and_no_totals(service: ServiceDriver):
    service.project("team-b")
    put(service, "team-b")
    member, auditor = service.someone(), service.someone(project=None, cluster_role="auditor", name="Eve")
    seen = quotas(member)
    assert ([one["project"] for one in seen["items"]], seen["cluster"]) == (["default"], None)
    everything = quotas(auditor)
    assert [one["project"] for one in everything["items"]] == ["default", "team-b"]
    assert everything["cluster"]["gpus"]["quotas"] == 4
    for client in (member, auditor, service.someone("maintainer", name="Max")):
        assert client.put("/v1/projects/default/quota", json=QUOTA).status_code == 403
    assert member.put("/v1/projects/team-b/quota", json=QUOTA).status_code == 404


def test_a_change_is_in_the_audit_log_with_its_values(service: ServiceDriver):
    put(service)
    entry = service.person.get("/v1/audit?verb=quota.change").json()["items"][0]
    assert (entry["project"], entry["outcome"]) == ("default", "allowed")
    assert entry["detail"] == {
        "gpu_quota": "4", "gpu_limit": "8", "cpu_quota": "2", "cpu_limit": "none", "weight": "2.0"
    }  # fmt: skip

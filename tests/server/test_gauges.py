"""The numbers about the whole cluster that an alert is made of."""

from datetime import timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server import gauges
from server.db.models import Job, Node
from server.db.session import database_now
from tests.support.service_driver import ServiceDriver

STILL = {"jobs", "gpus", "gpus_in_use", "gpus_unhealthy", "cpu_slots", "cpu_slots_in_use"} | {
    "project_gpus_in_use", "nodes", "nodes_alive", "nodes_disk_full",
}  # fmt: skip


def numbers(service: ServiceDriver) -> dict[tuple[str, ...], float]:
    """(name, value of the label) -> number."""
    text = service.person.get("/metrics").text
    families = list(text_string_to_metric_families(text))
    assert set(gauges.GAUGES) <= {family.name for family in families}
    return {
        (sample.name.removeprefix("powermean_"), *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_what_there_is_what_is_used_and_who_waits(
    service: ServiceDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.project("none")
    service.running_on(4, resources={"gpus": 2})
    service.queued()
    service.scheduler.turn()
    for node_id, full_disk in (("cordoned", "/data"), ("silent", None)):
        service.report(node_id, cpu_slots=2, gpus=1, full_disk=full_disk)
    assert service.person.post("/v1/nodes/cordoned/cordon", json={}).is_success
    waiting, checked = service.queued(resources={"gpus": 8}), service.submit()
    with service.database.write() as session:
        now = database_now(session)
        session.get_one(Job, waiting).queued_at = now - timedelta(hours=2)
        session.get_one(Job, checked).created_at = now - timedelta(minutes=5)
        session.get_one(Node, "silent").seen_at = now - timedelta(days=1)
        node = session.get_one(Node, "node-1")
        (*well, ill), old = node.report["gpus"], session.get_one(Node, "cordoned")
        node.report = node.report | {"gpus": [*well, ill | {"unhealthy": "fell off the bus"}]}
        old.report = old.report | {"gpus": [{**old.report["gpus"][0], "name": "L4"}]}
    found = numbers(service)
    assert {name: value for name, value in found.items() if name[0] in STILL} == {
        ("jobs", "validating"): 1, ("jobs", "queued"): 1, ("jobs", "starting"): 1, ("jobs", "running"): 1,
        ("jobs", "paused"): 0, ("jobs", "finished"): 0, ("jobs", "failed"): 0, ("jobs", "cancelled"): 0,
        ("gpus", "H200"): 4, ("gpus_in_use", "H200"): 2, ("gpus_unhealthy", "H200"): 1,
        ("gpus", "L4"): 1, ("gpus_in_use", "L4"): 0, ("gpus_unhealthy", "L4"): 0,
        ("cpu_slots",): 3, ("cpu_slots_in_use",): 1,
        ("project_gpus_in_use", "default"): 2, ("project_gpus_in_use", "none"): 0,
        ("nodes", "open"): 1, ("nodes", "cordoned"): 1, ("nodes", "draining"): 0, ("nodes", "silent"): 1,
        ("nodes_alive",): 2, ("nodes_disk_full",): 1,
    }  # fmt: skip
    assert found["jobs_longest_wait_seconds", "queued"] == pytest.approx(7200, abs=60)
    assert found["jobs_longest_wait_seconds", "validating"] == pytest.approx(300, abs=60)

    assert service.person.post(f"/v1/jobs/{waiting}/cancel").is_success
    assert numbers(service)["jobs", "queued"] == 1, "as it was read a moment ago"
    monkeypatch.setattr(gauges, "READ_S", -1.0)
    monkeypatch.setattr(gauges, "MOST", 1)
    assert service.person.delete(f"/v1/jobs/{waiting}").is_success
    found = numbers(service)
    assert found["jobs_longest_wait_seconds", "queued"] == 0
    assert (found["jobs", "queued"], found["jobs", "cancelled"]) == (0, 0), "nor a deleted one"
    assert (found["gpus", "H200"], found["gpus", gauges.OTHERS]) == (4, 1)
    assert found["project_gpus_in_use", gauges.OTHERS] == 0

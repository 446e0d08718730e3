"""A node's name is one worker's at a time, and a node that is gone for good can be removed."""

from datetime import timedelta
from typing import Any

import pytest
from httpx import Response
from sqlalchemy import update

from powermean.contracts.names import NODE_NAME_TAKEN
from server.db.models import Node
from server.db.session import database_now
from tests.support.service_driver import ServiceDriver, error_of


def report(service: ServiceDriver, host: str, instance: str) -> Response:
    body = {"hostname": host, "instance": instance, "version": "0"}
    return service.node.put("/v1/nodes/node-1", json=body)


def silence(service: ServiceDriver) -> None:
    with service.database.write() as session:
        long_ago = database_now(session) - timedelta(seconds=service.settings.node_timeout_s + 1)
        session.execute(update(Node).values(seen_at=long_ago))


def age_rival(service: ServiceDriver, age: timedelta) -> None:
    with service.database.write() as session:
        at = (database_now(session) - age).isoformat()
        session.execute(update(Node).values(rival={"hostname": "second", "at": at}))


def nodes(service: ServiceDriver) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = service.person.get("/v1/nodes").json()["items"]
    return items


def test_a_second_worker_under_a_name_is_refused_on_both_sides(
    service: ServiceDriver, caplog: pytest.LogCaptureFixture
):
    assert report(service, "first", "1").status_code == 200
    answer = report(service, "second", "2")
    assert answer.status_code == 409
    assert error_of(answer)["code"] == NODE_NAME_TAKEN
    assert "is another worker's, on host first" in error_of(answer)["message"]
    assert "refused the worker on host second" in caplog.text
    assert [node["hostname"] for node in nodes(service)] == ["first"]
    told = report(service, "first", "1")
    assert told.status_code == 200
    rival = told.json()["rival"]
    assert rival["hostname"] == "second"
    assert nodes(service)[0]["rival"] == rival
    age_rival(service, timedelta(hours=23))
    assert report(service, "first", "1").json()["rival"]["hostname"] == "second"
    age_rival(service, timedelta(hours=25))
    assert report(service, "first", "1").json()["rival"] is None
    assert nodes(service)[0]["rival"] is None


def test_who_was_refused_and_has_the_name_later_is_no_rival_of_itself(service: ServiceDriver):
    report(service, "first", "1")
    report(service, "second", "2")
    silence(service)
    assert report(service, "second", "2").json()["rival"] is None
    assert report(service, "second", "2").json()["rival"] is None


@pytest.mark.slow
def test_what_one_worker_runs_another_cannot_report_gone(service: ServiceDriver):
    """A frozen supervisor's lease runs out while its worker is silent: its slot is not free."""
    attempt = service.running()
    silence(service)
    assert report(service, "second", "2").status_code == 409  # its supervisor still sends heartbeats
    service.let_lease_run_out(attempt.id)
    assert report(service, "first", "the one").status_code == 200
    service.scheduler.turn()
    assert report(service, "second", "2").status_code == 409
    assert nodes(service)[0]["attempts"] == [attempt.id]


@pytest.mark.slow
def test_a_report_that_a_frozen_server_took_late_changes_nothing(service: ServiceDriver):
    """It is from before the attempt began, whose processes hold the slot still."""
    attempt = service.running()
    service.report(running=(attempt.id,), number=7)
    service.let_lease_run_out(attempt.id)
    service.scheduler.turn()

    def held() -> Any:
        return service.person.get("/v1/nodes/node-1").json()["attempts"]

    for late in (6, 7):
        service.report(cpu_slots=9, number=late)
        assert held() == [attempt.id]
        assert service.person.get("/v1/nodes/node-1").json()["cpu_slots"] == 1
    service.report(number=8)
    assert held() == []


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_server_of_the_version_before_reads_what_is_stored(service: ServiceDriver):
    """It refuses fields that came later."""
    service.report(gpus=1, cpu_slots=2, full_disk="/data")
    with service.database.read() as session:
        stored = session.get_one(Node, "node-1").report
    assert set(stored) == {
        "hostname",
        "instance",
        "version",
        "revision",
        "gpus",
        "cpu_slots",
        "full_disk",
        "engines",
    }
    assert set(stored["gpus"][0]) == {"uuid", "name", "memory_mb"}


def test_a_name_is_free_when_its_worker_is_gone(service: ServiceDriver):
    attempt = service.running()
    silence(service)
    service.let_lease_run_out(attempt.id)
    service.scheduler.turn()
    assert report(service, "second", "2").status_code == 200
    assert report(service, "first", "the one").status_code == 409
    assert [(node["hostname"], node["attempts"]) for node in nodes(service)] == [("second", [])]


@pytest.mark.slow
def test_a_node_that_is_gone_can_be_removed(service: ServiceDriver):
    attempt = service.running()
    alive = service.person.delete("/v1/nodes/node-1")
    assert (alive.status_code, "is alive" in error_of(alive)["message"]) == (409, True)
    silence(service)
    busy = service.person.delete("/v1/nodes/node-1")
    assert (busy.status_code, f"runs {attempt.id}" in error_of(busy)["message"]) == (409, True)
    service.let_lease_run_out(attempt.id)
    service.scheduler.turn()
    assert service.person.delete("/v1/nodes/node-1").status_code == 204
    assert nodes(service) == []
    job = service.job(attempt.claim.job_id)
    assert [part.node_id for part in job.attempts[0].allocations] == ["node-1", "node-1"]
    assert service.person.delete("/v1/nodes/node-1").status_code == 404
    service.report()
    service.scheduler.turn()
    service.claim(f"{attempt.claim.job_id}.2")


def test_only_administrators_remove_nodes(service: ServiceDriver):
    member = service.someone()
    assert member.delete("/v1/nodes/node-1").status_code == 403

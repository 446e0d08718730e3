"""GPUs that get no work, what nodes use, and nodes that say of their GPUs what can't be."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from httpx import Response
from sqlalchemy import func, select, update

from powermean.contracts.api import JobState
from server.cluster import samples
from server.db.models import Node, NodeSample
from server.db.session import Changes, database_now
from tests.support.service_driver import ServiceDriver, error_of


def gpu(uuid: str = "GPU-1", **more: Any) -> dict[str, Any]:
    return {"uuid": uuid, "name": "NVIDIA H100", "memory_mb": 81_559} | more


def put(service: ServiceDriver, *gpus: dict[str, Any], node_id: str = "node-1", **more: Any) -> Response:
    body = {"hostname": f"host-of-{node_id}", "instance": node_id, "version": "0", "gpus": gpus} | more
    answer: Response = service.node.put(f"/v1/nodes/{node_id}", json=body)
    return answer


def nodes(service: ServiceDriver) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = service.person.get("/v1/nodes").json()["items"]
    return found


def silence(service: ServiceDriver, node_id: str) -> None:
    with service.database.write() as session:
        long_ago = database_now(session) - timedelta(seconds=service.settings.node_timeout_s + 1)
        session.execute(update(Node).where(Node.id == node_id).values(seen_at=long_ago))


def age_samples(service: ServiceDriver, by: timedelta) -> None:
    with service.database.write() as session:
        for row in session.scalars(select(NodeSample)):
            row.at -= by


def test_an_unhealthy_gpu_gets_no_work_and_those_who_wait_say_why(service: ServiceDriver):
    ill = gpu("GPU-1", unhealthy="Xid 79: it has fallen off the bus")
    put(service, ill)
    job_id = service.queued(resources={"gpus": 1})
    service.scheduler.turn()
    assert service.job(job_id).phase == (
        "waiting for a node with a GPU: the largest connected one has 0 "
        "(left out: node-1: GPU 0: Xid 79: it has fallen off the bus)"
    )
    assert nodes(service)[0]["gpus"][0]["unhealthy"] == ill["unhealthy"]
    put(service, ill, gpu("GPU-2"))
    service.scheduler.turn()
    assert service.claim(f"{job_id}.1").claim.allocations[0].gpu_uuids == ("GPU-2",)


@pytest.mark.slow
def test_what_runs_on_a_gpu_that_falls_ill_goes_on(service: ServiceDriver):
    put(service, gpu())
    job_id = service.queued(resources={"gpus": 1})
    service.scheduler.turn()
    attempt = service.claim(f"{job_id}.1")
    put(service, gpu(unhealthy="slowed down by its heat"), running=[attempt.id])
    service.scheduler.turn()
    assert attempt.beat().json()["order"] == "continue"
    assert attempt.finish("checkpointed").status_code == 204
    service.scheduler.turn()
    assert service.job(job_id).state is JobState.QUEUED


@pytest.mark.slow
def test_a_gpu_is_its_first_reporter_s_as_long_as_that_lives(service: ServiceDriver):
    put(service, gpu())
    put(service, gpu(), gpu("GPU-2"), node_id="node-0")  # the name does not decide
    first, second = nodes(service)[::-1]
    assert [one["unhealthy"] for one in first["gpus"]] == [None]
    assert [one["unhealthy"] for one in second["gpus"]] == [
        "node node-1 reports it, too, and did so first",
        None,
    ]
    job_ids = [service.queued(resources={"gpus": 1}) for _ in range(3)]
    service.scheduler.turn()
    taken = [service.claim(f"{job_id}.1").claim.allocations[0] for job_id in job_ids[:2]]
    assert {(part.node_id, part.gpu_uuids) for part in taken} == {
        ("node-1", ("GPU-1",)),
        ("node-0", ("GPU-2",)),
    }
    assert service.job(job_ids[2]).state is JobState.QUEUED


@pytest.mark.slow
def test_a_worker_with_a_new_name_gets_its_gpus_when_nothing_of_the_old_one_runs(service: ServiceDriver):
    put(service, gpu())
    job_id = service.queued(resources={"gpus": 1})
    service.scheduler.turn()
    attempt = service.claim(f"{job_id}.1")
    silence(service, "node-1")
    put(service, gpu(), node_id="node-2")
    waiting = service.queued(resources={"gpus": 1})
    service.scheduler.turn()
    assert service.job(waiting).state is JobState.QUEUED  # the first job's processes may still be there
    service.let_lease_run_out(attempt.id)
    service.scheduler.turn()
    assert service.person.delete("/v1/nodes/node-1").status_code == 204
    service.scheduler.turn()
    started = {one: service.job(one).state for one in (job_id, waiting)}
    assert sorted(started.values()) == [JobState.QUEUED, JobState.STARTING]


@pytest.mark.slow
def test_a_gpu_that_is_gone_while_an_attempt_holds_it_is_shown_and_stays_held(
    service: ServiceDriver,
):
    put(service, gpu("GPU-1"), gpu("GPU-2"))
    job_id = service.queued(resources={"gpus": 1})
    service.scheduler.turn()
    attempt = service.claim(f"{job_id}.1")
    (held,) = attempt.claim.allocations[0].gpu_uuids
    put(service, *(gpu(uuid) for uuid in ("GPU-1", "GPU-2") if uuid != held), running=[attempt.id])
    assert nodes(service)[0]["missing_gpus"] == [held]
    second, third = (service.queued(resources={"gpus": 1}) for _ in range(2))
    service.scheduler.turn()
    other = service.claim(f"{second}.1")
    assert other.claim.allocations[0].gpu_uuids not in [(held,), ()]
    put(service, gpu("GPU-1"), gpu("GPU-2"), running=[attempt.id, other.id])
    service.scheduler.turn()
    assert service.job(third).phase == "waiting for 1 free GPU on one node"  # it is there again, and held
    assert attempt.finish("finished").status_code == 204
    assert nodes(service)[0]["missing_gpus"] == []
    service.scheduler.turn()
    assert service.claim(f"{third}.1").claim.allocations[0].gpu_uuids == (held,)


@pytest.mark.parametrize(
    ("gpus", "path", "why"),
    [
        ([gpu(), gpu("GPU-2"), gpu()], "gpus.2.uuid", "is the same as gpus.0.uuid"),
        ([gpu(memory_mb=-1)], "gpus.0.memory_mb", "greater than or equal to 0"),
        ([gpu(memory_mb=2**40)], "gpus.0.memory_mb", "less than or equal to"),
        ([gpu(memory_used_mb=81_560)], "gpus.0.memory_used_mb", "is above memory_mb (81559)"),
        ([gpu(utilisation=101)], "gpus.0.utilisation", "less than or equal to 100"),
        ([gpu("")], "gpus.0.uuid", "at least 1 character"),
    ],
)
def test_what_can_not_be_is_refused_at_its_field(
    service: ServiceDriver, gpus: Sequence[dict[str, Any]], path: str, why: str
):
    answer = put(service, *gpus)
    assert answer.status_code == 422
    (fault,) = error_of(answer)["fields"]
    assert fault["path"] == path
    assert why in fault["message"]
    assert nodes(service) == []


def test_numbers_that_always_change_plan_nothing_anew(service: ServiceDriver):
    told: list[Changes] = []
    put(service, gpu(utilisation=1))
    service.database.listen(told.append)
    for busy in (2, 3):
        use = [{"attempt_id": "job-a.1", "cpu": busy, "memory_mb": busy}]
        load = {"id": "e", "generation": 1, "state": "ready", "requests": busy}
        assert put(service, gpu(utilisation=busy, temperature_c=busy), use=use, services=[load]).is_success
    assert [one.plan for one in told] == [True]  # for the service that is new
    told.clear()
    put(service, gpu(unhealthy="slowed down by its heat"), services=[load])
    assert [one.plan for one in told] == [True]


@pytest.mark.slow
def test_a_sample_is_kept_of_each_ten_seconds_for_an_hour(service: ServiceDriver):
    attempt = service.running()
    use = [{"attempt_id": attempt.id, "cpu": 1.5, "memory_mb": 300}]
    for busy in (10, 20):
        assert put(
            service, gpu(utilisation=busy, memory_used_mb=5), use=use, running=[attempt.id], node_id="node-2"
        ).is_success
    with service.database.read() as session:
        rows = session.scalar(select(func.count()).where(NodeSample.node_id == "node-2"))
    assert rows is not None
    assert rows <= 2  # one, unless ten seconds ended in between
    answer = service.person.get("/v1/nodes/node-2/samples").json()
    assert answer["every_s"] == samples.EVERY_S
    first = answer["items"][0]
    assert (first["gpus"][0]["uuid"], first["gpus"][0]["utilisation"]) == ("GPU-1", 10)
    assert first["attempts"] == use
    shown = next(node for node in nodes(service) if node["id"] == "node-2")
    assert (shown["gpus"][0]["memory_used_mb"], shown["use"]) == (5, use)
    since = answer["items"][-1]["at"]
    assert service.person.get("/v1/nodes/node-2/samples", params={"since": since}).json()["items"] == []
    age_samples(service, timedelta(minutes=1))
    shown = next(node for node in nodes(service) if node["id"] == "node-2")
    assert (shown["gpus"][0]["memory_used_mb"], shown["use"]) == (None, [])
    age_samples(service, timedelta(hours=1))
    with service.database.write() as session:
        samples.prune(session, database_now(session))
        assert session.scalar(select(func.count()).select_from(NodeSample)) == 0


@pytest.mark.slow
def test_others_see_nothing_of_an_attempt_in_samples(service: ServiceDriver):
    service.project("theirs")
    attempt = service.running(project="theirs")
    put(service, use=[{"attempt_id": attempt.id, "cpu": 1, "memory_mb": 1}], node_id="node-2")
    member = service.someone()
    assert attempt.id not in member.get("/v1/nodes").text
    assert attempt.id not in member.get("/v1/nodes/node-2/samples").text
    assert attempt.id in service.person.get("/v1/nodes/node-2/samples").text


@pytest.mark.parametrize(
    ("since", "found"), [("0001-01-01T00:00:00+23:59", 1), ("9999-12-31T23:59:59-23:59", 0)]
)
def test_a_since_of_any_year_is_answered(service: ServiceDriver, since: str, found: int):
    put(service, gpu(utilisation=1))
    answer = service.person.get("/v1/nodes/node-1/samples", params={"since": since})
    assert (answer.status_code, len(answer.json()["items"])) == (200, found)


@pytest.mark.parametrize("since", ["2026-01-01T00:00:00", "yesterday"])
def test_a_since_that_is_no_time_is_named(service: ServiceDriver, since: str):
    put(service)
    answer = service.person.get("/v1/nodes/node-1/samples", params={"since": since})
    assert (answer.status_code, error_of(answer)["fields"][0]["path"]) == (422, "since")
    assert service.person.get("/v1/nodes/node-9/samples").status_code == 404


def test_labels_and_blind_spots_are_shown(service: ServiceDriver):
    put(service, labels={"zone": "a"}, blind=["Xid errors: this user may not read the kernel's log"])
    (node,) = nodes(service)
    assert node["labels"] == {"zone": "a"}
    assert node["blind"] == ["Xid errors: this user may not read the kernel's log"]


def test_a_job_asks_for_what_a_node_has(service: ServiceDriver):
    put(service, gpu(), labels={"zone": "a"})
    put(service, gpu("GPU-2", name="NVIDIA A10", memory_mb=23_028), labels={"zone": "b"}, node_id="node-2")
    wanted = {"gpus": 1, "gpu_type": "a10", "gpu_memory_gib": 20.5, "node_labels": {"zone": "b"}}
    first, second = (service.queued(resources=wanted | more) for more in ({}, {"gpu_memory_gib": 40.0}))
    service.scheduler.turn()
    assert service.claim(f"{first}.1").claim.allocations[0].node_id == "node-2"
    assert service.job(second).phase == (
        "waiting for a node with a GPU (zone=b, GPUs called a10, 40 GiB a GPU): "
        "the largest connected one has 0"
    )

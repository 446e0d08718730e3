"""Engine services over the API: declared, placed, reported, shared by jobs, drained, and moved."""

from typing import Any

import pytest

from powermean.contracts.api import JobState
from powermean.contracts.engines import EngineOrder, EngineService
from powermean.tokens import verify_attempt_token
from tests.server.cluster.test_scheduling import silence_node
from tests.support.service_driver import ADMIN_KEY, ServiceDriver, error_of

SPEC = {"name": "smol", "model": {"name": "tiny/model"}, "max_adapters": 2, "max_lora_rank": 8}
VLLM = ("transformers", "vllm")


def lora_job(sharing: str = "auto", rank: int = 8, **more: Any) -> dict[str, Any]:
    model = {"name": "tiny/model", "lora": {"rank": rank}}
    return {"model": model, "rollout": {"sharing": sharing, "max_new_tokens": 20}} | more


def declared(service: ServiceDriver, **changes: Any) -> str:
    answer = service.person.post("/v1/engines", json=SPEC | changes)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def shown(service: ServiceDriver, engine_id: str) -> EngineService:
    answer = service.person.get(f"/v1/engines/{engine_id}")
    assert answer.status_code == 200, answer.text
    return EngineService.model_validate(answer.json())


def said(order: EngineOrder, state: str = "ready", **changes: Any) -> dict[str, Any]:
    """What a node says of a service that it runs."""
    return {
        "id": order.id,
        "generation": order.generation,
        "state": state,
        "gpu_uuids": order.gpu_uuids,
        "url": "http://127.0.0.1:4711",
        "max_model_len": 64,
        "adapters": {"slots": 2, "taken": 0, "max_rank": 8},
    } | changes


def placed(service: ServiceDriver, node_id: str = "node-1", **node: Any) -> EngineOrder:
    """The order of the one declared service, once the node has it."""
    service.report(node_id, engines=VLLM, **node)
    service.scheduler.turn()
    (order,) = service.report(node_id, engines=VLLM, **node).engines
    return order


def ready(service: ServiceDriver, cpu_slots: int = 4, **changes: Any) -> EngineOrder:
    """A declared service that takes jobs on node-1."""
    declared(service, **changes)
    order = placed(service, cpu_slots=cpu_slots)
    service.report(cpu_slots=cpu_slots, engines=VLLM, services=(said(order),))
    return order


def engine_of(service: ServiceDriver, job_id: str) -> str | None:
    attempt = service.job(job_id).attempts[-1]
    (rollout,) = [part for part in attempt.allocations if part.role == "rollout"]
    return rollout.engine_id


@pytest.mark.slow
def test_the_way_of_an_engine_from_its_declaration_to_its_end(service: ServiceDriver):
    engine_id = declared(service)
    assert (shown(service, engine_id).state, shown(service, engine_id).node) == ("waiting", None)
    service.report()  # without vLLM
    service.scheduler.turn()
    assert "vLLM" in (shown(service, engine_id).why or "")
    order = placed(service)
    assert (order.id, order.generation, order.spec.max_adapters) == (engine_id, 1, 2)
    assert (shown(service, engine_id).state, shown(service, engine_id).node) == ("starting", "node-1")
    service.report(engines=VLLM, services=(said(order),))
    now = shown(service, engine_id)
    assert (now.state, now.url, now.why) == ("ready", "http://127.0.0.1:4711", None)
    assert now.report is not None
    assert now.report.adapters is not None
    answer = service.person.delete(f"/v1/engines/{engine_id}")
    assert (answer.status_code, answer.json()["state"]) == (202, "stopping")
    assert service.report(engines=VLLM, services=(said(order),)).engines == ()
    assert shown(service, engine_id).state == "stopping"  # it still runs
    service.report(engines=VLLM)
    assert service.person.get(f"/v1/engines/{engine_id}").status_code == 404


def test_administrators_declare_and_everyone_looks(service: ServiceDriver):
    member = service.someone()
    engine_id = declared(service)
    assert [e["id"] for e in member.get("/v1/engines").json()["items"]] == [engine_id]
    assert member.post("/v1/engines", json=SPEC | {"name": "other"}).status_code == 403
    assert member.delete(f"/v1/engines/{engine_id}").status_code == 403
    assert service.anyone.get("/v1/engines").status_code == 401
    assert service.client(ADMIN_KEY).delete(f"/v1/engines/{engine_id}").status_code == 202
    assert service.person.get("/v1/engines").json()["items"] == []


def test_names_are_unique_and_fields_are_checked(service: ServiceDriver):
    declared(service)
    again = service.person.post("/v1/engines", json=SPEC)
    assert (again.status_code, error_of(again)["code"]) == (409, "conflict")
    wrong = service.person.post("/v1/engines", json=SPEC | {"name": "b", "model": {}})
    assert wrong.status_code == 422
    assert "name and folder" in error_of(wrong)["message"]
    assert service.person.get("/v1/engines/engine-none").status_code == 404


@pytest.mark.slow
def test_lora_jobs_share_it_and_their_claims_say_where(service: ServiceDriver):
    order = ready(service)
    jobs = [service.queued(**lora_job()) for _ in range(3)]
    full = service.queued()
    service.scheduler.turn()
    assert [engine_of(service, job) for job in jobs] == [order.id, order.id, None]
    assert engine_of(service, full) is None
    claim = service.claim(f"{jobs[0]}.1").claim
    assert claim.engine is not None
    assert (claim.engine.id, claim.engine.url) == (order.id, "http://127.0.0.1:4711")
    assert service.claim(f"{jobs[2]}.1").claim.engine is None
    (now,) = service.report(cpu_slots=4, engines=VLLM, services=(said(order),)).engines
    assert now.jobs == tuple(sorted(jobs[:2]))
    assert shown(service, order.id).jobs == tuple(sorted(jobs[:2]))


@pytest.mark.slow
def test_a_slot_is_free_when_the_attempt_has_ended(service: ServiceDriver):
    order = ready(service, max_adapters=1)
    first, second = (service.queued(**lora_job("shared")) for _ in range(2))
    service.scheduler.turn()
    assert service.job(second).state is JobState.QUEUED
    assert service.job(second).phase == "waiting for a free slot in engine smol (all 1 taken)"
    service.claim(f"{first}.1").finish("failed", error={"code": "x", "message": "y"})
    (now,) = service.report(cpu_slots=4, engines=VLLM, services=(said(order),)).engines
    assert now.jobs == ()
    service.scheduler.turn()
    assert engine_of(service, second) == order.id


@pytest.mark.slow
def test_a_lapsed_attempts_slot_is_its_jobs_own_again(service: ServiceDriver):
    order = ready(service, max_adapters=1)
    job = service.queued(**lora_job("shared"))
    service.scheduler.turn()
    attempt = service.claim(f"{job}.1")
    service.let_lease_run_out(attempt.id)
    service.report(cpu_slots=4, engines=VLLM, running=(attempt.id,), services=(said(order),))
    service.scheduler.turn()
    service.scheduler.turn()
    assert engine_of(service, job) == order.id
    assert service.job(job).attempt == 2


@pytest.mark.slow
def test_jobs_that_it_does_not_serve_get_their_own(service: ServiceDriver):
    ready(service)
    too_high = service.queued(**lora_job(rank=16))
    too_long = service.submit(**lora_job())
    answer = service.node.post(f"/v1/jobs/{too_long}/validation", json={"errors": [], "tokens": 65})
    assert answer.status_code == 204
    other_type = service.queued(model={"name": "tiny/model", "lora": {"rank": 8}, "dtype": "bfloat16"})
    own = service.queued(**lora_job("own"))
    service.scheduler.turn()
    assert [engine_of(service, job) for job in (too_high, too_long, other_type, own)] == [None] * 4


@pytest.mark.slow
def test_it_serves_the_projects_that_it_names_and_others_do_not_see_it(service: ServiceDriver):
    for project in ("ours", "theirs", "third"):
        service.project(project)
    ready(service, projects=["theirs", "third"])
    jobs = [
        service.queued(**lora_job(sharing, project=project))
        for sharing, project in (("auto", "ours"), ("shared", "ours"), ("auto", "theirs"))
    ]
    service.scheduler.turn()
    own, waits, shares = (service.job(job_id) for job_id in jobs)
    assert service.claim(f"{own.id}.1").claim.engine is None
    assert (waits.state, waits.phase) == (JobState.QUEUED, "waiting for an engine that serves project ours")
    assert service.claim(f"{shares.id}.1").claim.engine is not None
    (engine,) = service.someone(project="theirs").get("/v1/engines").json()["items"]
    assert engine["spec"]["projects"] == ["theirs"]
    stranger = service.someone(project="ours")
    assert stranger.get("/v1/engines").json()["items"] == []
    assert stranger.get(f"/v1/engines/{engine['id']}").status_code == 404
    assert service.person.get(f"/v1/engines/{engine['id']}").json()["spec"]["projects"] == ["theirs", "third"]


def test_a_project_that_it_names_exists(service: ServiceDriver):
    answer = service.person.post("/v1/engines", json=SPEC | {"projects": ["default", "nobodys"]})
    assert answer.status_code == 422
    assert error_of(answer)["fields"][0]["path"] == "projects.1"


@pytest.mark.slow
def test_a_restarting_engine_keeps_its_jobs_and_takes_no_new_ones(service: ServiceDriver):
    order = ready(service)
    first = service.queued(**lora_job("shared"))
    service.scheduler.turn()
    died = {"code": "engine_died", "message": "killed"}
    service.report(cpu_slots=4, engines=VLLM, services=(said(order, "starting", error=died, restarts=1),))
    now = shown(service, order.id)
    assert (now.state, now.jobs, now.url) == ("starting", (first,), "http://127.0.0.1:4711")
    assert now.error is not None
    second = service.queued(**lora_job("shared"))
    service.scheduler.turn()
    assert service.job(second).phase == "waiting for engine smol to be ready (starting)"
    assert service.claim(f"{first}.1").claim.engine is not None
    service.report(cpu_slots=4, engines=VLLM, services=(said(order),))
    service.scheduler.turn()
    assert engine_of(service, second) == order.id


@pytest.mark.slow
def test_a_removed_engine_serves_its_jobs_to_their_end(service: ServiceDriver):
    order = ready(service)
    job = service.queued(**lora_job("shared"))
    service.scheduler.turn()
    service.person.delete(f"/v1/engines/{order.id}")
    late = service.queued(**lora_job("shared"))
    service.scheduler.turn()
    assert "to be declared" in (service.job(late).phase or "")
    (now,) = service.report(cpu_slots=4, engines=VLLM, services=(said(order),)).engines
    assert now.jobs == (job,)
    service.claim(f"{job}.1").finish("failed", error={"code": "x", "message": "y"})
    assert service.report(cpu_slots=4, engines=VLLM, services=(said(order, "stopping"),)).engines == ()
    service.report(cpu_slots=4, engines=VLLM)
    assert service.person.get("/v1/engines").json()["items"] == []


@pytest.mark.slow
def test_its_gpu_goes_to_no_job_until_its_process_is_gone(service: ServiceDriver):
    declared(service, gpus=1)
    order = placed(service, gpus=1, cpu_slots=0)
    assert order.gpu_uuids == ("node-1-gpu-0",)
    job = service.queued(resources={"gpus": 1})
    service.scheduler.turn()
    assert service.job(job).state is JobState.QUEUED
    silence_node(service, "node-1")
    service.scheduler.turn()
    assert shown(service, order.id).state == "waiting"
    service.person.delete(f"/v1/engines/{order.id}")
    service.report(gpus=1, cpu_slots=0, engines=VLLM, services=(said(order),))  # it is back, and so is that
    service.scheduler.turn()
    assert service.job(job).state is JobState.QUEUED
    service.report(gpus=1, cpu_slots=0, engines=VLLM)
    service.scheduler.turn()
    assert service.job(job).state is JobState.STARTING


@pytest.mark.slow
def test_an_engine_of_a_silent_node_moves_once_no_attempt_may_use_it(service: ServiceDriver):
    order = ready(service)
    job = service.queued(**lora_job("shared"))
    service.scheduler.turn()
    attempt = service.claim(f"{job}.1")
    silence_node(service, "node-1")
    service.report("node-2", cpu_slots=1, engines=VLLM)
    service.scheduler.turn()
    assert shown(service, order.id).node == "node-1"
    service.let_lease_run_out(attempt.id)
    service.scheduler.turn()
    now = shown(service, order.id)
    assert (now.state, now.node, now.generation, now.jobs) == ("starting", "node-2", 2, ())
    late = service.report("node-1", cpu_slots=4, engines=VLLM, services=(said(order),))
    assert late.engines == ()
    assert shown(service, order.id).state == "starting"  # what the first node says counts no more
    (moved,) = service.report("node-2", engines=VLLM).engines
    service.report("node-2", engines=VLLM, services=(said(moved),))
    service.scheduler.turn()
    assert engine_of(service, job) == order.id
    assert service.job(job).attempts[-1].allocations[0].node_id == "node-2"


def test_a_new_leader_leaves_engines_where_they_are_until_nodes_had_time_to_report(service: ServiceDriver):
    order = ready(service)
    silence_node(service, "node-1")  # as all nodes are after a time without a server
    service.scheduler.stop()
    service.scheduler.turn()
    now = shown(service, order.id)
    assert (now.state, now.node, now.generation) == ("ready", "node-1", order.generation)
    assert now.why == "node node-1 is offline: this is its last report"
    (still,) = service.report(cpu_slots=4, engines=VLLM, services=(said(order),)).engines
    assert still.generation == order.generation
    assert shown(service, order.id).why is None


@pytest.mark.slow
def test_a_job_that_publishes_through_shared_memory_shares_no_engine_of_another_host(service: ServiceDriver):
    declared(service)
    order = placed(service, cpu_slots=4)
    service.report(cpu_slots=4, engines=VLLM, services=(said(order, url="http://node-1.example:4711"),))
    own, must = lora_job(), lora_job("shared")
    own["rollout"]["publish"] = must["rollout"]["publish"] = "shm"
    jobs = service.queued(**own), service.queued(**must)
    service.scheduler.turn()
    assert engine_of(service, jobs[0]) is None
    assert "rollout.publish to auto" in (service.job(jobs[1]).phase or "")


@pytest.mark.slow
def test_an_engine_that_other_nodes_reach_serves_their_trainers(service: ServiceDriver):
    declared(service)
    order = placed(service, cpu_slots=0)
    service.report(cpu_slots=0, engines=VLLM, services=(said(order, url="http://node-1.example:4711"),))
    service.report("node-2", cpu_slots=1)
    job = service.queued(**lora_job("shared"))
    service.scheduler.turn()
    trainer, rollout = service.job(job).attempts[0].allocations
    assert (trainer.node_id, rollout.node_id, rollout.engine_id) == ("node-2", "node-1", order.id)


def test_a_worker_that_came_back_is_told_what_to_run(service: ServiceDriver):
    order = ready(service)
    assert shown(service, order.id).state == "ready"
    (again,) = service.report(cpu_slots=4, engines=VLLM).engines
    assert (again.id, again.generation) == (order.id, order.generation)
    assert shown(service, order.id).state == "starting"


@pytest.mark.slow
def test_an_engine_that_failed_says_why_and_jobs_do_without(service: ServiceDriver):
    order = ready(service)
    error = {"code": "vllm_missing", "message": "not installed"}
    service.report(cpu_slots=4, engines=VLLM, services=(said(order, "failed", url=None, error=error),))
    now = shown(service, order.id)
    assert now.state == "failed"
    assert now.error is not None
    assert now.error.code == "vllm_missing"
    auto, must = service.queued(**lora_job()), service.queued(**lora_job("shared"))
    service.scheduler.turn()
    assert engine_of(service, auto) is None
    assert service.job(must).phase == "waiting for engine smol to be ready (failed)"


@pytest.mark.slow
def test_a_slot_of_an_engine_is_no_cpu_slot(service: ServiceDriver):
    ready(service, cpu_slots=2)
    jobs = [service.queued(**lora_job("shared")) for _ in range(2)]
    service.scheduler.turn()
    assert [service.job(job).state for job in jobs] == [JobState.STARTING] * 2


def test_the_nodes_token_for_an_engine_publishes_nothing(service: ServiceDriver):
    order = ready(service)
    claims = verify_attempt_token(order.token, service.app.state.key_pair.public_pem)
    assert (claims.job_id, claims.verbs) == (order.id, frozenset({"generate"}))


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "spec",
    [
        {"rollout": {"sharing": "shared"}},
        {
            "rollout": {"sharing": "shared", "engine": "transformers"},
            "model": {"name": "m", "lora": {}},
        },
    ],
)
def test_what_cannot_share_is_refused(service: ServiceDriver, spec: dict[str, Any]):
    answer = service.person.post(
        "/v1/jobs",
        json={
            "name": "x",
            "model": {"name": "m"},
            "data": {"kind": "arithmetic"},
            "training": {"steps": 1},
        }
        | spec,
    )
    assert answer.status_code == 422
    assert error_of(answer)["fields"][0]["path"] == "rollout.sharing"

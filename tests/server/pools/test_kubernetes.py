"""The Kubernetes pool against a server that answers as the API server does; no cluster ran it."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from server.db import models
from server.pools.backend import PilotState, PoolError, Seen
from server.pools.kubernetes import KubernetesBackend, KubernetesPool, KubernetesSection
from server.pools.pools_file import read_pools_file
from server.pools.turn import Pools, PoolTurn
from server.settings import Settings
from tests.support.fake_kubernetes import Kubernetes
from tests.support.kubernetes_pool import NAME, NODE_TOKEN, REDIS_URL, TEMPLATE, order
from tests.support.service_driver import ServiceDriver


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """The only server leads, however slow the machine is."""
    return settings.model_copy(update={"leader_lease_s": 600.0})


def the_one(backend: KubernetesBackend) -> Seen:
    (found,) = backend.list()
    assert (found.pilot_id, found.external_id) == (NAME, NAME)
    return found


@pytest.mark.slow
def test_a_pilot_is_a_job_that_runs_once(backend: KubernetesBackend, cluster: Kubernetes) -> None:
    assert backend.submit(order()) == NAME
    job = cluster.job(NAME)
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert (job["spec"]["backoffLimit"], job["spec"]["activeDeadlineSeconds"]) == (0, 7200)
    pod = job["spec"]["template"]
    assert pod["metadata"]["labels"]["team"] == "nlp"
    assert pod["spec"]["restartPolicy"] == "Never"
    assert pod["spec"]["terminationGracePeriodSeconds"] == 30
    assert pod["spec"]["automountServiceAccountToken"] is False
    (worker,) = pod["spec"]["containers"]
    assert worker["command"] == ["python", "-m", "worker"]
    assert worker["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": 2}
    env = {one["name"]: one["value"] for one in worker["env"]}
    assert env["HF_HOME"] == "/data/hub"
    assert env["POWERMEAN_NODE_ID"] == NAME
    assert backend.section.template == TEMPLATE  # the next pilot's is not built on this one's


def test_without_gpus_limit_and_queue_nothing_is_said_of_them(
    section: KubernetesSection, cluster: Kubernetes
) -> None:
    KubernetesBackend("gpu", section.model_copy(update={"queue": None})).submit(order(gpus=0, limit=None))
    job = cluster.job(NAME)
    assert "kueue.x-k8s.io/queue-name" not in job["metadata"]["labels"]
    assert "activeDeadlineSeconds" not in job["spec"]
    assert "nvidia.com/gpu" not in job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]


@pytest.mark.slow
def test_what_is_secret_is_in_a_secret_of_the_job_alone(
    backend: KubernetesBackend, cluster: Kubernetes
) -> None:
    backend.submit(order())
    job, secret = cluster.job(NAME), cluster.objects["Secret", NAME]
    assert NODE_TOKEN not in json.dumps(job)
    assert "hidden" not in json.dumps(job)
    assert secret["stringData"] == {"POWERMEAN_NODE_TOKEN": NODE_TOKEN, "POWERMEAN_REDIS_URL": REDIS_URL}
    assert secret["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
    pod = job["spec"]["template"]["spec"]
    (mount,) = [one for one in pod["containers"][0]["volumeMounts"] if one["name"] == "powermean-secrets"]
    env = {one["name"]: one["value"] for one in pod["containers"][0]["env"]}
    for name in secret["stringData"]:
        assert env[f"{name}_FILE"] == f"{mount['mountPath']}/{name}"
    cluster.collect(NAME)
    assert not cluster.objects
    assert NODE_TOKEN not in repr(order())


@pytest.mark.slow
def test_an_order_that_is_given_again_makes_no_second_pilot(
    backend: KubernetesBackend, cluster: Kubernetes
) -> None:
    backend.submit(order("pmn_first"))
    assert backend.submit(order("pmn_second")) == NAME
    assert len(cluster.objects) == 2
    assert cluster.objects["Secret", NAME]["stringData"]["POWERMEAN_NODE_TOKEN"] == "pmn_second"
    assert cluster.objects["Secret", NAME]["metadata"]["ownerReferences"]


def test_the_secret_is_there_before_the_pod_that_waits_for_it(
    backend: KubernetesBackend, cluster: Kubernetes
) -> None:
    cluster.replies = [(500, {"message": "etcdserver: leader changed"})]
    with pytest.raises(PoolError, match="500, etcdserver: leader changed"):
        backend.submit(order())
    assert not cluster.objects
    backend.submit(order())
    assert [one for one in cluster.requests if one[0] == "POST"][-1][1].endswith("/jobs")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prepare", "state", "reason"),
    [
        (lambda c: None, PilotState.PENDING, "no pod yet"),
        (
            lambda c: c.job(NAME)["spec"].update(suspend=True),
            PilotState.PENDING,
            "Suspended: waits for quota in queue research",
        ),
        (
            lambda c: c.pod(
                NAME,
                conditions=[
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/5 nodes are available: 5 Insufficient nvidia.com/gpu.",
                    }
                ],
            ),
            PilotState.PENDING,
            "Unschedulable: 0/5 nodes are available: 5 Insufficient nvidia.com/gpu.",
        ),
        (
            lambda c: c.pod(
                NAME,
                containerStatuses=[
                    {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no image"}}}
                ],
            ),
            PilotState.PENDING,
            "ImagePullBackOff: no image",
        ),
        (lambda c: c.run(NAME), PilotState.RUNNING, "Running"),
        (lambda c: c.pod(NAME, "Unknown", reason="NodeLost"), PilotState.RUNNING, "NodeLost"),
        (
            lambda c: c.pod(NAME, "Failed", reason="Evicted"),
            PilotState.RUNNING,
            "Evicted",
        ),  # the Job's word counts
        (lambda c: c.end(NAME, "Complete"), PilotState.ENDED, "Complete"),
    ],
)
def test_states_in_the_words_of_kubernetes(
    prepare: Any, state: PilotState, reason: str, backend: KubernetesBackend, cluster: Kubernetes
) -> None:
    backend.submit(order())
    prepare(cluster)
    found = the_one(backend)
    assert (found.state, found.reason, found.revoked) == (state, reason, False)


def test_an_end_that_the_cluster_wanted_is_told_from_a_failure(
    backend: KubernetesBackend, cluster: Kubernetes
) -> None:
    backend.submit(order())
    disrupted = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "PreemptionByScheduler",
        "message": "preempting to accommodate a higher priority pod",
    }
    cases: list[tuple[str, str, dict[str, Any], bool, str]] = [
        ("DeadlineExceeded", "Job was active longer", {}, True, "DeadlineExceeded: Job was active longer"),
        (
            "PodFailurePolicy",
            "Pod x has condition",
            {"conditions": [disrupted]},
            True,
            "PreemptionByScheduler",
        ),
        (
            "BackoffLimitExceeded",
            "Job has reached",
            {"containerStatuses": [{"state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}]},
            False,
            "OOMKilled, exit code 137",
        ),
    ]
    for reason, message, pod, revoked, said in cases:
        cluster.end(NAME, "Failed", reason, message, **pod)
        found = the_one(backend)
        assert (found.state, found.revoked) == (PilotState.ENDED, revoked)
        assert said in found.reason
    cluster.end(NAME, "Failed", "PodFailurePolicy")
    cluster.job(NAME)["status"] = {"active": 1}
    cluster.pod(NAME, "Running", conditions=[disrupted])
    found = the_one(backend)
    assert (found.state, found.revoked) == (PilotState.RUNNING, True), (
        "it goes, and says why while it is there"
    )
    assert found.reason.startswith("PreemptionByScheduler: preempting")
    cluster.end(NAME, "Failed", "PodFailurePolicy")
    cluster.objects.pop(("Pod", f"{NAME}-x7k2p"))  # a pod that was deleted is gone; the Job's reason stays
    assert the_one(backend).state is PilotState.ENDED


@pytest.mark.slow
def test_it_has_not_ended_while_its_pod_may_run(backend: KubernetesBackend, cluster: Kubernetes) -> None:
    backend.submit(order())
    cluster.end(NAME, "Failed", "DeadlineExceeded")
    cluster.job(NAME)["status"]["terminating"] = 1
    assert the_one(backend).state is PilotState.RUNNING
    cluster.run(NAME)
    backend.cancel(NAME)
    found = the_one(backend)
    assert (found.state, found.revoked) == (PilotState.RUNNING, True)
    cluster.objects.pop(("Job", NAME))  # as `kubectl delete job` does at once
    found = the_one(backend)
    assert (found.state, found.reason, found.revoked) == (PilotState.RUNNING, "its Job was deleted", True)
    cluster.objects.clear()
    assert backend.list() == []


def test_kueue_may_stop_and_start_it(backend: KubernetesBackend, cluster: Kubernetes) -> None:
    backend.submit(order())
    cluster.run(NAME)
    cluster.job(NAME)["spec"]["suspend"] = True
    assert the_one(backend).state is PilotState.RUNNING  # its pod is still there
    old = cluster.objects.pop(("Pod", f"{NAME}-x7k2p"))
    assert the_one(backend).state is PilotState.PENDING
    cluster.job(NAME)["spec"]["suspend"] = False
    cluster.pod(NAME)
    old["metadata"] |= {"deletionTimestamp": "2026-11-27T12:00:00Z"}
    cluster.objects["Pod", "older"] = old
    assert the_one(backend).state is PilotState.PENDING


def test_the_time_counts_from_the_jobs_start(backend: KubernetesBackend, cluster: Kubernetes) -> None:
    backend.submit(order(limit=7200))
    assert the_one(backend).ends_at is None
    cluster.run(NAME)
    assert the_one(backend).ends_at == datetime(2026, 11, 27, 14, 0, 10, tzinfo=UTC)


@pytest.mark.slow
def test_other_pools_and_other_jobs_are_not_listed(
    section: KubernetesSection, backend: KubernetesBackend, cluster: Kubernetes
) -> None:
    backend.submit(order())
    assert KubernetesBackend("cpu", section).list() == []


def test_no_secret_stays_without_its_job(backend: KubernetesBackend, cluster: Kubernetes) -> None:
    cluster.quota = True
    with pytest.raises(PoolError, match="exceeded quota"):
        backend.submit(order())
    assert cluster.objects == {}
    cluster.quota = False
    backend.submit(order())
    cluster.quota = True
    with pytest.raises(PoolError, match="exceeded quota"):
        backend.submit(order())
    assert ("Secret", NAME) in cluster.objects  # an order before this one has made the Job
    backend.cancel(NAME)
    assert [kind for kind, _ in cluster.objects] == ["Job"]


def test_a_cancelled_pilot_may_be_gone_already(backend: KubernetesBackend, cluster: Kubernetes) -> None:
    backend.cancel(NAME)
    cluster.replies = [(410, {"message": "Gone"})]
    backend.cancel(NAME)
    cluster.replies = [(409, {"message": "the object has been modified"})]
    with pytest.raises(PoolError, match="409, the object has been modified"):
        backend.cancel(NAME)


@pytest.mark.slow
def test_a_waiting_job_brings_a_node_from_the_cluster_and_survives_its_end(
    service: ServiceDriver, section: KubernetesSection, cluster: Kubernetes
) -> None:
    pool = KubernetesPool.model_validate(
        {"name": "gpu", "kind": "kubernetes", "max": 1, "shape": {}, "data_dir": "/x", "kubernetes": section}
    )
    turns = PoolTurn(Pools(service.database, service.settings, "first", [pool], {}, REDIS_URL), pool)

    def turn() -> None:
        service.scheduler.turn()
        turns.turn()
        service.scheduler.turn()

    turn()
    job_id = service.queued(resources={"node_labels": {"pool": "gpu"}})
    turn()
    (name,) = [name for kind, name in cluster.objects if kind == "Job"]
    turn()
    assert service.job(job_id).phase == "pool gpu is starting a node (Kubernetes: no pod yet)"
    cluster.run(name)
    turn()
    client = service.client(cluster.objects["Secret", name]["stringData"]["POWERMEAN_NODE_TOKEN"])
    report = {"hostname": "c", "instance": name, "cpu_slots": 1, "engines": ["transformers"], "version": "0"}
    assert client.put(f"/v1/nodes/{name}", json=report | {"labels": {"pool": "gpu"}}).status_code == 200
    turn()
    service.claim(f"{job_id}.1")
    cluster.end(name, "Failed", "PodFailurePolicy", "Pod has condition DisruptionTarget")
    turn()
    assert ("Secret", name) not in cluster.objects
    job = service.job(job_id)
    assert job.state == "queued"
    (attempt,) = job.attempts
    assert attempt.error is not None
    assert f"pool gpu: Kubernetes's {name} ended: PodFailurePolicy" in attempt.error.message
    with service.database.read() as session:
        assert session.get_one(models.Job, job_id).restarts == 0


def test_the_example_is_a_pool_that_kubernetes_takes(section: KubernetesSection, cluster: Kubernetes) -> None:
    (pool,) = read_pools_file(Path(__file__).parents[3] / "deploy/pools-kubernetes.yaml").pools
    assert isinstance(pool, KubernetesPool)
    own = {name: getattr(section, name) for name in ("api_url", "namespace", "token_file")}
    KubernetesBackend(pool.name, pool.kubernetes.model_copy(update=own)).submit(order(gpus=pool.shape.gpus))
    mounts = cluster.job(NAME)["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert any(pool.data_dir == mount["mountPath"] for mount in mounts)


def test_a_pool_knows_its_backend() -> None:
    pool = {
        "name": "gpu",
        "kind": "kubernetes",
        "shape": {"gpus": 1},
        "max": 2,
        "data_dir": "/scratch",
        "kubernetes": {"template": TEMPLATE},
    }
    backend = KubernetesPool.model_validate(pool).backend
    assert (backend.pool, backend.section.stop_s) == ("gpu", 30)

"""The Kubernetes pool against a server that answers as the API server does; no cluster ran it."""

import json
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from powermean.contracts.pools import Shape
from server.db import models
from server.pools.backend import PilotOrder, PilotState, PoolError, Seen
from server.pools.kubernetes import KubernetesBackend, KubernetesPool, KubernetesSection
from server.pools.pools_file import read_pools_file
from server.pools.turn import Pools, PoolTurn
from server.settings import Settings
from tests.support.fake_kubernetes import TOKEN, Kubernetes
from tests.support.service_driver import ServiceDriver

NAME = "gpu-0a1b2c3d"
NODE_TOKEN, REDIS_URL = "pmn_very-secret", "redis://:hidden@redis:6379/0"
TEMPLATE: dict[str, Any] = {
    "metadata": {"labels": {"team": "nlp"}},
    "spec": {
        "containers": [
            {
                "name": "worker",
                "image": "powermean-worker:cuda",
                "env": [{"name": "HF_HOME", "value": "/data/hub"}],
                "resources": {"limits": {"memory": "64Gi"}},
                "volumeMounts": [{"name": "shared", "mountPath": "/data"}],
            }
        ],
        "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": "pm-shared"}}],
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    },
}


def order(token: str = NODE_TOKEN, gpus: int = 2, limit: int | None = 7200) -> PilotOrder:
    return PilotOrder(
        pilot_id=NAME,
        node_id=NAME,
        environment={"POWERMEAN_SERVER_URL": "http://server:8700", "POWERMEAN_NODE_ID": NAME},
        secrets={"POWERMEAN_NODE_TOKEN": token, "POWERMEAN_REDIS_URL": REDIS_URL},
        shape=Shape(gpus=gpus),
        time_limit_s=limit,
    )


@pytest.fixture
def cluster() -> Iterator[Kubernetes]:
    made = Kubernetes()
    yield made
    made.stop()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """The only server leads, however slow the machine is."""
    return settings.model_copy(update={"leader_lease_s": 600.0})


@pytest.fixture
def section(cluster: Kubernetes, tmp_path: Path) -> KubernetesSection:
    (tmp_path / "token").write_text(TOKEN + "\n")
    return KubernetesSection(
        template=TEMPLATE,
        namespace="team",
        queue="research",
        api_url=cluster.url,
        token_file=tmp_path / "token",
        timeout_s=5,
    )


@pytest.fixture
def backend(section: KubernetesSection) -> KubernetesBackend:
    return KubernetesBackend("gpu", section)


def the_one(backend: KubernetesBackend) -> Seen:
    (found,) = backend.list()
    assert (found.pilot_id, found.external_id) == (NAME, NAME)
    return found


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


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, {"message": "Unauthorized"}, r"401, Unauthorized; the token in .*token is not valid there"),
        (
            403,
            {"message": 'jobs.batch is forbidden: User "x" cannot list'},
            "cannot list.*Role of the Helm chart",
        ),
        (410, {"message": "The provided continue parameter is too old"}, "410, The provided continue"),
        (429, {"message": "too many requests"}, "429, too many requests"),
        (503, b"<html>upstream</html>", "503, <html>upstream"),
        (302, b"", "302, nothing more"),
        (500, [], r"500, \[\]"),
        (200, b"not json", "answered no JobList"),
        (200, {}, "answered no JobList: items: Field required"),
        (200, {"items": [{"metadata": {}}]}, "answered no JobList: items.0.metadata.name"),
        (
            200,
            {"items": [{"metadata": {"name": "a", "uid": "b"}, "spec": {}, "status": {"startTime": "soon"}}]},
            "items.0.status.startTime",
        ),
        (200, {"items": [], "metadata": {"continue": "abc"}}, "only a part"),
    ],
)
def test_an_answer_that_is_of_no_use_is_a_named_error(
    status: int, body: Any, said: str, backend: KubernetesBackend, cluster: Kubernetes
) -> None:
    cluster.replies = [(status, body)]
    with pytest.raises(PoolError, match=said):
        backend.list()


def test_a_wrong_manifest_is_refused_in_the_servers_words(
    section: KubernetesSection, cluster: Kubernetes
) -> None:
    wrong = {"spec": {"containers": [{"image": "x", "volumeMount": []}]}}
    with pytest.raises(PoolError, match=r"422, .*volumeMount"):
        KubernetesBackend("gpu", section.model_copy(update={"template": wrong})).submit(order())


def test_every_wait_is_bounded(section: KubernetesSection, cluster: Kubernetes) -> None:
    backend = KubernetesBackend("gpu", section.model_copy(update={"timeout_s": 0.2}))
    cluster.replies = [None]
    with pytest.raises(PoolError, match=r"did not answer within 0\.2 s"):
        backend.list()
    cluster.dribble_s = 0.05  # each byte comes in time
    with pytest.raises(PoolError, match=r"did not answer within 0\.2 s"):
        backend.list()


def test_what_is_missing_to_reach_the_api_server_is_named(
    section: KubernetesSection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(said: str, **changed: Any) -> None:
        with pytest.raises(PoolError, match=said):
            KubernetesBackend("gpu", section.model_copy(update=changed)).list()

    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    fails("set kubernetes.api_url", api_url=None)
    fails("serviceaccount/namespace: No such file or directory; or set kubernetes.namespace", namespace=None)
    fails("nothing: No such file or directory", token_file=tmp_path / "nothing")
    fails("nothing: no certificates", api_url="https://127.0.0.1:1", ca_file=tmp_path / "nothing")
    fails("token: no certificates", api_url="https://127.0.0.1:1", ca_file=section.token_file)
    fails(r"Kubernetes at http://127\.0\.0\.1:1: ", api_url="http://127.0.0.1:1")
    # A server that the file does not vouch for: any certificate of an authority that signed nothing here.
    pem = ssl.DER_cert_to_PEM_cert(ssl.create_default_context().get_ca_certs(binary_form=True)[0])
    (tmp_path / "ca.crt").write_text(pem)
    fails(
        "Kubernetes at https://",
        api_url=str(section.api_url).replace("http:", "https:"),
        ca_file=tmp_path / "ca.crt",
    )
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    fails(r"Kubernetes at https://\[::1\]:1", api_url=None, ca_file=tmp_path / "ca.crt", timeout_s=0.2)


@pytest.mark.parametrize("token", ["se\ncret", "se cret", "sécret", ""])
def test_a_token_that_is_none_is_not_quoted(token: str, section: KubernetesSection) -> None:
    section.token_file.write_text(token)
    with pytest.raises(PoolError, match=r"token: holds no bearer token") as caught:
        KubernetesBackend("gpu", section).list()
    assert not token or token not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"template": {}}, "image"),
        ({"template": {"spec": {"containers": [{"image": ""}]}}}, "image"),
        ({"template": {"spec": {"containers": {}}}}, "image"),
        ({"template": TEMPLATE | {"metadata": None}}, "is no PodTemplateSpec"),
        ({"template": {"spec": TEMPLATE["spec"] | {"volumes": None}}}, "is no PodTemplateSpec"),
        ({"template": {"spec": {"containers": [{"image": "x", "env": None}]}}}, "is no PodTemplateSpec"),
        (
            {"template": {"spec": {"containers": [{"image": "x", "resources": None}]}}},
            "is no PodTemplateSpec",
        ),
        ({"api_url": "http://10.0.0.1"}, "must start with https://"),
        ({"namespace": "Team"}, "pattern"),
        ({"queues": "x"}, "Extra inputs"),
    ],
)
def test_a_wrong_section_is_named(wrong: dict[str, Any], said: str) -> None:
    section = {"template": TEMPLATE} | wrong
    pool = {
        "name": "gpu",
        "kind": "kubernetes",
        "shape": {"gpus": 1},
        "max": 2,
        "data_dir": "/x",
        "kubernetes": section,
    }
    with pytest.raises(ValidationError, match=said):
        KubernetesPool.model_validate(pool)


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

"""The Helm chart, rendered by Helm and held to Kubernetes' published schemas and to the code.

No cluster ran it.
"""

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from pydantic_settings import BaseSettings

from powermean.contracts.pools import Shape
from powermean.setting_files import SUFFIX
from server.pools.backend import PilotOrder
from server.pools.kubernetes import KubernetesBackend, KubernetesPool
from server.pools.pools_file import read_pools_file
from server.settings import Settings
from tests.support.fake_kubernetes import TOKEN, Kubernetes
from tests.support.helm import CHART, find_helm, render, run
from tools import make_secrets
from worker.settings import NodeSettings

pytestmark = pytest.mark.slow

DEPLOY = CHART.parents[1]
OLDEST, NEWEST = "1.29", "1.37"
POOL = {
    "name": "gpu",
    "kind": "kubernetes",
    "max": 4,
    "shape": {"gpus": 8},
    "data_dir": "/scratch",
    "kubernetes": {"template": {"spec": {"containers": [{"image": "powermean-worker:0.1.0-cuda"}]}}},
}
EVERYTHING: dict[str, Any] = {
    "image": {"pullSecrets": ["registry"]},
    "ingress": {"enabled": True, "className": "nginx"},
    "pools": {"pools": [POOL]},
    "server": {
        "settings": {"POWERMEAN_OIDC_ISSUER": "https://id.example.org", "POWERMEAN_PORT": "8700"},
        "secretSettings": {"POWERMEAN_OIDC_CLIENT_SECRET": "oidc_client_secret"},
    },
    "workers": {"runtimeClassName": "nvidia", "settings": {"POWERMEAN_LABELS": "zone=a"}},
    "volumes": {"shared": {"storageClass": "nfs"}},
    "networkPolicy": {"serverFrom": [{"namespaceSelector": {"matchLabels": {"name": "ingress"}}}]},
}
LEAST: dict[str, Any] = {
    "postgres": {"bundled": False},
    "redis": {"bundled": False},
    "workers": {"gpus": 0, "nodeSelector": {}},
    "server": {"replicas": 1},
    "volumes": {"shared": {"existingClaim": "there"}, "keys": {"existingClaim": "too"}},
    "networkPolicy": {"enabled": False},
    "artefactsUrl": "s3://bucket/powermean",
}
SETTINGS: dict[str, type[BaseSettings]] = {"server": Settings, "migrate": Settings, "worker": NodeSettings}


@pytest.fixture(scope="module")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return find_helm(tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="module")
def everything(helm: Path) -> list[dict[str, Any]]:
    return render(helm, EVERYTHING)


@pytest.fixture(scope="module")
def least(helm: Path) -> list[dict[str, Any]]:
    return render(helm, LEAST)


def of(kind: str, name: str, documents: list[dict[str, Any]]) -> dict[str, Any]:
    whole = (kind, f"pm-{name}".rstrip("-"))
    (found,) = [one for one in documents if (one["kind"], one["metadata"]["name"]) == whole]
    return found


def pods(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one["spec"]["template"] for one in documents if "template" in one.get("spec", {})]


def containers(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [container for pod in pods(documents) for container in pod["spec"]["containers"]]


def claims(pod: dict[str, Any]) -> set[str]:
    found = [volume.get("persistentVolumeClaim") for volume in pod["spec"]["volumes"]]
    return {claim["claimName"] for claim in found if claim}


def test_helm_finds_nothing_to_criticise(helm: Path) -> None:
    done = run(helm, "lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_manifests_follow_the_published_schemas(
    version: str, helm: Path, everything: list[dict[str, Any]], least: list[dict[str, Any]]
) -> None:
    upgrade = render(helm, {}, ["--is-upgrade"])
    kinds = {document["kind"] for document in everything}
    assert kinds >= {"Deployment", "DaemonSet", "StatefulSet", "Job", "Ingress", "NetworkPolicy", "Role"}
    for document in everything + least + upgrade:
        kubernetes_validate.validate(document, version, strict=True)


def test_the_chart_asks_for_what_was_validated() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["kubeVersion"] == f">={OLDEST}.0-0"
    version = tomllib.loads((CHART.parents[2] / "pyproject.toml").read_text())["project"]["version"]
    assert chart["appVersion"] == version
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values["image"]["server"].endswith(f":{version}")


def test_every_variable_is_a_setting_of_the_program_that_reads_it(
    everything: list[dict[str, Any]], least: list[dict[str, Any]]
) -> None:
    seen = set()
    for container in containers(everything + least):
        if (settings := SETTINGS.get(container["name"])) is None:
            continue
        names = [one["name"] for one in container["env"]]
        assert len(names) == len(set(names))
        for name in names:
            plain = name.removeprefix("POWERMEAN_")
            fields = settings.model_fields
            assert plain.lower() in fields or plain.removesuffix(SUFFIX).lower() in fields, name
        seen.add(container["name"])
    assert seen == set(SETTINGS)


def test_secrets_come_as_files_that_make_secrets_writes(
    everything: list[dict[str, Any]], tmp_path: Path
) -> None:
    make_secrets.main([str(tmp_path / "secrets")])
    made = {file.name for file in (tmp_path / "secrets").iterdir()}
    for pod in pods(everything):
        given = {
            item["path"]
            for volume in pod["spec"]["volumes"]
            for item in volume.get("secret", {}).get("items", [])
        }
        assert given <= made
        for container in pod["spec"]["containers"]:
            for one in container.get("env", []):
                secret = re.search(r"TOKEN$|SECRET$|ADMIN_KEY$|PASSWORD$|(DATABASE|REDIS)_URL$", one["name"])
                assert not secret, one["name"]
                if one.get("value", "").startswith("/run/secrets/"):
                    assert Path(one["value"]).name in given


def test_workers_have_the_public_key_and_no_key_of_the_server(everything: list[dict[str, Any]]) -> None:
    server = of("Deployment", "server", everything)["spec"]["template"]
    worker = of("DaemonSet", "worker", everything)["spec"]["template"]
    assert claims(server) == {"pm-shared", "pm-keys"}
    assert claims(worker) == {"pm-shared"}

    def variables(pod: dict[str, Any]) -> dict[str, str]:
        return {one["name"]: one.get("value", "") for one in pod["spec"]["containers"][0]["env"]}

    key = "POWERMEAN_ATTEMPT_PUBLIC_KEY"
    assert variables(server)[key] == variables(worker)[key]
    assert not variables(server)[key].startswith(variables(server)["POWERMEAN_SECRETS_DIR"])
    for shared in ("POWERMEAN_REDIS_URL_FILE", "POWERMEAN_ARTEFACTS_URL"):
        assert variables(server)[shared] == variables(worker)[shared]


def test_every_pod_is_unprivileged_and_bounded(everything: list[dict[str, Any]]) -> None:
    for pod in pods(everything):
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        allowed = pod["spec"].get("serviceAccountName") == "pm-server"
        assert pod["spec"]["automountServiceAccountToken"] is allowed
    for container in containers(everything):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        limits = container["resources"]["limits"]
        assert "memory" in limits or "nvidia.com/gpu" in limits
        assert container["name"] == "migrate" or {"readinessProbe", "livenessProbe"} <= container.keys()


def test_pools_are_read_and_allowed_what_they_ask_for(
    everything: list[dict[str, Any]], tmp_path: Path
) -> None:
    file = tmp_path / "pools.yaml"
    file.write_text(of("ConfigMap", "pools", everything)["data"]["pools.yaml"])
    declared = read_pools_file(file)
    (pool,) = declared.pools
    assert (pool.name, declared.server_url) == ("gpu", "http://pm-server:8700")
    rules = {rule["resources"][0]: set(rule["verbs"]) for rule in of("Role", "pools", everything)["rules"]}
    cluster = Kubernetes()  # what is asked of it is what the Role allows
    assert isinstance(pool, KubernetesPool)
    (tmp_path / "token").write_text(TOKEN)
    own = {"api_url": cluster.url, "namespace": "team", "token_file": tmp_path / "token"}
    backend = KubernetesBackend(pool.name, pool.kubernetes.model_copy(update=own))
    order = PilotOrder("gpu-0a1b2c3d", "gpu-0a1b2c3d", {}, {"POWERMEAN_NODE_TOKEN": "x"}, Shape(gpus=8), None)
    for _ in range(2):
        backend.submit(order)
    backend.list()
    backend.cancel(order.pilot_id)
    cluster.stop()
    asked: dict[str, set[str]] = {}
    for method, path in cluster.requests:
        resource, _, name = path.partition("?")[0].partition("/namespaces/team/")[2].partition("/")
        verb = {"POST": "create", "PUT": "update", "DELETE": "delete", "GET": "get" if name else "list"}[
            method
        ]
        asked.setdefault(resource, set()).add(verb)
    assert asked == rules


def test_probes_ask_what_is_there(everything: list[dict[str, Any]]) -> None:
    routes = (CHART.parents[2] / "server/routes/operations.py").read_text()
    (server,) = [one for one in containers(everything) if one["name"] == "server"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        ask = server[probe]["httpGet"]
        assert f'"{ask["path"]}"' in routes
        assert {"name": "Host", "value": "localhost"} in ask["httpHeaders"]  # else the server refuses it
    (worker,) = [one for one in containers(everything) if one["name"] == "worker"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        python, flag, module, *arguments = worker[probe]["exec"]["command"]
        assert (python, flag) == ("python", "-m")
        assert importlib.util.find_spec(module)
        assert arguments in ([], ["--alive"])


def test_services_and_policies_select_pods_and_ports_that_exist(everything: list[dict[str, Any]]) -> None:
    labels = [pod["metadata"]["labels"] for pod in pods(everything)]
    ports = {port["name"] for one in containers(everything) for port in one.get("ports", [])}
    for document in everything:
        spec = document.get("spec", {})
        if document["kind"] == "Service":
            assert any(spec["selector"].items() <= one.items() for one in labels)
            assert {port["targetPort"] for port in spec["ports"]} <= ports
        if document["kind"] == "NetworkPolicy":
            assert any(spec["podSelector"]["matchLabels"].items() <= one.items() for one in labels)
            for rule in spec["ingress"]:
                assert {port["port"] for port in rule.get("ports", [])} <= ports
    policy = of("NetworkPolicy", "postgres", everything)["spec"]["ingress"][0]["from"]
    parts = {peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for peer in policy}
    assert parts == {"server", "migrate"}


def test_the_database_is_migrated_before_anything_new_starts(
    helm: Path, everything: list[dict[str, Any]], least: list[dict[str, Any]]
) -> None:
    def hook(documents: list[dict[str, Any]], revision: int = 1) -> str | None:
        job = of("Job", f"migrate-{revision}", documents)
        return job["metadata"].get("annotations", {}).get("helm.sh/hook")

    before = "pre-install,pre-upgrade"
    assert hook(least) == before
    assert hook(render(helm, {}, ["--is-upgrade"])) == before
    assert (
        hook(everything) is None
    )  # the bundled Postgres is installed with it, and a hook would wait for ever


def test_what_is_not_wanted_is_not_there(least: list[dict[str, Any]]) -> None:
    kinds = {document["kind"] for document in least}
    assert kinds == {"Deployment", "DaemonSet", "Job", "Service", "ServiceAccount"}
    worker = of("DaemonSet", "worker", least)["spec"]["template"]["spec"]["containers"][0]
    assert "nvidia.com/gpu" not in worker["resources"].get("limits", {})
    assert claims(of("Deployment", "server", least)["spec"]["template"]) == {"there", "too"}


def test_models_and_keys_outlive_the_release(everything: list[dict[str, Any]]) -> None:
    kept = [one for one in everything if one["kind"] == "PersistentVolumeClaim"]
    assert {one["metadata"]["name"] for one in kept} == {"pm-shared", "pm-keys"}
    for one in kept:
        assert one["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_the_values_of_the_docs_are_good_ones(helm: Path) -> None:
    text = (CHART.parents[2] / "docs/production.md").read_text()
    values = yaml.safe_load(text.partition("```yaml\n# values.yaml\n")[2].partition("```")[0])
    documents = render(
        helm, values | {"pools": yaml.safe_load((DEPLOY / "pools-kubernetes.yaml").read_text())}
    )
    assert of("Ingress", "", documents)["spec"]["rules"][0]["host"] == "powermean.example.org"


def test_settings_of_the_operator_win(helm: Path) -> None:
    documents = render(helm, {"server": {"settings": {"POWERMEAN_HOST": "::"}}})
    (server,) = [one for one in containers(documents) if one["name"] == "server"]
    assert [one["value"] for one in server["env"] if one["name"] == "POWERMEAN_HOST"] == ["::"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("replicas=2", "'replicas' not allowed"),
        ("server.replicas=many", "got string, want integer"),
        ("server.settings.DATABASE_URL=x", "DATABASE_URL"),
        ("volumes.keys.accessMode=Anything", "accessMode"),
    ],
)
def test_a_wrong_value_is_named(values: str, said: str, helm: Path) -> None:
    done = run(helm, "template", "pm", str(CHART), "--set", values)
    assert done.returncode != 0
    assert said in done.stderr

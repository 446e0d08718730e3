"""Named errors: a wrong section, no way to the API server, an answer of it that is of no use."""

import ssl
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from server.pools.backend import PoolError
from server.pools.kubernetes import KubernetesBackend, KubernetesPool, KubernetesSection
from tests.support.fake_kubernetes import Kubernetes
from tests.support.kubernetes_pool import TEMPLATE, order


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

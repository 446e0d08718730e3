from collections.abc import Iterator
from pathlib import Path

import pytest

from server.pools.kubernetes import KubernetesBackend, KubernetesSection
from tests.support.elastic import Elastic, elastic_of
from tests.support.fake_kubernetes import TOKEN, Kubernetes
from tests.support.kubernetes_pool import TEMPLATE
from tests.support.service_driver import ServiceDriver


@pytest.fixture
def elastic(service: ServiceDriver) -> Elastic:
    return elastic_of(service)


@pytest.fixture
def cluster() -> Iterator[Kubernetes]:
    made = Kubernetes()
    yield made
    made.stop()


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

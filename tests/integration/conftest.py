"""One tiny model for all runs of the whole path."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from powermean.processes import end_all
from tests.support.embedded_service import Service
from tests.support.tiny_model import shared_model_root


@pytest.fixture(scope="session")
def model_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model root with the model `tiny`."""
    return shared_model_root(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, model_root: Path) -> Iterator[Service]:
    """The service, up for a module's tests; afterwards nothing of it may be left."""
    service = Service(tmp_path_factory.mktemp("service") / "home", model_root)
    service.start()
    yield service
    assert service.interrupt() == 130
    left = service.all_pids()
    end_all(service.all_pids, grace_s=0)
    assert left == set()

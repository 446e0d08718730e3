"""A tiny model to train, built once a session, and a place for attempts at it."""

from pathlib import Path

import pytest

from tests.support.attempts import Stage
from tests.support.tiny_model import shared_model_root


@pytest.fixture(scope="session")
def model_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model root that holds the folder `tiny`."""
    return shared_model_root(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def tiny_folder(model_root: Path) -> Path:
    return model_root / "tiny"


@pytest.fixture
def stage(tmp_path: Path, model_root: Path) -> Stage:
    """Where a test's attempts run."""
    return Stage(tmp_path, model_root)

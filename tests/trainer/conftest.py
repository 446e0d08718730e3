"""A tiny model to train, built once a session."""

from pathlib import Path

import pytest

from tests.support.tiny_model import shared_model_root


@pytest.fixture(scope="session")
def model_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model root that holds the folder `tiny`."""
    return shared_model_root(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def tiny_folder(model_root: Path) -> Path:
    return model_root / "tiny"

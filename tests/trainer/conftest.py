"""A tiny model to train, built once a session."""

from pathlib import Path

import pytest

from tests.support.tiny_model import build_tiny_model


@pytest.fixture(scope="session")
def model_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model root that holds the folder `tiny`."""
    root = tmp_path_factory.mktemp("models")
    build_tiny_model(root / "tiny")
    return root


@pytest.fixture(scope="session")
def tiny_folder(model_root: Path) -> Path:
    return model_root / "tiny"

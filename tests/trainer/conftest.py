"""A tiny model to train, built once a session."""

import fcntl
import os
from pathlib import Path

import pytest

from tests.support.tiny_model import build_tiny_model


@pytest.fixture(scope="session")
def model_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model root that holds the folder `tiny`; the workers of a session share it."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    root = base / "tiny-models"
    root.mkdir(exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "tiny").exists():
            build_tiny_model(root / "part").rename(root / "tiny")
    return root


@pytest.fixture(scope="session")
def tiny_folder(model_root: Path) -> Path:
    return model_root / "tiny"

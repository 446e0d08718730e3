from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from powermean.artefacts import ArtefactStore


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ArtefactStore]:
    """The same laws for a folder and for a file system that is none."""
    if request.param == "file":
        yield ArtefactStore(f"file://{tmp_path}/store")
        return
    yield ArtefactStore("memory://store")
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def folder(tmp_path: Path) -> ArtefactStore:
    return ArtefactStore(f"file://{tmp_path}/store")

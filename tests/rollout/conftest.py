"""Engines around a tiny random model."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from powermean.artefacts import ArtefactStore
from powermean.contracts.rollout import PublishRequest, WeightFile
from powermean.tokens import KeyPair, ensure_key_pair
from rollout.engine import Fence
from rollout.transformers.engine import TransformersEngine, load_engine
from rollout.weights import WeightSource
from tests.support.rollout_service import Service, StartService
from tests.support.tiny_engines import JOB, MakeEngine, Publish, save_tiny_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def store(tmp_path: Path) -> ArtefactStore:
    return ArtefactStore((tmp_path / "artefacts").as_uri())


@pytest.fixture
def shared_memory(tmp_path: Path) -> Path:
    folder = tmp_path / "shm"
    folder.mkdir()
    return folder


@pytest.fixture
def make_engine(tiny_folder: Path, store: ArtefactStore, shared_memory: Path) -> MakeEngine:
    def make(
        folder: Path = tiny_folder, max_batch_tokens: int = 16384, attempt: int = 1
    ) -> TransformersEngine:
        return load_engine(
            folder,
            device="cpu",
            dtype=torch.float32,
            fence=Fence(JOB, attempt, 0),
            weights=WeightSource(store, shared_memory),
            max_model_len=None,
            max_batch_tokens=max_batch_tokens,
        )

    return make


@pytest.fixture
def engine(make_engine: MakeEngine) -> TransformersEngine:
    return make_engine()


@pytest.fixture
def stored_weights(store: ArtefactStore, tmp_path: Path) -> Publish:
    """Puts tensors into the artefact store; the request that publishes them."""

    def put(tensors: dict[str, torch.Tensor], version: int = 1, attempt: int = 1) -> PublishRequest:
        path = tmp_path / f"{version}.safetensors"
        save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path)
        ref = store.put_file(f"jobs/{JOB}/weights/{version}", path)
        file = WeightFile(uri=f"store:{ref.key}", sha256=ref.sha256, size=ref.size)
        return PublishRequest(job_id=JOB, attempt=attempt, version=version, method="store", files=(file,))

    return put


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return ensure_key_pair(tmp_path_factory.mktemp("secrets"))


@pytest.fixture(scope="module")
def start_service(
    tiny_folder: Path, keys: KeyPair, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartService]:
    started: list[Service] = []

    def start(model: Path = tiny_folder, **options: Any) -> Service:
        folder = tmp_path_factory.mktemp("service")
        started.append(Service(folder, model, keys, **options))
        return started[-1]

    yield start
    for service in started:
        service.stop()


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine fetches lands under the test's own folder."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setitem(os.environ, "TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)

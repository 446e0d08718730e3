"""An engine that can't be loaded says why, in one line."""

from pathlib import Path

import pytest
import torch

from rollout.engine import EngineError, Fence
from rollout.transformers.engine import TransformersEngine, load_engine
from rollout.weights import WeightSource


def _load(folder: Path, device: str = "cpu", max_model_len: int | None = None) -> TransformersEngine:
    return load_engine(
        folder,
        device=device,
        dtype=torch.float32,
        fence=Fence("job-1", 1, 0),
        weights=WeightSource(None),
        max_model_len=max_model_len,
        max_batch_tokens=100,
    )


def test_the_context_is_the_models_unless_a_shorter_one_is_asked_for(tiny_folder: Path) -> None:
    assert _load(tiny_folder).state().max_model_len == 64
    assert _load(tiny_folder, max_model_len=32).state().max_model_len == 32
    with pytest.raises(EngineError, match="65 exceeds the model's context of 64"):
        _load(tiny_folder, max_model_len=65)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="can't be loaded") as error:
        _load(tmp_path)
    assert error.value.code == "unknown_model"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_named(tiny_folder: Path) -> None:
    with pytest.raises(EngineError, match="sees no CUDA device") as error:
        _load(tiny_folder, device="cuda")
    assert error.value.code == "cuda_unavailable"

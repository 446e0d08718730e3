"""Runs that train an adapter: they learn, resume bit for bit, and the engine serves what was trained."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from powermean.artefacts import ArtefactStore
from tests.support.attempts import Played, Stage
from tests.support.fake_engine import FakeAdapterEngine

TRAINING = {"prompts_per_step": 16, "minibatches": 2, "epochs": 2}
OPTIMIZER = {"learning_rate": 3e-3, "warmup_updates": 3}


def lora(**changes: object) -> dict[str, object]:
    return {"folder": "tiny", "lora": {"rank": 8, "alpha": 16} | changes}


def adapter(played: Played, folder: Path, target: Path) -> dict[str, torch.Tensor]:
    assert played.finish.result is not None, played.finish.error
    ref = played.finish.result.model.files["adapter/adapter_model.safetensors"]
    return load_file(ArtefactStore(f"file://{folder}/store").local_copy(ref, target / "adapter.safetensors"))


@pytest.mark.slow
def test_an_adapter_learns_and_a_resumed_run_ends_bit_identical(tmp_path: Path, model_root: Path) -> None:
    spec = {"model": lora(), "optimizer": OPTIMIZER, "training": TRAINING | {"steps": 6}}
    whole = Stage(tmp_path / "whole", model_root).play(**spec)
    result = whole.finish.result
    assert result is not None, whole.finish.error
    rewards = whole.series("reward")
    assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2 + 0.1
    assert max(whole.series("publish/logp_difference_max")) < 1e-4
    assert {"model.safetensors", "adapter/adapter_config.json"} <= set(result.model.files)

    stage = Stage(tmp_path / "broken", model_root)
    first = stage.play(1, order="checkpoint_and_exit", **spec)
    second = stage.play(2, resume=first.checkpoints[0], **spec)
    expected = adapter(whole, tmp_path / "whole", tmp_path)
    for name, weight in adapter(second, tmp_path / "broken", tmp_path).items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.slow
def test_an_engine_of_adapters_gets_nothing_else_and_has_one_before_the_first_evaluation(
    tmp_path: Path, model_root: Path
) -> None:
    spec = {"model": lora(), "optimizer": OPTIMIZER, "training": TRAINING | {"steps": 3}}
    engine = FakeAdapterEngine(model_root / "tiny", Path("/dev/shm"))
    first = Stage(tmp_path, model_root).play(1, order="checkpoint_and_exit", engine=engine, **spec)
    assert first.finish.outcome == "checkpointed", first.finish.error
    assert first.series("eval/reward")
    assert [request.version for request in engine.published] == [0, 1]
    assert max(first.series("publish/logp_difference_max")) < 1e-4

    engine = FakeAdapterEngine(model_root / "tiny", Path("/dev/shm"))
    again = Stage(tmp_path, model_root).play(2, resume=first.checkpoints[0], engine=engine, **spec)
    assert again.finish.outcome == "finished", again.finish.error
    assert [request.version for request in engine.published] == [1, 2, 3]
    for request in engine.published:
        assert request.adapter is not None
        assert (request.adapter.rank, request.adapter.alpha) == (8, 16)
        assert sum(file.size for file in request.files) < 200_000
    assert max(again.series("publish/logp_difference_max")) < 1e-4


@pytest.mark.slow
def test_without_an_adapter_a_job_is_refused_by_an_engine_of_adapters(
    tmp_path: Path, model_root: Path
) -> None:
    engine = FakeAdapterEngine(model_root / "tiny", Path("/dev/shm"))
    played = Stage(tmp_path, model_root).play(engine=engine, training=TRAINING | {"steps": 1})
    assert played.finish.error is not None
    assert played.finish.error.code == "adapters_only"
    assert played.finish.error.path == "model.lora"


@pytest.mark.slow
def test_with_dropout_pi_old_has_a_pass_of_its_own(tmp_path: Path, model_root: Path) -> None:
    """Dropout moves the ratios of the very first update; without it they are 1."""
    spread = {}
    for dropout in (0.0, 0.3):
        played = Stage(tmp_path / str(dropout), model_root).play(
            model=lora(dropout=dropout), optimizer=OPTIMIZER, training=TRAINING | {"steps": 2}
        )
        assert played.finish.outcome == "finished", played.finish.error
        spread[dropout] = played.metrics[2, 0, "ratio/max"] - played.metrics[2, 0, "ratio/min"]
        assert max(played.series("publish/logp_difference_max")) < 1e-4
    assert spread[0.0] < 1e-5
    assert spread[0.3] > 1e-3


def test_modules_that_the_model_lacks_fail_the_job(tmp_path: Path, model_root: Path) -> None:
    played = Stage(tmp_path, model_root).play(
        model=lora(target_modules=["c_attn"]), training=TRAINING | {"steps": 1}
    )
    assert played.finish.error is not None
    assert played.finish.error.code == "unknown_modules"
    assert played.finish.error.path == "model.lora.target_modules"

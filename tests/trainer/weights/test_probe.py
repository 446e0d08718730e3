"""A publish that did not arrive is found by its log-probs."""

from pathlib import Path

import pytest
import torch

from powermean.contracts.rollout import Sampling
from tests.support.fake_engine import FakeEngine
from trainer.failures import TrainingError
from trainer.policy.loading import load_policy
from trainer.weights.engine_pool import EnginePool
from trainer.weights.probe import check, probe

PROMPTS = [(9, 4, 10, 7), (12, 4, 13, 7)]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_equal_weights_agree_and_others_do_not(tiny_folder: Path, tmp_path: Path, temperature: float) -> None:
    policy = load_policy(
        tiny_folder, device=torch.device("cpu"), dtype=torch.float32, temperature=temperature
    )
    engine = FakeEngine(tiny_folder, tmp_path)
    sampling = Sampling(temperature=temperature, max_new_tokens=4, seed=1)
    assert probe(EnginePool([engine]), policy, PROMPTS, sampling, 0) < 1e-5
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[9] += 0.05
    difference = probe(EnginePool([engine]), policy, PROMPTS, sampling, 0)
    with pytest.raises(TrainingError) as caught:
        check(difference, 1e-3, torch.float32, version=4)
    assert caught.value.error.code == "publish_mismatch"
    assert "version 4" in caught.value.error.message


def test_nan_is_a_mismatch() -> None:
    with pytest.raises(TrainingError):
        check(float("nan"), 1e-3, torch.float32, version=1)


def test_bfloat16_has_the_tolerance_of_its_rounding() -> None:
    check(0.3, 1e-3, torch.bfloat16, version=1)
    with pytest.raises(TrainingError):
        check(0.6, 1e-3, torch.bfloat16, version=1)
    check(0.6, 1.0, torch.bfloat16, version=1)

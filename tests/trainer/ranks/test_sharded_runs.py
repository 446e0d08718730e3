"""Whole attempts with the model sharded: they report what one rank does, and go on under another number."""

import math
from pathlib import Path

import pytest

from tests.support import rank_jobs
from tests.support.attempts import Played, Stage
from tests.support.rank_crew import start

pytestmark = pytest.mark.slow

SPEC = {
    "training": {"steps": 2, "prompts_per_step": 4, "minibatches": 2, "epochs": 1},
    "evaluation": {"every": 0, "problems": 8},
    "checkpoints": {"every": 1},
    "algorithm": {"name": "grpo", "beta": 0.01},
}
OWN = ("seconds", "time/", "tokens_per_second")  # of each run


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["all weights", "adapter"])
def test_a_sharded_run_reports_what_one_rank_does_and_goes_on_under_one(
    lora: object, tmp_path: Path, model_root: Path
) -> None:
    model = {"folder": "tiny", "device": "cpu", "lora": lora}
    expected = Stage(tmp_path / "one", model_root).play(model=model, **SPEC)
    training = SPEC["training"] | {"parallel": "shard"}
    spec = SPEC | {"model": model, "training": training, "resources": {"cpu_ranks": 2}}
    ranks = start(2, rank_jobs.attempt, tmp_path / "two", model_root, spec)
    try:
        found, followed = (ranks.answer(rank) for rank in range(2))
        assert [ranks.exits(rank) for rank in range(2)] == [0, 0]
    finally:
        ranks.close()
    assert found.finish.error is None
    assert followed is True
    assert same(found, expected) == expected.metrics.keys()
    assert found.finish.result.model.files.keys() == expected.finish.result.model.files.keys()

    first = found.checkpoints[0]
    assert "model.2-of-2.safetensors" in first.manifest.files
    drawn = {first.manifest.files[f"random.{number}-of-2.safetensors"].sha256 for number in (1, 2)}
    assert len(drawn) == 2, "each rank has random numbers of its own"
    resumed = Stage(tmp_path / "two", model_root).play(number=2, resume=first, model=model, **SPEC)
    assert resumed.finish.error is None
    assert {step for step, _, _ in same(resumed, expected)} == {2}


def same(found: Played, expected: Played) -> set[tuple[int, int, str]]:
    """The keys of what was found, which is what was expected."""
    for key, value in found.metrics.items():
        if value is not None and not any(part in key[2] for part in OWN):
            assert math.isclose(value, expected.metrics[key], rel_tol=1e-3, abs_tol=1e-4), key
    return set(found.metrics)

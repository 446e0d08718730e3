"""Whole attempts on several ranks: what one rank reports."""

import math
from pathlib import Path

import pytest

from tests.support import rank_jobs
from tests.support.attempts import Stage
from tests.support.rank_crew import start

pytestmark = pytest.mark.slow

TRAINING = {"steps": 2, "prompts_per_step": 8, "minibatches": 2, "epochs": 2}
OWN = ("seconds", "time/", "tokens_per_second")  # of each run


def test_a_run_on_two_ranks_reports_what_one_does(tmp_path: Path, model_root: Path) -> None:
    expected = Stage(tmp_path / "one", model_root).play(training=TRAINING)
    spec = {"training": TRAINING, "resources": {"cpu_ranks": 2}}
    ranks = start(2, rank_jobs.attempt, tmp_path / "two", model_root, spec)
    try:
        found, followed = (ranks.answer(rank) for rank in range(2))
        assert [ranks.exits(rank) for rank in range(2)] == [0, 0]
    finally:
        ranks.close()
    assert followed is True
    assert found.finish.outcome == expected.finish.outcome == "finished"
    assert found.metrics.keys() == expected.metrics.keys()
    for key, value in expected.metrics.items():
        if value is not None and not any(part in key[2] for part in OWN):
            assert math.isclose(found.metrics[key], value, rel_tol=1e-3, abs_tol=1e-4), key

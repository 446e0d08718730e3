"""The main job on vLLM, as `make demo ENGINE=vllm` runs it. Minutes, so only where they were asked for."""

import importlib.util
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.e2e.test_demo import POWERMEAN, REPOSITORY, accuracies, environment, processes_of

ASKED = "POWERMEAN_LONG_TESTS"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.integration,
    pytest.mark.timeout(2700),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.skipif(
        os.environ.get(ASKED) != "1",
        reason=f"a whole run of SmolLM2 on vLLM takes minutes: {ASKED}=1 make test ENGINE=vllm runs it",
    ),
]


def test_the_main_job_learns_on_vllm_and_says_what_it_waits_for(tmp_path: Path) -> None:
    """Bounds as for the other engine, with more room: no two runs on vLLM are the same."""
    home = tmp_path / "home"
    done = subprocess.run(
        [POWERMEAN, "demo", "--engine", "vllm"],
        cwd=REPOSITORY,
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=2400,
    )
    print(done.stdout)  # seen where the test fails
    assert done.returncode == 0, done.stdout + done.stderr
    before, after = accuracies(done.stdout)
    assert before < 0.55
    assert after >= 0.6
    assert len(re.findall(r"^step +\d+/20 ", done.stdout, re.M)) == 20
    assert "waiting for the rollout engine, 15 s so far; vLLM takes 1 to 3 minutes" in done.stdout
    assert processes_of(home) == []

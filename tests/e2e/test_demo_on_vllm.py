"""The main job on vLLM, as `make demo ENGINE=vllm` runs it."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

from tests.e2e.test_demo import accuracies
from tests.support.demo import POWERMEAN, REPOSITORY, environment, processes_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.vllm,
    pytest.mark.integration,
    pytest.mark.timeout(2700),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]


def test_the_main_job_learns_on_vllm_and_leaves_no_process(tmp_path: Path) -> None:
    """No two runs on vLLM are the same, so what must be seen is the gain; its standard error is 0.07.

    Half of the steps are enough for that; test_demo.py runs all of them."""
    home = tmp_path / "home"
    done = subprocess.run(
        [POWERMEAN, "demo", "--engine", "vllm", "--steps", "10"],
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
    assert after >= before + 0.15
    assert len(re.findall(r"^step +\d+/10 ", done.stdout, re.M)) == 10
    assert processes_of(home) == []

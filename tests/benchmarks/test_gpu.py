"""benchmarks/gpu.py runs on a CPU in toy sizes, so that the script is in order when a GPU is there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_sections_run_in_tiny_form(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, SCRIPT, "--tiny", "--budget", "500", "--out", tmp_path],
        capture_output=True,
        text=True,
        timeout=550,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert json.loads(run.stdout.strip().splitlines()[-1]) == {"failed": []}
    assert "no time left" not in run.stdout
    assert "estimate 0." in run.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert {"laws", "nan", "objective", "learner", "loop", "variants", "trl", "long"} <= set(results)


@pytest.mark.slow
def test_an_unknown_section_is_named() -> None:
    run = subprocess.run(
        [sys.executable, SCRIPT, "--tiny", "--sections", "lawz"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "no section lawz" in run.stderr

"""benchmarks/calls.py counts, so that the script does not rot."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.slow
def test_it_counts_what_each_request_takes() -> None:
    few = "import calls; calls.REQUESTS = calls.WARM_UP = 2; calls.main()"
    run = subprocess.run(
        [sys.executable, "-c", few], cwd=FOLDER, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    rows = [line.split("|")[1:-1] for line in run.stdout.splitlines() if line.startswith("| ")][1:]
    assert [name.strip() for name, *_ in rows] == ["submit", "cancel", "a report of 140 numbers"]
    for _, calls, switches, statements in rows:
        assert 500 < float(calls) < 10_000
        assert float(switches) <= 1
        assert 4 < float(statements) < 12

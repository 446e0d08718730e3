"""benchmarks/service.py: its figures, and that a tiny run prints all of them."""

import subprocess
import sys
from pathlib import Path

import pytest
from service_rig import Figure, Timings, quantile

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "service.py"


def test_a_figure_says_whether_its_goal_is_reached() -> None:
    assert Figure("p99", 150.4, "ms", 150.0).cells() == ("p99 [ms]", "150.4", "<= 150", "MISSED")
    assert Figure("rate", 300.0, "1/s", 300.0, at_least=True).cells()[2:] == (">= 300", "reached")
    assert Figure("p50", 1.0, "ms").cells()[2:] == ("", "")


def test_the_99th_percentile_is_one_of_the_times() -> None:
    assert quantile(range(1, 101), 0.99) == 99
    assert quantile([1.0], 0.99) == 1.0
    timings = Timings([[0.1, 0.3], [0.2]], wall_s=0.5, refused=1)
    figures = [figure.value for figure in timings.figures("x", None, None)]
    assert figures == pytest.approx([4, 200, 300, 300, 1])


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.timeout(300)
def test_a_tiny_run_prints_every_section() -> None:
    command = [sys.executable, SCRIPT, "--tiny", "--databases", "sqlite"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for section in ("submit", "cancel", "queued", "planner", "ingest", "history", "growth", "list"):
        assert f"| {section} " in done.stdout


@pytest.mark.slow
def test_unknown_sections_are_named() -> None:
    command = [sys.executable, SCRIPT, "--sections", "submit,x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "x: choose from submit, cancel, queued" in done.stderr

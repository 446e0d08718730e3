"""benchmarks/placement.py in small: what is simulated obeys the planner, and the shares come out fair."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from placement_baselines import first_in_first_out
from placement_days import DAY, LOADS, simulate

from server.placement.plan import plan


@pytest.mark.slow
def test_a_saturated_day_is_used_better_than_by_first_in_first_out() -> None:
    ours = simulate(plan, LOADS[0], 10, DAY / 2, seed=1)
    fifo = simulate(first_in_first_out, LOADS[0], 10, DAY / 2, seed=1)
    assert ours.utilisation > fifo.utilisation + 0.05
    assert ours.lost_gpu_s < 0.02 * ours.used_gpu_s


def test_the_same_seed_gives_the_same_day() -> None:
    one, two = (simulate(plan, LOADS[0], 2, DAY / 24, seed=3) for _ in range(2))
    assert one == two

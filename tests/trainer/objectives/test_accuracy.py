"""The error bounds that docs/pmpo.md states for float32 and bfloat16 log-ratios."""

from dataclasses import asdict

import pytest

from benchmarks.accuracy import BOUNDS, ORDINARY_BOUNDS, ROUNDING, Errors, measure


@pytest.mark.slow
@pytest.mark.parametrize("width", [2, 8, 512])
def test_errors_stay_within_the_stated_bounds(width: int) -> None:
    for family, kinds in measure(width, seed=7).items():
        bounds = ORDINARY_BOUNDS if family.startswith("normal") else BOUNDS
        for kind in kinds.keys() - {ROUNDING}:
            assert_within(kinds[kind], bounds, f"{family}, {kind}")


@pytest.mark.slow
def test_rounding_to_bfloat16_moves_a_mean_by_no_more_than_its_ratios() -> None:
    # log M_p never moves further than the log-ratio that moved most: half of bfloat16's 2^-7 at x = 20
    for family, kinds in measure(64, seed=7).items():
        if ROUNDING in kinds:
            assert kinds[ROUNDING].log_mean <= 20 * 2**-8 + BOUNDS.log_mean, family


def assert_within(found: Errors, bounds: Errors, where: str) -> None:
    for name, error in asdict(found).items():
        assert error <= asdict(bounds)[name], f"{where}: {name} is off by {error}"

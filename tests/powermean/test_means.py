"""Means over recorded numbers: what is missing is left out; late updates are those after the first pass."""

import pytest

from powermean.means import known_mean, late_mean


def test_what_is_missing_is_left_out() -> None:
    assert known_mean([1.0, None, 3.0]) == 2.0
    assert known_mean(iter([None, None])) is None
    assert known_mean([]) is None


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ([(0, 9.0), (1, 9.0), (2, 1.0), (3, 2.0)], 1.5),  # two minibatches, two passes
        ([(0, 1.0), (1, 2.0)], 1.5),  # one pass
        ([(-1, 4.0)], 4.0),  # a metric of the whole step
        ([(5, 3.0), (0, 9.0)], 3.0),
    ],
)
def test_late_updates_are_those_after_the_first_pass(values: list[tuple[int, float]], mean: float) -> None:
    assert late_mean(values, minibatches=2) == mean

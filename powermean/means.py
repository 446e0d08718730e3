"""Means over what a run has recorded, where numbers may be missing."""

from collections.abc import Iterable, Sequence
from statistics import fmean


def known_mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are there; None when none is."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def late_mean(values: Sequence[tuple[int, float]], minibatches: int) -> float:
    """Mean of (update, value) over a step's updates after the first pass, where ratios have left 1.

    Over all of them where none comes after it: a run with one pass, a metric of the whole step. Raises
    StatisticsError when there is no value.
    """
    late = [value for update, value in values if update >= minibatches]
    return fmean(late or [value for _, value in values])

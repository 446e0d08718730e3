"""Verdicts over pairs of a completion and an answer, some from grading errors that were rewarded elsewhere.

A false accept is sought out by training, so there may be none.
"""

import pytest

from benchmarks.grading import ours, pairs, wrong
from powermean.contracts.rewards import MathVerify
from trainer.data import Problem
from trainer.screening import judge

FAMOUS = 6  # the first lines: errors of math-verify's defaults that were met in the field


@pytest.mark.parametrize(("completion", "answer", "right"), pairs()[:FAMOUS])
def test_verdicts_that_the_library_gets_wrong(completion: str, answer: str, right: bool) -> None:
    assert ours(completion, answer) == right


@pytest.mark.slow  # 640 pairs at 20 ms
def test_no_wrong_answer_passes_and_hardly_a_right_one_fails() -> None:
    found = pairs()
    accepts, refusals = wrong(found, ours)
    assert len(found) >= 200
    assert accepts == []
    assert len(refusals) < 0.02 * sum(right for *_, right in found), refusals


@pytest.mark.slow
def test_every_answer_of_the_table_is_right_for_itself() -> None:
    answers = sorted({answer for _, answer, _ in pairs()})
    found = judge([Problem(str(place), "", answer) for place, answer in enumerate(answers)], MathVerify())
    assert [answer for answer, bad in zip(answers, found.unmatched, strict=True) if bad] == []

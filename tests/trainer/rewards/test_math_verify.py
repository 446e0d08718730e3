"""Mathematics by meaning, with a time limit that holds."""

import time
from collections.abc import Iterator

import pytest

from powermean.contracts.rewards import MathVerify
from trainer.rewards.grading import Grader
from trainer.rewards.isolation import open_grader


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with open_grader(MathVerify(timeout_s=20)) as opened:
        yield opened


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        ("so the answer is 72.", "72", 1),
        ("so the answer is 71.", "72", 0),
        ("the answer is $\\boxed{\\frac{2}{4}}$", "1/2", 1),
        ("the answer is $\\boxed{\\frac{2}{4}}$", "\\frac{1}{2}", 1),
        ("the answer is $\\frac{1}{3}$", "$\\frac{1}{2}$", 0),
        ("$\\boxed{1+x^2}$", "x^2+1", 1),
        ("$\\boxed{(1, 2)}$", "(1,2)", 1),
        ("$\\boxed{(2, 1)}$", "(1,2)", 0),
        ("$\\boxed{2\\sqrt{2}}$", "\\sqrt{8}", 1),
        ("1,234 apples", "1234", 1),
        ("I do not know", "72", 0),
        ("", "72", 0),
    ],
)
def test_expressions_are_compared_by_meaning(
    grader: Grader, completion: str, answer: str, reward: int
) -> None:
    (grade,) = grader.grade([(completion, answer)])
    assert (grade.reward, grade.error) == (reward, None)


@pytest.mark.slow
def test_an_unreadable_reference_is_counted_as_an_error(grader: Grader) -> None:
    unreadable, good = grader.grade([("72", ""), ("72", "72")])
    assert unreadable.reward == 0
    assert "can't read the reference answer ''" in (unreadable.error or "")
    assert good.reward == 1


@pytest.mark.slow
def test_an_endless_expression_costs_one_completion_its_reward() -> None:
    endless = "$\\boxed{" + "9^{" * 6 + "9" + "}" * 6 + "!}$"
    started = time.monotonic()
    with open_grader(MathVerify(timeout_s=2)) as grader:
        grades = grader.grade([("7", "7"), (endless, "7"), ("8", "7"), ("7", "7")])
    assert [grade.reward for grade in grades] == [1, 0, 0, 1]
    assert grades[1].error is not None
    assert time.monotonic() - started < 100

"""Exact match: what is extracted from a completion, and that no regular expression holds up a run."""

import time

import pytest
from pydantic import ValidationError

from powermean.contracts.rewards import ExactMatch
from trainer.rewards.exact_match import canonical_number, grade
from trainer.rewards.grading import Grade
from trainer.rewards.isolation import open_grader


def _rewards(spec: ExactMatch, *items: tuple[str, str]) -> list[float]:
    return [grade(spec, completion, answer) for completion, answer in items]


@pytest.mark.parametrize(
    ("extract", "completion", "answer", "reward"),
    [
        ("first_line", " 13\n", "13", 1),
        ("first_line", " 13", "13", 1),
        ("first_line", " 13\r\nmore", "13", 1),
        ("first_line", " 13, which\n", "13", 0),
        ("first_line", "\n13", "13", 0),
        ("first_line", "", "13", 0),
        ("first_line", "", "", 1),
        ("last_line", "so\nit is\n 13 \n\n", "13", 1),
        ("last_line", "13\nno", "13", 0),
        ("all", " 13\n", "13", 1),
        ("all", "13\n14", "13\n14", 1),
        ("all", "13\n14", "13", 0),
        ("last_number", "3 and 4 make 7.", "7", 1),
        ("last_number", "that is $1,234.50!", "1234.5", 1),
        ("last_number", "so 1234", "1,234", 1),
        ("last_number", "x = -3", "-3", 1),
        ("last_number", "x = \u22123", "-3", 1),
        ("last_number", "10-3", "3", 1),
        ("last_number", "10-3", "-3", 0),
        ("last_number", "it is 7.0", "7", 1),
        ("last_number", "half is .5", "0.5", 1),
        ("last_number", "none", "7", 0),
        ("last_number", "70", "7", 0),
    ],
)
def test_what_is_compared(extract: str, completion: str, answer: str, reward: int) -> None:
    spec = ExactMatch.model_validate({"extract": extract})
    assert _rewards(spec, (completion, answer)) == [reward]


def test_case_may_be_ignored() -> None:
    assert _rewards(ExactMatch(extract="all"), ("Yes", "yes")) == [0]
    assert _rewards(ExactMatch(extract="all", ignore_case=True), ("Yes", "yes"), ("STRASSE", "straße")) == [
        1,
        1,
    ]


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("0", "0"),
        ("-0.0", "0"),
        ("100", "100"),
        ("1.50", "1.5"),
        ("1e3", "1e3"),
        (" x ", "x"),
        ("12,34", "12,34"),
    ],
)
def test_numbers_have_one_form(text: str, canonical: str) -> None:
    assert canonical_number(text) == canonical


def test_a_pattern_takes_its_last_match() -> None:
    spec = ExactMatch(extract="pattern", pattern=r"<a>(.*?)</a>", ignore_case=True)
    items = ("<a>1</a> or <a> B </a>", "b"), ("<a>b</a> or <a>1</a>", "b"), ("nothing", "b")
    assert _rewards(spec, *items) == [1, 0, 0]
    assert _rewards(ExactMatch(extract="pattern", pattern=r"\d+"), ("1 22 333", "333")) == [1]
    assert _rewards(ExactMatch(extract="pattern", pattern=r"x|(y)"), ("yx", "y")) == [
        0
    ]  # group 1 took no part


@pytest.mark.slow
def test_an_endless_pattern_costs_one_completion_its_reward() -> None:
    spec = ExactMatch(extract="pattern", pattern=r"(?:a+)+b|(ok)", timeout_s=2)
    started = time.monotonic()
    with open_grader(spec) as grader:
        grades = grader.grade([("ok", "ok"), ("a" * 60, "ok"), ("ok", "ok"), ("no", "ok")])
    assert grades == [Grade(1.0), Grade(0.0, "grading took longer than 2 s"), Grade(1.0), Grade(0.0)]
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"extract": "pattern"}, "give the regular expression"),
        ({"extract": "all", "pattern": "x"}, "would not be used"),
        ({"extract": "pattern", "pattern": "("}, "not a regular expression"),
        ({"extract": "pattern", "pattern": "a{4294967296}"}, "not a regular expression"),
    ],
)
def test_a_pattern_is_checked_with_the_spec(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ExactMatch.model_validate(fields)

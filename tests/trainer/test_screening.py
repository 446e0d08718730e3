"""What every row is checked for, and what a node keeps of it."""

import json
from pathlib import Path

import numpy as np
import pytest

from powermean.contracts.data import JsonlSource
from powermean.contracts.rewards import ExactMatch, MathVerify, RewardSpec
from tests.support.tiny_model import char_tokenizer
from trainer.data import Problem
from trainer.data.jsonl import Jsonl
from trainer.failures import TrainingError
from trainer.learner.tokenizing import prompt_encoder
from trainer.screening import Answers, Prompts, Shelf, judge, left_out, lines, measure, named

DATA = JsonlSource(dataset="ds-1", held_out=0.5)


def problems(*answers: str) -> list[Problem]:
    return [Problem(f"line {number}", "1+1=", answer) for number, answer in enumerate(answers, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reward", "good", "bad"),
    [
        (ExactMatch(extract="first_line"), ["a", " a ", "3/4"], ["a\nb"]),
        (ExactMatch(extract="last_line"), ["a", "a\n"], ["a\nb"]),
        (ExactMatch(extract="all"), ["a\nb"], []),
        (
            ExactMatch(extract="last_number"),
            ["3", "-3.50", "1,234"],
            ["3/4", "50%", "$18", "5.", "+5", "#### 5"],
        ),
        (ExactMatch(extract="pattern", pattern="[A-D]"), ["A"], ["E", "AB", "a"]),
        (ExactMatch(extract="pattern", pattern="[A-D]", ignore_case=True), ["A", "a"], ["E"]),
        (
            ExactMatch(extract="pattern", pattern="<a>(.*)</a>"),
            ["x"],
            [],
        ),  # its own completions look otherwise
        (ExactMatch(extract="pattern", pattern=r"(?<=is )\d+"), ["3"], []),
        (MathVerify(), ["3", "\\frac{1}{2}", "(1, 2)", "x^2+1"], ["{"]),
    ],
    ids=str,
)
def test_an_answer_is_tried_on_its_grader(reward: RewardSpec, good: list[str], bad: list[str]) -> None:
    found = judge(problems(*good, *bad, *good, " "), reward)
    expected = [False] * len(good) + [True] * len(bad) + [False] * len(good) + [False]
    assert found.unmatched.tolist() == expected
    assert lines(found.blank) == [len(expected)]
    assert found.unjudged == 0


def test_time_for_answers_is_limited_and_those_left_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.screening.GRADING_S", 0.0)
    found = judge(problems("a\nb", "", "b"), ExactMatch())
    assert (found.unjudged, found.unmatched.any(), lines(found.blank)) == (2, False, [2])


def test_prompts_are_measured() -> None:
    encode = prompt_encoder(char_tokenizer())
    rows = [Problem("a", "1+2=", "3"), Problem("b", "", "3"), Problem("c", "1<end>", "3", fields=((0, 6),))]
    found = measure(iter(rows), encode)
    assert found.tokens.tolist() == [4, 0, 6]
    assert found.spelled_out.tolist() == [False, False, True]
    assert found.highest_id == 18


def test_findings_are_kept_until_what_they_depend_on_changes(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    made: list[str] = []

    def prompts() -> Prompts:
        made.append("prompts")
        return Prompts(np.array([3, 4], np.uint32), 9, np.array([False, True]))

    def answers() -> Answers:
        made.append("answers")
        return Answers(np.array([False, True]), np.array([True, False]), 2)

    shelf = Shelf(tmp_path, "abc")
    for _ in range(2):
        kept = shelf.prompts(DATA, model, prompts)
        assert (kept.tokens.tolist(), kept.highest_id, kept.spelled_out.tolist()) == (
            [3, 4],
            9,
            [False, True],
        )
        judged = shelf.answers(DATA, ExactMatch(), answers)
        assert (judged.blank.tolist(), judged.unmatched.tolist(), judged.unjudged) == (
            [False, True],
            [True, False],
            2,
        )
    assert made == ["prompts", "answers"]
    shelf.prompts(DATA.model_copy(update={"prompt": "{q}"}), model, prompts)
    Shelf(tmp_path, "abd").prompts(DATA, model, prompts)
    (model / "tokenizer.json").write_text("{}")
    shelf.prompts(DATA, model, prompts)
    shelf.answers(DATA, ExactMatch(extract="all"), answers)
    assert made == ["prompts", "answers", "prompts", "prompts", "prompts", "answers"]


def test_a_damaged_finding_is_made_again_and_old_ones_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.screening.KEPT", 2)
    good = Answers(np.array([True]), np.array([False]), 0)
    for name in "abc":
        Shelf(tmp_path, name).answers(DATA, ExactMatch(), lambda: good)
    files = list((tmp_path / "screened").iterdir())
    assert len(files) == 2
    for file in files:
        file.write_bytes(file.read_bytes()[:40])
    assert Shelf(tmp_path, "c").answers(DATA, ExactMatch(), lambda: good).blank.tolist() == [True]


def test_rows_that_cannot_be_trained_on_are_left_out_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"question": f"{i}", "answer": "1"}) + "\n" for i in range(40)))
    source = Jsonl(DATA, file)
    tokens, no = np.full(40, 4, np.uint32), np.zeros(40, np.bool_)
    tokens[6], tokens[7] = 9, 0
    blank, unmatched = no.copy(), no.copy()
    blank[8] = unmatched[9] = unmatched[30] = True
    without = left_out(Prompts(tokens, 9, no), Answers(blank, unmatched, 0), 8)
    assert without.lines == {7, 8, 9, 10, 31}
    assert str(without) == (
        "left out 5 rows of the dataset. line 7: the prompt has more than 8 tokens; line 8: the prompt has "
        "no tokens; line 9: the answer is blank; 2 lines (10, 31): no completion can match the answer"
    )
    rest = source.without(without.lines)
    seen = {problem.id for problem in [*rest.batch(1, 40, 0), *rest.held_out(40)]}
    assert seen == {f"line {i}" for i in range(1, 41)} - {f"line {i}" for i in without.lines}
    assert len(left_out(Prompts(tokens, 9, no), Answers(no, no, 0), None).lines) == 1
    with pytest.raises(TrainingError) as caught:
        source.without(range(1, 41))
    assert caught.value.error.code == "too_few_problems"


def test_lines_are_named() -> None:
    assert named([3]) == "line 3"
    assert named([3, 7]) == "2 lines (3, 7)"
    assert named(list(range(1, 1002)), most=2) == "1,001 lines (1, 2, ...)"

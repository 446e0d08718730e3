"""Uploaded datasets: rows by number, passes without repetition, errors by line."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from powermean.contracts.data import JsonlSource
from trainer.data import PromptSource, open_source
from trainer.failures import TrainingError

SPEC = JsonlSource(dataset="ds-1", prompt="Q: {question}\nA:", answer_field="answer", held_out=0.2)


def _source(folder: Path, rows: list[dict[str, object]], spec: JsonlSource = SPEC) -> PromptSource:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return open_source(spec, path)


def _rows(count: int) -> list[dict[str, object]]:
    return [{"question": f"é {i}?", "answer": i, "extra": [i]} for i in range(count)]


def test_a_row_becomes_a_problem(tmp_path: Path) -> None:
    source = _source(tmp_path, _rows(50))
    for problem in [*source.batch(1, 10, seed=0), *source.held_out(5)]:
        number = int(problem.id.removeprefix("line "))
        assert (problem.prompt, problem.answer) == (f"Q: é {number - 1}?\nA:", str(number - 1))
        assert problem.chat is False


def test_chat_is_handed_on(tmp_path: Path) -> None:
    source = _source(tmp_path, _rows(50), SPEC.model_copy(update={"chat": True}))
    assert all(problem.chat for problem in [*source.batch(1, 3, seed=0), *source.held_out(2)])


def test_a_pass_takes_every_row_once_and_the_next_in_another_order(tmp_path: Path) -> None:
    source = _source(tmp_path, _rows(60))
    rows = 60 - len(source.held_out(60))
    batches = rows // 5
    first = [problem.id for step in range(1, batches + 1) for problem in source.batch(step, 5, seed=0)]
    second = [
        problem.id
        for step in range(batches + 1, 2 * batches + 1)
        for problem in source.batch(step, 5, seed=0)
    ]
    assert len(set(first)) == len(first) == batches * 5
    assert len(set(second)) == len(second)
    assert first != second


def test_a_batch_depends_on_step_and_seed_alone(tmp_path: Path) -> None:
    source = _source(tmp_path, _rows(60))
    again = _source(tmp_path, _rows(60))
    again.batch(9, 4, seed=1)
    assert source.batch(3, 4, seed=5) == again.batch(3, 4, seed=5)
    assert source.batch(3, 4, seed=5) != source.batch(4, 4, seed=5)
    assert source.batch(3, 4, seed=5) != source.batch(3, 4, seed=6)


def test_a_batch_above_the_rows_repeats_them_evenly(tmp_path: Path) -> None:
    source = _source(tmp_path, _rows(20))
    rows = 20 - len(source.held_out(20))
    problems = source.batch(1, 2 * rows, seed=0)
    assert all(problems.count(problem) == 2 for problem in set(problems))
    assert len(set(problems)) == rows


def test_the_split_is_clean_and_fixed(tmp_path: Path) -> None:
    rows = _rows(100)
    source = _source(tmp_path, rows)
    held_out = source.held_out(1000)
    trained = {problem.prompt for step in range(1, 40) for problem in source.batch(step, 10, seed=0)}
    assert not trained & {problem.prompt for problem in held_out}
    assert len(trained) + len(held_out) == 100
    assert 10 <= len(held_out) <= 30
    assert source.held_out(3) == held_out[:3]
    shuffled = _source(tmp_path, rows[::-1])
    assert [p.prompt for p in shuffled.held_out(1000)] == [p.prompt for p in held_out]


def test_equal_prompts_are_on_one_side(tmp_path: Path) -> None:
    source = _source(tmp_path, [{"question": f"{i % 10}", "answer": "x", "id": i} for i in range(100)])
    held_out = {problem.prompt for problem in source.held_out(100)}
    trained = {problem.prompt for step in range(1, 20) for problem in source.batch(step, 10, seed=0)}
    assert held_out
    assert not held_out & trained


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "?"}', r"line 17: no field 'answer' \(the row has: question\)"),
        ("", "line 17: empty line"),
        ("{", "line 17: not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "data.jsonl"
    good = '{"question": "?", "answer": "!"}\n'
    path.write_text(good * 16 + line + "\n" + good)
    with pytest.raises(TrainingError, match=message) as error:
        open_source(SPEC, path)
    assert error.value.error.path == "data.dataset"


def test_too_few_rows_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no problem to"):
        _source(tmp_path, _rows(1))
    with pytest.raises(TrainingError, match="did not reach this node"):
        open_source(SPEC, None)


@pytest.mark.parametrize("prompt", ["no field", "{question", "{}"])
def test_a_template_is_checked_with_the_spec(prompt: str) -> None:
    with pytest.raises(ValidationError, match="prompt"):
        JsonlSource(dataset="ds-1", prompt=prompt)


def test_a_last_line_without_its_end_counts(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in _rows(30)))
    source = open_source(SPEC, path)
    ids = {problem.id for problem in [*source.held_out(30), *source.batch(1, 30, seed=0)]}
    assert ids == {f"line {number}" for number in range(1, 31)}


def test_later_rounds_of_a_step_bring_other_rows_until_all_were_there(tmp_path: Path) -> None:
    source = _source(tmp_path, _rows(60))
    batches = (60 - len(source.held_out(60))) // 5
    rounds = [source.batch(3, 5, seed=0, round_number=number) for number in range(batches)]
    assert rounds[0] == source.batch(3, 5, seed=0)
    assert len({problem for round_ in rounds for problem in round_}) == batches * 5
    assert source.batch(3, 5, seed=0, round_number=batches) == rounds[0]
    assert rounds[1] != source.batch(4, 5, seed=0, round_number=1)

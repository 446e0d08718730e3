"""Arithmetic problems: right answers, a clean split, batches that depend on step and seed alone."""

import pytest
from pydantic import ValidationError

from powermean.contracts.data import ArithmeticSource, ArithmeticTask
from trainer.data import Problem, open_source
from trainer.failures import TrainingError

DEMO = ArithmeticSource()


def test_the_prompt_is_one_shot_and_the_answer_is_right() -> None:
    problems = open_source(DEMO, None).batch(1, 60, seed=0)
    for problem in problems:
        question = problem.prompt.removeprefix("1 + 2 = 3\n").removesuffix(" =")
        assert problem.prompt == f"1 + 2 = 3\n{question} ="
        assert problem.id == question
        assert problem.answer == str(eval(question))  # of our own making
        assert problem.chat is False


def test_a_batch_depends_on_step_and_seed_alone() -> None:
    first, second = open_source(DEMO, None), open_source(DEMO, None)
    second.held_out(10)
    second.batch(7, 8, seed=3)
    assert first.batch(2, 8, seed=3) == second.batch(2, 8, seed=3)
    assert first.batch(2, 8, seed=3) != first.batch(3, 8, seed=3)
    assert first.batch(2, 8, seed=3) != first.batch(2, 8, seed=4)


def test_no_problem_is_both_trained_on_and_held_out() -> None:
    source = open_source(DEMO, None)
    held_out = {problem.prompt for problem in source.held_out(10_000)}
    trained = {problem.prompt for step in range(1, 60) for problem in source.batch(step, 8, seed=1)}
    assert not held_out & trained
    everything = {
        f"1 + 2 = 3\n{a} {t.operator} {b} =" for t in DEMO.tasks for a in _operands(t) for b in _operands(t)
    }
    assert trained <= everything
    assert everything == held_out | {problem.prompt for problem in source.batch(1, 2000, seed=0)}
    assert 0.15 < len(held_out) / len(everything) < 0.35


def test_held_out_problems_have_one_order() -> None:
    source = open_source(DEMO, None)
    assert source.held_out(20)[:5] == source.held_out(5) == open_source(DEMO, None).held_out(5)


def test_a_batch_repeats_a_problem_only_when_all_are_in_it() -> None:
    spec = ArithmeticSource(tasks=(ArithmeticTask(operator="+", low=0, high=3),))
    source = open_source(spec, None)
    count = 16 - len(source.held_out(100))
    assert len(set(source.batch(1, count, seed=0))) == count
    problems = source.batch(1, 3 * count, seed=0)
    assert all(problems.count(problem) == 3 for problem in set(problems))


def test_weights_decide_the_mix_on_both_sides() -> None:
    tasks = (
        ArithmeticTask(operator="+", low=0, high=99, weight=9),
        ArithmeticTask(operator="*", low=0, high=99),
    )
    source = open_source(ArithmeticSource(tasks=tasks), None)
    assert 0.85 < _share(source.batch(1, 500, seed=0), "+") < 0.95
    assert 0.85 < _share(source.held_out(500), "+") < 0.95


def test_rare_problems_are_found() -> None:
    spec = ArithmeticSource(tasks=(ArithmeticTask(operator="+", low=0, high=99),), held_out=0.999)
    problems = open_source(spec, None).batch(1, 5, seed=0)
    assert len(set(problems)) == 5


def test_a_source_without_problems_on_one_side_is_refused() -> None:
    spec = ArithmeticSource(tasks=(ArithmeticTask(operator="+", low=1, high=1),))
    with pytest.raises(TrainingError, match=r"no problem to (train|evaluate) on") as error:
        open_source(spec, None)
    assert error.value.error.path == "data"
    assert "held_out" in (error.value.error.remedy or "")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("{a} {op}", "lacks {b}"), ("{a} {op} {b} {c}", "no c"), ("{a} {op} {b} {", "unmatched")],
)
def test_a_template_is_checked_with_the_spec(prompt: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ArithmeticSource(prompt=prompt)


def _operands(task: ArithmeticTask) -> range:
    return range(task.low, task.high + 1)


def _share(problems: list[Problem], sign: str) -> float:
    return sum(f" {sign} " in problem.id for problem in problems) / len(problems)


def test_later_rounds_of_a_step_bring_other_problems_until_all_were_there() -> None:
    source = open_source(DEMO, None)
    rounds = [source.batch(4, 20, seed=0, round_number=number) for number in range(5)]
    assert rounds[0] == source.batch(4, 20, seed=0)
    assert len({problem for round_ in rounds for problem in round_}) == 100
    everything = set(source.batch(1, 2000, seed=0))
    far = source.batch(4, len(everything), seed=0, round_number=1)
    assert len(far) == len(set(far)) == len(everything)

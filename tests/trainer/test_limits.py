"""The limits that are judged at the end of each step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powermean.contracts.limits import LimitSpec
from tests.support.attempts import Stage
from trainer.limits import judge

RULE = LimitSpec(stop_when="reward >= 0.5 for 3")
TRAINING = {"prompts_per_step": 4, "minibatches": 1, "epochs": 1, "steps": 6}


@given(st.lists(st.one_of(st.none(), st.sampled_from([0.1, 0.5, 0.9, "unmeasured"])), max_size=12))
def test_it_is_reached_at_the_first_of_three_measured_values_in_a_row(
    values: list[float | str | None],
) -> None:
    streak, first = 0, None
    for step, value in enumerate(values, 1):
        measured = {} if value == "unmeasured" else {"reward": value}
        streak, reached = judge(RULE, step, 0, streak, measured)  # type: ignore[arg-type]
        if reached and first is None:
            first = step
    seen = [(step, value) for step, value in enumerate(values, 1) if value != "unmeasured"]
    runs = [
        seen[i + 2][0]
        for i in range(len(seen) - 2)
        if all(value is not None and float(value) >= 0.5 for _, value in seen[i : i + 3])
    ]
    assert first == min(runs, default=None)


@given(st.integers(0, 100), st.integers(1, 100))
def test_tokens_are_reached_when_so_many_were_sampled(tokens: int, most: int) -> None:
    reached = judge(LimitSpec(tokens=most), 3, tokens, 0, {}).reached
    assert (reached is not None) == (tokens >= most)
    assert reached is None or f"limits.tokens: {tokens} of {most}" in reached


def test_without_limits_nothing_is_ever_reached() -> None:
    assert judge(LimitSpec(), 1, 10**9, 0, {"reward": 1.0}) == (0, None)


@pytest.mark.slow
def test_a_run_that_reaches_its_tokens_finishes_with_an_evaluation_and_a_model(stage: Stage) -> None:
    played = stage.play(training=TRAINING, limits={"tokens": 1}, evaluation={"every": 0, "problems": 5})
    finish = played.finish
    assert finish.outcome == "finished", finish.error
    assert finish.result is not None
    assert finish.result.steps == 1
    assert finish.result.model.files
    assert "limits.tokens" in str(finish.ended_by)
    assert sorted(step for step, _, name in played.metrics if name == "eval/reward") == [0, 1]


@pytest.mark.slow
def test_values_in_a_row_count_over_attempts(stage: Stage) -> None:
    spec = {"training": TRAINING, "limits": {"stop_when": "reward >= 0 for 3"}}
    first = stage.play(1, order="checkpoint_and_exit", **spec)
    assert [commit.step for commit in first.checkpoints] == [1]
    second = stage.play(2, resume=first.checkpoints[0], **spec)
    assert second.finish.result is not None
    assert second.finish.result.steps == 3
    assert second.finish.ended_by == "limits.stop_when: reward >= 0 for 3, at step 3"


@pytest.mark.slow
def test_the_order_to_finish_ends_the_run_with_its_step(stage: Stage) -> None:
    played = stage.play(1, order="finish", training=TRAINING, checkpoints={"every": 2})
    assert played.finish.result is not None
    assert (played.finish.result.steps, played.finish.ended_by) == (1, None)
    first = stage.play(2, order="checkpoint_and_exit", training=TRAINING)
    later = stage.play(3, resume=first.checkpoints[0], order="finish", training=TRAINING)
    assert later.finish.result is not None
    assert later.finish.result.steps == 1, "it was done before its first step"
    assert {step for step, _, _ in later.metrics} == {1}


@pytest.mark.slow
def test_a_limit_at_the_last_step_ends_nothing_early(stage: Stage) -> None:
    spec = {"training": TRAINING | {"steps": 1}, "limits": {"tokens": 1}}
    played = stage.play(1, **spec)
    assert (played.finish.outcome, played.finish.ended_by) == ("finished", None)

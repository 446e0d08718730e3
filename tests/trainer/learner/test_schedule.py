"""Learning rates: those of transformers after the warm-up, the old ones without a schedule."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_scheduler

from powermean.contracts.job import JobSpec
from powermean.contracts.training import OptimizerSpec
from tests.support.tiny_spec import tiny_spec
from trainer.learner.optimizer import UpdatePlan, learning_rate

TOTAL = 50


def rates(spec: OptimizerSpec, total: int = TOTAL) -> list[float]:
    return [learning_rate(spec, n, n, total) for n in range(total)]


@pytest.mark.parametrize(
    ("schedule", "ratio", "theirs"),
    [("linear", 0.0, "linear"), ("cosine", 0.0, "cosine"), ("cosine", 0.1, "cosine_with_min_lr")],
)
def test_rates_are_those_of_transformers_from_the_end_of_the_warmup_on(
    schedule: str, ratio: float, theirs: str
):
    spec = OptimizerSpec(
        learning_rate=1e-3, warmup_updates=5, schedule=schedule, final_learning_rate_ratio=ratio
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    more = {"min_lr_rate": ratio} if ratio else {}
    scheduler = get_scheduler(theirs, optimizer, 5, TOTAL, more)
    expected = []
    for _ in range(TOTAL):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates(spec)[5:] == pytest.approx(expected[5:], rel=1e-12)
    assert rates(spec)[:5] == pytest.approx([1e-3 * (n + 1) / 6 for n in range(5)])


def test_without_a_schedule_rates_are_as_they_were():
    spec = OptimizerSpec(learning_rate=1e-3, warmup_updates=3)
    assert rates(spec) == [1e-3 * min(1.0, (n + 1) / 4) for n in range(TOTAL)]


def test_a_ratio_is_a_number_of_updates():
    by_ratio = OptimizerSpec(warmup_ratio=0.1, warmup_updates=40, schedule="cosine")
    by_number = OptimizerSpec(warmup_updates=5, schedule="cosine")
    assert rates(by_ratio) == rates(by_number)
    assert rates(OptimizerSpec(warmup_ratio=0.0))[0] == OptimizerSpec().learning_rate


@given(
    st.sampled_from(["constant", "linear", "cosine"]),
    st.floats(0, 1),
    st.integers(0, 60),
    st.integers(1, 40),
    st.integers(1, 6),
    st.data(),
)
def test_rates_rise_once_and_fall_to_their_end(
    schedule: str, ratio: float, warmup: int, steps: int, per_step: int, data: st.DataObject
):
    spec = OptimizerSpec(
        learning_rate=1.0, warmup_updates=warmup, schedule=schedule, final_learning_rate_ratio=ratio
    )
    plan = UpdatePlan(steps, per_step)
    found = rates(spec, plan.total)
    assert all(0 < rate <= 1 for rate in found)
    peak = min(warmup, plan.total - 1)
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)
    step, number = data.draw(st.integers(1, steps)), data.draw(st.integers(0, per_step - 1))
    places = [(one, n) for one in range(1, steps + 1) for n in range(per_step)]
    assert places[plan.place(step, number)] == (step, number)
    if warmup < plan.total:  # the schedule ends with the run, however many updates were skipped
        end = learning_rate(spec, warmup, plan.total, plan.total)
        assert end == pytest.approx(1.0 if schedule == "constant" else ratio)


def test_a_warmup_that_leaves_no_update_is_refused():
    changes = {"learning_rate": 1e-3, "schedule": "linear", "warmup_updates": 16}  # of 4 steps of 4
    with pytest.raises(ValueError, match="the warm-up of 16 updates leaves none of the job's 16"):
        JobSpec.model_validate(tiny_spec("tiny", optimizer=changes))
    JobSpec.model_validate(tiny_spec("tiny", optimizer=changes | {"schedule": "constant"}))

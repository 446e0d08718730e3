import pytest

from powermean.contracts.phases import (
    ACTIVITIES,
    SAMPLING,
    StepPhase,
    in_step,
    is_sampling,
    read_step,
)


@pytest.mark.parametrize("activity", ACTIVITIES)
@pytest.mark.parametrize("detail", ["", "3 of 16", "round 2", "2 of 4, micro-batch 3 of 8"])
def test_a_phase_within_a_step_can_be_read_back(activity: str, detail: str) -> None:
    phase = in_step(7, 20, activity, detail)
    assert read_step(phase) == StepPhase(7, 20, activity, detail)
    assert is_sampling(phase) == (activity == SAMPLING)


@pytest.mark.parametrize(
    "text", ["", "loading the model", "step 3 of 20: dreaming", "step three of 20: updating", "step 3"]
)
def test_other_words_are_in_no_step(text: str) -> None:
    assert read_step(text) is None
    assert not is_sampling(text)

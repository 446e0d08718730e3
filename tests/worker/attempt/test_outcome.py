"""How an attempt ended: every stop of the supervisor's own has its reason."""

from typing import get_args

import pytest

from powermean.contracts.attempts import Finish
from worker.attempt.outcome import Ended, Stop, finish


@pytest.mark.parametrize("stop", get_args(Stop))
@pytest.mark.parametrize("record", [None, Finish(outcome="checkpointed")])
def test_whatever_the_supervisor_stopped_says_why(stop: Stop, record: Finish | None) -> None:
    end = finish(Ended(stop=stop, record=record, trainer_code=-15))
    if stop == "cancel":
        assert end == Finish(outcome="cancelled")  # the server ordered it and knows why
    elif stop == "stalled" and record is None:
        assert end.error is not None
    elif stop != "stalled":
        assert end.outcome == "checkpointed"
        assert end.reason


def test_a_trained_model_outweighs_a_stop() -> None:
    record = Finish(outcome="finished")
    assert finish(Ended(stop="node_stopping", record=record)) is record

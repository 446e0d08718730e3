"""How an attempt is judged by what its processes left."""

import errno
from pathlib import Path
from typing import get_args

import pytest

from powermean.contracts.attempts import EngineStart, Finish, JobError
from worker.attempt.outcome import Ended, Stop, finish

ERROR = JobError(code="x", message="y")
FULL = Path("/data")


@pytest.mark.parametrize(
    "ended",
    [
        Ended(trainer_code=1, full_disk=FULL),
        Ended(model_code=1, full_disk=FULL),
        Ended(engine_start=EngineStart(error=ERROR), full_disk=FULL),
        Ended(broken=OSError(errno.ENOSPC, "No space left on device"), full_disk=FULL),
    ],
)
def test_what_fails_on_a_full_disk_is_tried_again(ended: Ended) -> None:
    end = finish(ended)
    assert end.error is not None
    assert (end.outcome, end.error.code, end.retryable) == ("failed", "disk_full", True)
    assert "/data" in end.error.message


@pytest.mark.parametrize(
    ("ended", "code", "retryable"),
    [
        (Ended(record=Finish(outcome="failed", error=ERROR), trainer_code=1, full_disk=FULL), "x", False),
        (Ended(refused=ERROR, full_disk=FULL), "x", False),
        (Ended(trainer_code=-9, full_disk=FULL), "trainer_killed", True),
        (Ended(broken=OSError(errno.EMFILE, "Too many open files")), "supervisor_error", True),
        (Ended(trainer_code=1), "trainer_error", False),
    ],
)
def test_a_full_disk_explains_only_what_nothing_else_does(ended: Ended, code: str, retryable: bool) -> None:
    end = finish(ended)
    assert end.error is not None
    assert (end.error.code, end.retryable) == (code, retryable)


@pytest.mark.parametrize("stop", get_args(Stop))
@pytest.mark.parametrize("record", [None, Finish(outcome="checkpointed")])
def test_whatever_the_supervisor_stopped_says_why(stop: Stop, record: Finish | None) -> None:
    end = finish(Ended(stop=stop, record=record, trainer_code=-15))
    if stop == "cancel":
        assert end == Finish(outcome="cancelled")  # the server ordered it and knows why
    elif stop in ("stalled", "finish_ignored", "frozen"):
        assert record or end.error is not None  # a checkpoint of its own needs no words
    else:
        assert end.outcome == "checkpointed"
        assert end.reason


def test_a_trained_model_outweighs_a_stop() -> None:
    record = Finish(outcome="finished")
    assert finish(Ended(stop="node_stopping", record=record)) is record


def test_the_kernel_s_kill_for_want_of_memory_is_named_with_its_rank() -> None:
    error = finish(Ended(trainer_code=-9, rank=3, out_of_memory=True)).error
    assert error is not None
    assert error.code == "trainer_killed"
    assert error.message.startswith("Rank 3 of the trainer was killed by the kernel")


def test_a_rank_that_failed_outweighs_what_rank_0_says_of_the_loss() -> None:
    lost = Finish(outcome="failed", error=ERROR)
    end = finish(Ended(record=lost, trainer_code=-11, rank=2))
    assert end.error is not None
    assert end.error.message == "Rank 2 of the trainer was killed by SIGSEGV."
    assert finish(Ended(record=lost, trainer_code=1, rank=0)) is lost


def test_ranks_that_end_well_without_rank_0_say_no_more() -> None:
    assert finish(Ended(trainer_code=0, follows=True)) == Finish(outcome="finished")
    alone = finish(Ended(trainer_code=0))
    assert alone.error is not None
    assert alone.error.code == "trainer_silent"

"""How an attempt is judged by what its processes left."""

import errno
from pathlib import Path

import pytest

from powermean.contracts.attempts import EngineStart, Finish, JobError
from worker.attempt.outcome import Ended, finish

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

"""The family of errors: what each of them carries, and that a client can catch them all as one."""

import pytest

from powermean import ApiError, PowermeanError, ServerUnreachableError
from powermean.artefacts import ArtefactMissingError, ArtefactStoreUnavailableError
from powermean.contracts.api import ErrorBody, FieldError
from powermean.contracts.attempts import JobError
from rollout.client import EngineRefusedError, EngineTimeoutError
from rollout.engine import EngineError
from server.errors import InvalidInputError
from trainer.failures import TrainingError

REFUSAL = ErrorBody(
    code="invalid",
    message="two fields are wrong",
    remedy="See the docs.",
    fields=(FieldError(path="training.steps", message="must be above 0", remedy="use 10"),),
)


@pytest.mark.parametrize(
    ("error", "carried"),
    [
        (TrainingError("no_updates", "m", path="data", remedy="r"), ("no_updates", "m", "data", "r", False)),
        (TrainingError("killed", "m", retryable=True), ("killed", "m", None, None, True)),
        (EngineError(409, "paused", "m", path="version"), ("paused", "m", "version", None, False)),
        (EngineRefusedError(503, "busy", "m", "r"), ("busy", "m", None, "r", True)),
        (EngineRefusedError(409, "fenced", "m"), ("fenced", "m", None, None, False)),
        (ArtefactMissingError("m"), ("artefact_missing", "m", None, None, False)),
        (InvalidInputError("m", remedy="r"), ("invalid", "m", None, "r", False)),
        (ApiError(422, REFUSAL), ("invalid", "two fields are wrong", None, "See the docs.", False)),
        (ApiError(429, REFUSAL), ("invalid", "two fields are wrong", None, "See the docs.", True)),
    ],
)
def test_what_an_error_carries(error: PowermeanError, carried):
    code, message, path, remedy, retryable = carried
    assert error.error == JobError(code=code, message=message, path=path, remedy=remedy)
    assert error.retryable is retryable


def test_a_kind_fixes_what_all_of_its_errors_share():
    timeout = EngineTimeoutError("POST /v1/generate", 3)
    assert (timeout.code, timeout.retryable) == ("engine_timeout", True)
    assert timeout.remedy is not None
    assert ArtefactStoreUnavailableError("m").retryable
    assert ServerUnreachableError("http://a", "refused").retryable
    assert not PowermeanError("m").retryable


def test_a_refusal_is_read_whole():
    assert str(ApiError(422, REFUSAL)) == (
        "two fields are wrong\n  training.steps: must be above 0 (use 10)\nSee the docs."
    )

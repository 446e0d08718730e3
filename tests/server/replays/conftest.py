"""A running job with token records, and requests to replay its steps."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.replays import record
from tests.support.service_driver import AttemptDriver, ServiceDriver, error_of


@pytest.fixture
def recorded(service: ServiceDriver) -> AttemptDriver:
    """A running pmpo job with token records of steps 3 and 5, none of step 4."""
    attempt = service.running()
    for step in (3, 4, 5):
        record(service, attempt, step, tokens=step != 4)
    return attempt


@pytest.fixture
def ask(service: ServiceDriver, recorded: AttemptDriver) -> Callable[..., Any]:
    def asked(status: int = 202, step: int = 3, **request: Any) -> Any:
        path = f"/v1/jobs/{recorded.claim.job_id}/replays"
        answer = service.person.post(path, json={"step": step, **request})
        assert answer.status_code == status, answer.text
        return answer.json() if answer.is_success else error_of(answer)

    return asked

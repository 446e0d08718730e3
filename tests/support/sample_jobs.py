"""Jobs as the API shows them, for tests of what reads them."""

from datetime import UTC, datetime
from typing import Any

from powermean.contracts.api import Job, JobPage, JobState, JobSummary
from powermean.contracts.job import JobSpec

SPEC = JobSpec.model_validate(
    {
        "name": "arithmetic",
        "model": {"name": "some/model"},
        "data": {"kind": "arithmetic"},
        "training": {"steps": 2},
    }
)


def job(state: JobState = JobState.RUNNING, **changes: Any) -> Job:
    given: dict[str, Any] = {
        "id": "job-a",
        "name": "arithmetic",
        "state": state,
        "algorithm": "pmpo",
        "model": "some/model",
        "step": 0,
        "total_steps": 2,
        "attempt": 1,
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        "spec": SPEC,
    }
    return Job.model_validate(given | changes)


def summaries(*jobs: Job) -> bytes:
    """The answer to a request for a list of jobs, with these."""
    fields = set(JobSummary.model_fields)
    items = tuple(JobSummary.model_validate(one.model_dump(include=fields)) for one in jobs)
    return JobPage(items=items).model_dump_json().encode()

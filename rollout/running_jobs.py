"""The list of unfinished jobs that the node writes for a shared service."""

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from rollout.engine import EngineError

_JOBS = TypeAdapter(frozenset[str])


def read_running_jobs(path: Path) -> frozenset[str]:
    """Job ids in the file, a JSON list. Raises EngineError (jobs_unknown); then no slot may be freed."""
    try:
        return _JOBS.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise EngineError(
            503,
            "jobs_unknown",
            f"all adapter slots are taken, and the list of running jobs can't be read: {error}",
            remedy="The node's worker writes --jobs-file; see its log.",
        ) from error

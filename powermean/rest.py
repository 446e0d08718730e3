"""The REST API as values: each function builds one call and knows how to read its answer.

Here are jobs, what they record, and datasets; the rest is in rest_cluster.py, rest_identity.py and
rest_sharing.py.

Both clients turn these into their methods (`method` in connection.py), so that a call, with its parameters,
defaults and meaning, is written down once.
"""

import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from pydantic import JsonValue

from powermean.calls import IDEMPOTENCY_KEY, Call, check, flags, nothing, params, reads
from powermean.contracts.api import (
    CheckpointList,
    Dataset,
    DatasetList,
    FileList,
    Job,
    JobPage,
    JobSort,
    JobState,
    LogText,
    Readiness,
    SpecSource,
    SubmittedJob,
)
from powermean.contracts.exponents import JobExponents
from powermean.contracts.forks import Origin
from powermean.contracts.health import JobHealth
from powermean.contracts.job import JobSpec
from powermean.contracts.metrics import MetricInfo, MetricsHistory
from powermean.contracts.priorities import PriorityChange
from powermean.contracts.replays import (
    AskedReplay,
    Replay,
    ReplayedTokens,
    ReplayList,
    ReplayRequest,
    ReplayResult,
)
from powermean.contracts.staleness import JobStaleness
from powermean.contracts.token_records import RecordedTokens
from powermean.contracts.trajectories import Trajectory, TrajectoryPage
from powermean.spec_files import read_file


def _metric_names(response: httpx.Response) -> dict[str, MetricInfo]:
    names = check(response).json()
    return {name: MetricInfo.model_validate(info) for name, info in names.items()}


def job_path(job_id: str, rest: str = "") -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}{rest}"


def create_job(
    spec: JobSpec | Mapping[str, Any] | Path | str, idempotency_key: str | None = None
) -> Call[SubmittedJob]:
    """Submit a job: a spec, or the path of a YAML or JSON file with one, whose comments are kept.

    With the same `idempotency_key` a repeated call returns the first job; by default each call has its own,
    so that it can be sent again if the connection is lost. Raises SpecFileError for a file that can't be
    read.
    """
    if isinstance(spec, Path | str):
        return create_job_from_text(read_file(Path(spec)).text, idempotency_key)
    body = spec.model_dump(mode="json", exclude_unset=True) if isinstance(spec, JobSpec) else dict(spec)
    return Call("POST", "/v1/jobs", reads(SubmittedJob), json=body, headers=_once(idempotency_key))


def create_job_from_text(text: str, idempotency_key: str | None = None) -> Call[SubmittedJob]:
    """Submit a job as YAML or JSON; the text is kept with its comments. Otherwise as `create_job`."""
    return Call(
        "POST", "/v1/jobs/text", reads(SubmittedJob), json={"text": text}, headers=_once(idempotency_key)
    )


def _once(idempotency_key: str | None) -> dict[str, str]:
    """The header by which a submission that is sent again, because its answer was lost, makes one job."""
    return {IDEMPOTENCY_KEY: idempotency_key or secrets.token_hex(16)}


def job_text(job_id: str) -> Call[SpecSource]:
    """The text that the job was submitted as; JSON if it came as such."""
    return Call("GET", job_path(job_id, "/text"), reads(SpecSource))


def get_job(job_id: str) -> Call[Job]:
    return Call("GET", job_path(job_id), reads(Job))


def list_jobs(
    state: JobState | str | None = None,
    name: str | None = None,
    cursor: str | None = None,
    limit: int | None = None,
    sort: JobSort | None = None,
    project: str | None = None,
) -> Call[JobPage]:
    """Jobs, newest first unless sorted otherwise; pass `page.next` as `cursor` for the next page."""
    chosen = params(state=state, name=name, project=project, cursor=cursor, limit=limit, sort=sort)
    return Call("GET", "/v1/jobs", reads(JobPage), chosen)


def cancel_job(job_id: str) -> Call[Job]:
    return Call("POST", job_path(job_id, "/cancel"), reads(Job))


def pause_job(job_id: str) -> Call[Job]:
    """Have it save a checkpoint at the end of its step and free its place, until it is resumed."""
    return Call("POST", job_path(job_id, "/pause"), reads(Job))


def resume_job(job_id: str) -> Call[Job]:
    """Let a paused job wait for a place again; it goes on from its last checkpoint."""
    return Call("POST", job_path(job_id, "/resume"), reads(Job))


def set_priority(job_id: str, priority: str) -> Call[Job]:
    """Give it another priority: the name of a class (see priorities)."""
    body = PriorityChange(priority=priority).model_dump()
    return Call("POST", job_path(job_id, "/priority"), reads(Job), json=body)


def delete_job(job_id: str, cascade: bool = False) -> Call[None]:
    """Delete an ended job with all that it recorded; with `cascade` also replays of it that still wait."""
    return Call("DELETE", job_path(job_id), nothing, flags(cascade=cascade))


def metrics(
    job_id: str,
    names: Iterable[str],
    from_step: int | None = None,
    to_step: int | None = None,
    max_points: int | None = None,
) -> Call[MetricsHistory]:
    chosen = tuple(("name", name) for name in names)
    chosen += params(from_step=from_step, to_step=to_step, max_points=max_points)
    return Call("GET", job_path(job_id, "/metrics"), reads(MetricsHistory), chosen)


def health(job_id: str) -> Call[JobHealth]:
    """What the last steps say about the run, the worst first."""
    return Call("GET", job_path(job_id, "/health"), reads(JobHealth))


def staleness(
    job_id: str, steps: int | None = None, from_step: int | None = None, to_step: int | None = None
) -> Call[JobStaleness]:
    """p, ESS and mismatch by staleness, over the newest `steps` steps or a range of them."""
    chosen = params(steps=steps, from_step=from_step, to_step=to_step)
    return Call("GET", job_path(job_id, "/staleness"), reads(JobStaleness), chosen)


def exponents(job_id: str, from_step: int, to_step: int) -> Call[JobExponents]:
    """p against the clip fraction: how many trajectories of at most 50 steps had which."""
    chosen = params(from_step=from_step, to_step=to_step)
    return Call("GET", job_path(job_id, "/exponents"), reads(JobExponents), chosen)


def trajectories(
    job_id: str,
    step: int | None = None,
    offset: int | None = None,
    limit: int | None = None,
    sort: str | None = None,
) -> Call[TrajectoryPage]:
    chosen = params(step=step, offset=offset, limit=limit, sort=sort)
    return Call("GET", job_path(job_id, "/trajectories"), reads(TrajectoryPage), chosen)


def trajectory(job_id: str, step: int, index: int) -> Call[Trajectory]:
    return Call("GET", job_path(job_id, f"/trajectories/{step}/{index}"), reads(Trajectory))


def trajectory_tokens(job_id: str, step: int, index: int) -> Call[RecordedTokens]:
    path = job_path(job_id, f"/trajectories/{step}/{index}/tokens")
    return Call("GET", path, reads(RecordedTokens))


def logs(
    job_id: str, attempt: int | None = None, offset: int | None = None, node_rank: int | None = None
) -> Call[LogText]:
    asked = params(attempt=attempt, offset=offset, node_rank=node_rank)
    return Call("GET", job_path(job_id, "/logs"), reads(LogText), asked)


def checkpoints(job_id: str) -> Call[CheckpointList]:
    return Call("GET", job_path(job_id, "/checkpoints"), reads(CheckpointList))


def delete_checkpoint(job_id: str, step: int) -> Call[None]:
    return Call("DELETE", job_path(job_id, f"/checkpoints/{step}"), nothing)


def pin_checkpoint(job_id: str, step: int) -> Call[None]:
    """Keep it, whatever the spec or the project's retention says."""
    return Call("PUT", job_path(job_id, f"/checkpoints/{step}/pin"), nothing)


def unpin_checkpoint(job_id: str, step: int) -> Call[None]:
    return Call("DELETE", job_path(job_id, f"/checkpoints/{step}/pin"), nothing)


def delete_files(job_id: str) -> Call[None]:
    """Delete the final model; the job and its numbers stay."""
    return Call("DELETE", job_path(job_id, "/files"), nothing)


def files(job_id: str) -> Call[FileList]:
    return Call("GET", job_path(job_id, "/files"), reads(FileList))


def checkpoint(job_id: str, step: str) -> Call[Origin]:
    """The files of a checkpoint's weights; `step` is a number, or best."""
    return Call("GET", job_path(job_id, f"/checkpoints/{step}/files"), reads(Origin))


def checkpoint_file(job_id: str, step: str, path: str) -> Call[None]:
    """One of them; the body is the file."""
    return Call("GET", job_path(job_id, f"/checkpoints/{step}/files/{quote(path)}"), nothing)


def origin_file(job_id: str, owner: str, path: str) -> Call[None]:
    """A file of the job `owner` that a fork began with; the body is the file."""
    return Call("GET", job_path(job_id, f"/origin/{quote(owner, safe='')}/files/{quote(path)}"), nothing)


def file(job_id: str, path: str) -> Call[None]:
    """One file of the final model; the body is the file."""
    return Call("GET", job_path(job_id, f"/files/{quote(path)}"), nothing)


def events(job_id: str, after: int) -> Call[None]:
    """The event stream: text/event-stream, from the event after `after` on."""
    headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
    return Call("GET", job_path(job_id, "/events"), nothing, params(after=after), headers=headers)


def replay(
    job_id: str,
    step: int,
    algorithm: str | None = None,
    changes: Mapping[str, JsonValue] | None = None,
) -> Call[AskedReplay]:
    """Compute a recorded step again, under its own or another objective; poll get_replay for the end.

    `changes` are fields of the objective; the same question gives the stored replay.
    """
    body = ReplayRequest(step=step, algorithm=algorithm, set=dict(changes or {})).model_dump(mode="json")
    return Call("POST", job_path(job_id, "/replays"), reads(AskedReplay), json=body)


def replays(job_id: str, step: int | None = None, limit: int | None = None) -> Call[ReplayList]:
    return Call("GET", job_path(job_id, "/replays"), reads(ReplayList), params(step=step, limit=limit))


def get_replay(job_id: str, replay_id: str) -> Call[Replay]:
    return Call("GET", _replay_path(job_id, replay_id), reads(Replay))


def replay_result(job_id: str, replay_id: str) -> Call[ReplayResult]:
    return Call("GET", _replay_path(job_id, replay_id, "/result"), reads(ReplayResult))


def replay_tokens(job_id: str, replay_id: str, index: int) -> Call[ReplayedTokens]:
    return Call("GET", _replay_path(job_id, replay_id, f"/tokens/{index}"), reads(ReplayedTokens))


def delete_replay(job_id: str, replay_id: str) -> Call[None]:
    """Delete a replay that does not run."""
    return Call("DELETE", _replay_path(job_id, replay_id), nothing)


def _replay_path(job_id: str, replay_id: str, rest: str = "") -> str:
    return job_path(job_id, f"/replays/{quote(replay_id, safe='')}{rest}")


def datasets(
    cursor: str | None = None, limit: int | None = None, project: str | None = None
) -> Call[DatasetList]:
    """Datasets, newest first; pass `page.next` as `cursor` for the next page."""
    chosen = params(project=project, cursor=cursor, limit=limit)
    return Call("GET", "/v1/datasets", reads(DatasetList), chosen)


def get_dataset(dataset_id: str) -> Call[Dataset]:
    return Call("GET", f"/v1/datasets/{quote(dataset_id, safe='')}", reads(Dataset))


def delete_dataset(dataset_id: str) -> Call[None]:
    """Delete an uploaded dataset that no live job trains on."""
    return Call("DELETE", f"/v1/datasets/{quote(dataset_id, safe='')}", nothing)


def upload_dataset(project: str | None = None) -> Call[Dataset]:
    """The body is a form with the fields `file` and `name`: see Client.upload_dataset."""
    return Call("POST", "/v1/datasets", reads(Dataset), params(project=project))


def metric_names() -> Call[dict[str, MetricInfo]]:
    return Call("GET", "/v1/metric-names", _metric_names)


def ready() -> Call[Readiness]:
    """Whether all parts of the service work, and which do not; raises ApiError if the server can't answer."""
    return Call("GET", "/readyz", reads(Readiness))


def dataset_name(path: Path, name: str | None) -> str:
    return name if name is not None else path.stem

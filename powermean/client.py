"""The Python client for scripts."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
from pydantic import JsonValue

from powermean import rest
from powermean.connection import Connection
from powermean.contracts.api import (
    CheckpointList,
    Dataset,
    DatasetList,
    Event,
    FileList,
    Job,
    JobPage,
    JobState,
    LoginCode,
    LogText,
    NodeList,
    SubmittedJob,
)
from powermean.contracts.engines import EngineService, EngineServiceList, EngineSpec
from powermean.contracts.health import JobHealth
from powermean.contracts.job import JobSpec
from powermean.contracts.metrics import MetricInfo, MetricsHistory
from powermean.contracts.replays import AskedReplay, Replay, ReplayedTokens, ReplayList, ReplayResult
from powermean.contracts.staleness import JobStaleness
from powermean.contracts.token_records import RecordedTokens
from powermean.contracts.trajectories import Trajectory, TrajectoryPage
from powermean.deprecations import renamed
from powermean.home import api_key, server_url
from powermean.rest import ApiError, ServerUnreachableError
from powermean.sse import read_events

EVENT_SILENCE_S = 60.0  # the server sends a comment more often than that: silence is a dead connection
RETRY_S = 1.0


class Client(Connection):
    """A synchronous client. Every method raises ApiError when refused, ServerUnreachableError when
    unanswered.

    Without arguments it talks to POWERMEAN_URL with POWERMEAN_API_KEY, or else to the service that
    `powermean up` runs in this folder.
    """

    def __init__(self, url: str | None = None, key: str | None = None) -> None:
        super().__init__(url or server_url(), key or api_key())

    def create_job(
        self, spec: JobSpec | Mapping[str, Any], idempotency_key: str | None = None
    ) -> SubmittedJob:
        """Submit a job. With the same `idempotency_key` a repeated call returns the first job."""
        return self._run(rest.create_job(spec, idempotency_key))

    def get_job(self, job_id: str) -> Job:
        return self._run(rest.get_job(job_id))

    def list_jobs(
        self,
        state: JobState | str | None = None,
        name: str | None = None,
        cursor: str | None = None,
        limit: int | None = None,
    ) -> JobPage:
        """Jobs, newest first; pass `page.next` as `cursor` for the next page."""
        return self._run(rest.list_jobs(state, name, cursor, limit))

    def cancel_job(self, job_id: str) -> Job:
        return self._run(rest.cancel_job(job_id))

    def metrics(
        self,
        job_id: str,
        names: Iterable[str],
        from_step: int | None = None,
        to_step: int | None = None,
        max_points: int | None = None,
    ) -> MetricsHistory:
        return self._run(rest.metrics(job_id, names, from_step, to_step, max_points))

    def health(self, job_id: str) -> JobHealth:
        """What the last steps say about the run, the worst first."""
        return self._run(rest.health(job_id))

    def staleness(
        self,
        job_id: str,
        steps: int | None = None,
        from_step: int | None = None,
        to_step: int | None = None,
    ) -> JobStaleness:
        """p, ESS and mismatch by staleness, over the newest `steps` steps or a range of them."""
        return self._run(rest.staleness(job_id, steps, from_step, to_step))

    lag = renamed("lag", staleness)

    def trajectories(
        self,
        job_id: str,
        step: int | None = None,
        offset: int | None = None,
        limit: int | None = None,
        sort: str | None = None,
    ) -> TrajectoryPage:
        return self._run(rest.trajectories(job_id, step, offset, limit, sort))

    def trajectory(self, job_id: str, step: int, index: int) -> Trajectory:
        return self._run(rest.trajectory(job_id, step, index))

    def trajectory_tokens(self, job_id: str, step: int, index: int) -> RecordedTokens:
        return self._run(rest.trajectory_tokens(job_id, step, index))

    def replay(
        self,
        job_id: str,
        step: int,
        algorithm: str | None = None,
        changes: Mapping[str, JsonValue] | None = None,
    ) -> AskedReplay:
        """Compute a recorded step again, under its own or another objective; poll get_replay for the end.

        `changes` are fields of the objective; the same question gives the stored replay.
        """
        return self._run(rest.replay(job_id, step, algorithm, changes))

    def replays(self, job_id: str, step: int | None = None, limit: int | None = None) -> ReplayList:
        return self._run(rest.replays(job_id, step, limit))

    def get_replay(self, job_id: str, replay_id: str) -> Replay:
        return self._run(rest.get_replay(job_id, replay_id))

    def replay_result(self, job_id: str, replay_id: str) -> ReplayResult:
        return self._run(rest.replay_result(job_id, replay_id))

    def replay_tokens(self, job_id: str, replay_id: str, index: int) -> ReplayedTokens:
        return self._run(rest.replay_tokens(job_id, replay_id, index))

    def logs(self, job_id: str, attempt: int | None = None, offset: int | None = None) -> LogText:
        return self._run(rest.logs(job_id, attempt, offset))

    def checkpoints(self, job_id: str) -> CheckpointList:
        return self._run(rest.checkpoints(job_id))

    def files(self, job_id: str) -> FileList:
        return self._run(rest.files(job_id))

    def datasets(self) -> DatasetList:
        return self._run(rest.datasets())

    def get_dataset(self, dataset_id: str) -> Dataset:
        return self._run(rest.get_dataset(dataset_id))

    def nodes(self) -> NodeList:
        return self._run(rest.nodes())

    def engines(self) -> EngineServiceList:
        return self._run(rest.engines())

    def get_engine(self, engine_id: str) -> EngineService:
        return self._run(rest.get_engine(engine_id))

    def create_engine(self, spec: EngineSpec) -> EngineService:
        """Declare an engine that LoRA jobs on its model share. For administrators."""
        return self._run(rest.create_engine(spec))

    def remove_engine(self, engine_id: str) -> EngineService:
        """Let it take no new jobs, and go when its present ones have ended. For administrators."""
        return self._run(rest.remove_engine(engine_id))

    def metric_names(self) -> dict[str, MetricInfo]:
        return self._run(rest.metric_names())

    def login_code(self) -> LoginCode:
        """A code for one sign-in of a browser: open {url}/login/{code}."""
        return self._run(rest.login_code())

    def ready(self) -> None:
        """Return when the server can work; raises otherwise."""
        self._run(rest.ready())

    def upload_dataset(self, path: Path | str, name: str | None = None) -> Dataset:
        """Upload a JSONL file: one object a line."""
        path = Path(path)
        with path.open("rb") as body:
            return self._run(
                rest.upload_dataset(),
                files={"file": (path.name, body, "application/x-ndjson")},
                data={"name": rest.dataset_name(path, name)},
                timeout=httpx.Timeout(600, connect=5),
            )

    def download(self, job_id: str, path: str, target: Path | str) -> None:
        """Write one file of the final model to `target`; a file that is there is complete."""
        target = Path(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part-{os.getpid()}")
        call = rest.file(job_id, path)
        request = self._http.build_request(**call.keywords())
        try:
            response = self._http.send(request, stream=True)
            try:
                if not response.is_success:
                    response.read()
                call.parse(response)
                with part.open("wb") as out:
                    for block in response.iter_bytes(1 << 20):
                        out.write(block)
            finally:
                response.close()
            part.replace(target)
        except httpx.TransportError as error:
            raise ServerUnreachableError(self.url, error) from error
        finally:
            part.unlink(missing_ok=True)

    def events(self, job_id: str, after: int = 0, patience_s: float = 300.0) -> Iterator[Event]:
        """What happens to a job after event number `after`, until the job has ended.

        Lost connections are taken up again after the last event seen, so that nothing is missed or given
        twice. Raises when refused, or when no connection succeeds for `patience_s` seconds.
        """
        reached = time.monotonic()
        while True:
            try:
                for event in self._connected_events(job_id, after):
                    after = event.seq
                    yield event
                reached = time.monotonic()
                job = self.get_job(job_id)
                if job.state.final and job.seq <= after:
                    return
            except (ServerUnreachableError, ApiError) as error:
                if not error.retryable or time.monotonic() - reached > patience_s:
                    raise
            time.sleep(RETRY_S)

    def _connected_events(self, job_id: str, after: int) -> Iterator[Event]:
        """Events of one connection; ends when the server ends the stream or the job has ended."""
        call = rest.events(job_id, after)
        request = self._http.build_request(
            **call.keywords(), timeout=httpx.Timeout(EVENT_SILENCE_S, connect=5)
        )
        try:
            response = self._http.send(request, stream=True)
            try:
                if not response.is_success:
                    response.read()
                call.parse(response)
                for event in read_events(response.iter_lines()):
                    yield event
                    if event.kind == "state" and JobState(str(event.data["state"])).final:
                        return
            finally:
                response.close()
        except httpx.TransportError as error:
            raise ServerUnreachableError(self.url, error) from error

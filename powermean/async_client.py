"""The Python client for programs with an event loop."""

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import JsonValue

from powermean import rest
from powermean.connection import TIMEOUT, T, through_proxy
from powermean.contracts.api import (
    CheckpointList,
    Dataset,
    DatasetList,
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
from powermean.rest import Call, ServerUnreachableError


class AsyncClient:
    """An asynchronous client of the same calls, authorised by a key or by a browser session's cookies."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        cookies: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if cookies:
            headers["Origin"] = self.url  # the server wants it of whoever comes with a cookie
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            cookies=dict(cookies or {}),
            transport=transport,
            timeout=TIMEOUT,
            trust_env=through_proxy(self.url),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def _run(self, call: Call[T]) -> T:
        try:
            response = await self._http.send(self._http.build_request(**call.keywords()))
        except httpx.TransportError as error:
            raise ServerUnreachableError(self.url, error) from error
        return call.parse(response)

    async def create_job(
        self, spec: JobSpec | Mapping[str, Any], idempotency_key: str | None = None
    ) -> SubmittedJob:
        return await self._run(rest.create_job(spec, idempotency_key))

    async def get_job(self, job_id: str) -> Job:
        return await self._run(rest.get_job(job_id))

    async def list_jobs(
        self,
        state: JobState | str | None = None,
        name: str | None = None,
        cursor: str | None = None,
        limit: int | None = None,
    ) -> JobPage:
        return await self._run(rest.list_jobs(state, name, cursor, limit))

    async def cancel_job(self, job_id: str) -> Job:
        return await self._run(rest.cancel_job(job_id))

    async def metrics(
        self,
        job_id: str,
        names: Iterable[str],
        from_step: int | None = None,
        to_step: int | None = None,
        max_points: int | None = None,
    ) -> MetricsHistory:
        return await self._run(rest.metrics(job_id, names, from_step, to_step, max_points))

    async def health(self, job_id: str) -> JobHealth:
        return await self._run(rest.health(job_id))

    async def staleness(
        self,
        job_id: str,
        steps: int | None = None,
        from_step: int | None = None,
        to_step: int | None = None,
    ) -> JobStaleness:
        return await self._run(rest.staleness(job_id, steps, from_step, to_step))

    lag = renamed("lag", staleness)

    async def trajectories(
        self,
        job_id: str,
        step: int | None = None,
        offset: int | None = None,
        limit: int | None = None,
        sort: str | None = None,
    ) -> TrajectoryPage:
        return await self._run(rest.trajectories(job_id, step, offset, limit, sort))

    async def trajectory(self, job_id: str, step: int, index: int) -> Trajectory:
        return await self._run(rest.trajectory(job_id, step, index))

    async def trajectory_tokens(self, job_id: str, step: int, index: int) -> RecordedTokens:
        return await self._run(rest.trajectory_tokens(job_id, step, index))

    async def replay(
        self,
        job_id: str,
        step: int,
        algorithm: str | None = None,
        changes: Mapping[str, JsonValue] | None = None,
    ) -> AskedReplay:
        return await self._run(rest.replay(job_id, step, algorithm, changes))

    async def replays(self, job_id: str, step: int | None = None, limit: int | None = None) -> ReplayList:
        return await self._run(rest.replays(job_id, step, limit))

    async def get_replay(self, job_id: str, replay_id: str) -> Replay:
        return await self._run(rest.get_replay(job_id, replay_id))

    async def replay_result(self, job_id: str, replay_id: str) -> ReplayResult:
        return await self._run(rest.replay_result(job_id, replay_id))

    async def replay_tokens(self, job_id: str, replay_id: str, index: int) -> ReplayedTokens:
        return await self._run(rest.replay_tokens(job_id, replay_id, index))

    async def logs(self, job_id: str, attempt: int | None = None, offset: int | None = None) -> LogText:
        return await self._run(rest.logs(job_id, attempt, offset))

    async def checkpoints(self, job_id: str) -> CheckpointList:
        return await self._run(rest.checkpoints(job_id))

    async def files(self, job_id: str) -> FileList:
        return await self._run(rest.files(job_id))

    async def datasets(self) -> DatasetList:
        return await self._run(rest.datasets())

    async def get_dataset(self, dataset_id: str) -> Dataset:
        return await self._run(rest.get_dataset(dataset_id))

    async def nodes(self) -> NodeList:
        return await self._run(rest.nodes())

    async def engines(self) -> EngineServiceList:
        return await self._run(rest.engines())

    async def get_engine(self, engine_id: str) -> EngineService:
        return await self._run(rest.get_engine(engine_id))

    async def create_engine(self, spec: EngineSpec) -> EngineService:
        return await self._run(rest.create_engine(spec))

    async def remove_engine(self, engine_id: str) -> EngineService:
        return await self._run(rest.remove_engine(engine_id))

    async def metric_names(self) -> dict[str, MetricInfo]:
        return await self._run(rest.metric_names())

    async def login_code(self) -> LoginCode:
        return await self._run(rest.login_code())

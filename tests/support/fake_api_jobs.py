"""What the stand-in for the REST API answers about jobs, what they record, and replays."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from pydantic import ValidationError

from powermean.contracts.api import (
    CheckpointList,
    ErrorBody,
    FieldError,
    Job,
    JobPage,
    JobState,
    JobSummary,
    LogText,
    SpecSource,
)
from powermean.contracts.exponents import JobExponents
from powermean.contracts.health import JobHealth
from powermean.contracts.job import JobSpec
from powermean.contracts.metrics import METRICS, MetricsHistory
from powermean.contracts.priorities import PriorityChange
from powermean.contracts.replays import Replay, ReplayList, ReplayResult
from powermean.contracts.staleness import JobStaleness
from powermean.contracts.token_records import RecordedTokens
from powermean.contracts.trajectories import Trajectory, TrajectoryPage
from powermean.spec_yaml import SpecTextError, read_spec
from tests.support.fake_api import NOW, PART, FakeApi, FakeJob, RefusalError, signed_in


def _create(api: FakeApi, request: Request, given: object) -> Job:
    try:
        spec = JobSpec.model_validate(given)
    except ValidationError as error:
        fields = tuple(
            FieldError(path=".".join(map(str, e["loc"])), message=e["msg"], remedy="Mend it.")
            for e in error.errors()
        )
        raise RefusalError(
            422,
            ErrorBody(
                code="invalid",
                message=f"{fields[0].path}: {fields[0].message}"
                + (f" (and {len(fields) - 1} more)" if len(fields) > 1 else ""),
                fields=fields,
            ),
        ) from error
    key = request.headers["idempotency-key"]
    if key not in api.keys_seen:
        api.keys_seen.append(key)
        api.add_job(f"job-new{len(api.keys_seen)}", spec.model_dump(mode="json"))
    return api.jobs[f"job-new{api.keys_seen.index(key) + 1}"].job


def add_jobs(app: FastAPI, api: FakeApi) -> None:
    @app.get("/v1/jobs")
    def list_jobs(
        request: Request,
        state: str | None = None,
        name: str | None = None,
        cursor: str = "0",
        limit: int = 50,
        sort: str = "-created",
    ) -> JobPage:
        signed_in(request)
        api.sorts.append(sort)
        found = [fake.job for fake in api.jobs.values() if state in (None, fake.job.state)]
        found = [job for job in found if name is None or name in job.name]
        start = int(cursor)
        items = tuple(
            JobSummary(**{n: getattr(job, n) for n in JobSummary.model_fields})
            for job in found[start : start + limit]
        )
        return JobPage(items=items, next=str(start + limit) if start + limit < len(found) else None)

    @app.post("/v1/jobs", status_code=202)
    async def create_job(request: Request) -> Job:
        signed_in(request)
        return _create(api, request, await request.json())

    @app.post("/v1/jobs/text", status_code=202)
    def create_job_from_text(request: Request, source: SpecSource) -> Job:
        signed_in(request)
        try:
            given = read_spec(source.text).fields
        except SpecTextError as error:
            body = ErrorBody(code="unreadable_spec", message=error.message, remedy=error.remedy)
            raise RefusalError(422, body) from error
        made = _create(api, request, given)
        api.jobs[made.id].text = source.text
        return made

    @app.get("/v1/jobs/{job_id}/text")
    def job_text(request: Request, job_id: str) -> SpecSource:
        signed_in(request)
        return SpecSource(text=api.find(job_id).text)

    @app.get("/v1/jobs/{job_id}")
    def get_job(request: Request, job_id: str) -> Job:
        signed_in(request)
        return api.find(job_id).job

    @app.post("/v1/jobs/{job_id}/cancel")
    def cancel_job(request: Request, job_id: str) -> Job:
        signed_in(request)
        fake = api.find(job_id)
        fake.set_state(JobState.CANCELLED, cancel_requested=True, finished_at=NOW + timedelta(minutes=3))
        return fake.job

    @app.post("/v1/jobs/{job_id}/pause")
    def pause_job(request: Request, job_id: str) -> Job:
        signed_in(request)
        fake = api.find(job_id)
        fake.set_state(fake.job.state, pause_requested=True)
        return fake.job

    @app.post("/v1/jobs/{job_id}/resume")
    def resume_job(request: Request, job_id: str) -> Job:
        signed_in(request)
        fake = api.find(job_id)
        fake.set_state(JobState.QUEUED)
        return fake.job

    @app.post("/v1/jobs/{job_id}/priority")
    def set_priority(request: Request, job_id: str, wanted: PriorityChange) -> Job:
        signed_in(request)
        if wanted.priority == "high":
            raise RefusalError(403, ErrorBody(code="forbidden", message="high needs a maintainer"))
        api.find(job_id).job = api.find(job_id).job.model_copy(update={"priority": wanted.priority})
        return api.find(job_id).job


def add_records(app: FastAPI, api: FakeApi) -> None:
    @app.get("/v1/metric-names")
    def metric_names(request: Request) -> dict[str, Any]:
        signed_in(request)
        return {name: info.model_dump() for name, info in METRICS.items()}

    @app.get("/v1/jobs/{job_id}/metrics")
    def metrics(request: Request, job_id: str, from_step: int = 0, to_step: int = 2**31) -> MetricsHistory:
        signed_in(request)
        return api.find(job_id).history(request.query_params.getlist("name"), from_step, to_step)

    @app.get("/v1/jobs/{job_id}/health")
    def health(request: Request, job_id: str) -> JobHealth:
        signed_in(request)
        found = api.find(job_id).finding
        return JobHealth(level=found.level, first_step=None, last_step=None, findings=(found,))

    @app.get("/v1/jobs/{job_id}/exponents")
    def exponents(request: Request, job_id: str) -> JobExponents:
        signed_in(request)
        api.find(job_id)
        return JobExponents(steps=(), rows=())

    @app.get("/v1/jobs/{job_id}/staleness")
    def staleness(request: Request, job_id: str) -> JobStaleness:
        signed_in(request)
        return api.find(job_id).staleness

    @app.get("/v1/jobs/{job_id}/trajectories")
    def trajectories(
        request: Request,
        job_id: str,
        step: int | None = None,
        offset: int = 0,
        limit: int = 64,
        sort: str = "index",
    ) -> TrajectoryPage:
        signed_in(request)
        fake = api.find(job_id)
        steps = tuple(sorted(fake.trajectories))
        if step is None and not steps:
            return TrajectoryPage(step=0, items=(), total=0, steps=())
        chosen = steps[-1] if step is None else step
        if chosen not in fake.trajectories:
            raise RefusalError(404, ErrorBody(code="not_found", message=f"step {chosen} has no trajectories"))
        items = fake.trajectories[chosen]
        if sort != "index":
            items = sorted(items, key=lambda one: _rank(one, sort.lstrip("-")), reverse=sort.startswith("-"))
        return TrajectoryPage(
            step=chosen, items=tuple(items[offset : offset + limit]), total=len(items), steps=steps
        )

    @app.get("/v1/jobs/{job_id}/trajectories/{step}/{index}/tokens")
    def tokens(request: Request, job_id: str, step: int, index: int) -> RecordedTokens:
        signed_in(request)
        fake = api.find(job_id)
        if (step, index) not in fake.tokens:
            raise RefusalError(
                404, ErrorBody(code="not_found", message=f"no tokens of {step}/{index} are left")
            )
        return fake.tokens[step, index]

    @app.get("/v1/jobs/{job_id}/checkpoints")
    def checkpoints(request: Request, job_id: str) -> CheckpointList:
        signed_in(request)
        return CheckpointList(items=tuple(api.find(job_id).checkpoints))

    @app.get("/v1/jobs/{job_id}/logs")
    def logs(
        request: Request, job_id: str, attempt: int | None = None, offset: int = 0, node_rank: int = 0
    ) -> LogText:
        signed_in(request)
        fake = api.find(job_id)
        number = attempt or fake.job.attempt
        text = fake.other_logs.get((number, node_rank), "") if node_rank else fake.logs.get(number, "")
        part = text[offset : offset + PART]
        return LogText(
            attempt=number, node_rank=node_rank, offset=offset, next_offset=offset + len(part), text=part
        )

    @app.get("/v1/jobs/{job_id}/events")
    async def events(request: Request, job_id: str, after: int = 0) -> StreamingResponse:
        signed_in(request)
        seq = int(request.headers.get("last-event-id", after))
        return StreamingResponse(_frames(api, api.find(job_id), seq), media_type="text/event-stream")


def add_replays(app: FastAPI, api: FakeApi) -> None:
    @app.post("/v1/jobs/{job_id}/replays", status_code=202)
    async def ask(request: Request, job_id: str) -> Replay:
        signed_in(request)
        api.find(job_id)
        api.asked.append(await request.json())
        if api.asked[-1]["algorithm"] == "nonsense":
            wrong = FieldError(path="algorithm", message="no objective 'nonsense'", remedy="One of pmpo.")
            raise RefusalError(422, ErrorBody(code="invalid", message=wrong.message, fields=(wrong,)))
        return next(iter(api.replays.values()))

    @app.get("/v1/jobs/{job_id}/replays")
    def list_replays(request: Request, job_id: str, step: int | None = None) -> ReplayList:
        signed_in(request)
        found = [one for one in api.replays.values() if one.job_id == job_id and step in (None, one.step)]
        return ReplayList(items=tuple(found))

    @app.get("/v1/jobs/{job_id}/replays/{replay_id}")
    def get_replay(request: Request, job_id: str, replay_id: str) -> Replay:
        signed_in(request)
        if replay_id not in api.replays:
            raise RefusalError(404, ErrorBody(code="not_found", message=f"no replay {replay_id}"))
        return api.replays[replay_id]

    @app.get("/v1/jobs/{job_id}/replays/{replay_id}/result")
    def get_result(request: Request, job_id: str, replay_id: str) -> ReplayResult:
        signed_in(request)
        return api.results[replay_id]


def _rank(item: Trajectory, name: str) -> float:
    if name == "p":
        return next((u.p for u in reversed(item.updates) if u.p is not None), 2.0)
    return float(getattr(item, name))


async def _frames(api: FakeApi, fake: FakeJob, seq: int) -> AsyncIterator[str]:
    cut = api.cut
    yield "retry: 500\n\n"
    while api.cut == cut:
        for number, kind, data in fake.events:
            if number > seq:
                seq = number
                yield f"id: {number}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"
        if fake.job.state.final:
            yield "event: end\ndata: {}\n\n"
            return
        await asyncio.sleep(0.05)

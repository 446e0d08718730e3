"""Why this p? A step replayed under its own or another objective: the form and the result."""

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dashboard import api, assets
from dashboard.api import require_same_origin
from dashboard.parameters import path_number
from dashboard.problems import said_once
from dashboard.rendering import page
from powermean.calls import ApiError
from powermean.contracts.api import ErrorBody
from powermean.contracts.replays import OBJECTIVES, ReplayedTrajectory, ReplayedUpdate, parse_settings

MOST_ROWS = 200
REFRESH_S = 2


@dataclass(frozen=True)
class Change:
    """One trajectory in one update."""

    trajectory: ReplayedTrajectory
    update: ReplayedUpdate

    @property
    def size(self) -> tuple[float, float]:
        """The change of p, then of the loss."""
        before, after = self.update.recorded, self.update.replayed
        return _apart(before.p, after.p), _apart(before.loss, after.loss)


def _apart(before: float | None, after: float | None) -> float:
    return 0.0 if before is None or after is None else abs(after - before)


def changes(trajectories: tuple[ReplayedTrajectory, ...]) -> list[Change]:
    """Every trajectory in every update, most changed first."""
    found = [Change(one, update) for one in trajectories for update in one.updates]
    return sorted(found, key=lambda change: change.size, reverse=True)


def points(found: list[Change]) -> list[list[float]]:
    """[recorded p, replayed p, trajectory, update] for those with a p in both."""
    return [
        [before, after, change.trajectory.index, change.update.update]
        for change in found
        if (before := change.update.recorded.p) is not None
        and (after := change.update.replayed.p) is not None
    ]


async def form_page(request: Request) -> Response:
    """GET /jobs/{id}/steps/{step}/replays: the form, and the replays of the step."""
    return await _form(request)


async def ask(request: Request) -> Response:
    """POST /jobs/{id}/steps/{step}/replays: go to the replay's page, or show the form with the error."""
    require_same_origin(request)
    job_id, step = request.path_params["job_id"], path_number(request, "step")
    form = await request.form(max_fields=10)
    algorithm, text = str(form.get("algorithm") or "") or None, str(form.get("set") or "")
    try:
        settings = parse_settings(text.split())
    except ValueError as error:
        wrong = ErrorBody(
            code="invalid", message=str(error), remedy="Write field=value, separated by spaces."
        )
        return await _form(request, algorithm, text, wrong, 422)
    try:
        async with api.client(request) as client:
            replay = await client.replay(job_id, step, algorithm, settings)
    except ApiError as refused:
        if refused.status == 401:
            raise
        return await _form(request, algorithm, text, said_once(refused.body), refused.status)
    return RedirectResponse(f"/jobs/{job_id}/replays/{replay.id}", status_code=303)


async def _form(
    request: Request,
    algorithm: str | None = None,
    text: str = "",
    error: ErrorBody | None = None,
    status: int = 200,
) -> Response:
    job_id, step = request.path_params["job_id"], path_number(request, "step")
    async with api.client(request) as client:
        job = await client.get_job(job_id)
        listed = await client.replays(job_id, step)
    return page(
        request,
        "replays.html",
        status=status,
        job=job,
        step=step,
        replays=listed.items,
        objectives=tuple(OBJECTIVES),
        algorithm=algorithm,
        settings=text,
        error=error,
    )


async def replay_page(request: Request) -> Response:
    """GET /jobs/{id}/replays/{replay}: refreshes itself until the replay has ended."""
    job_id, replay_id = request.path_params["job_id"], request.path_params["replay_id"]
    async with api.client(request) as client:
        job = await client.get_job(job_id)
        replay = await client.get_replay(job_id, replay_id)
        result = await client.replay_result(job_id, replay_id) if replay.summary is not None else None
    found = changes(result.trajectories) if result is not None else []
    return page(
        request,
        "replay.html",
        job=job,
        replay=replay,
        summary=replay.summary,
        changes=found[:MOST_ROWS],
        total=len(found),
        points=points(found),
        objectives=tuple(OBJECTIVES),
        refresh_s=REFRESH_S,
        install=assets.INSTALL,
    )

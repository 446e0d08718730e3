"""The trajectories of a step: groups of completions, with each update's numbers."""

from dataclasses import dataclass
from itertools import groupby

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dashboard import api
from dashboard.parameters import path_number, whole_number
from dashboard.rendering import page
from dashboard.stages import stages
from powermean.async_client import AsyncClient
from powermean.calls import ApiError
from powermean.contracts.replays import OBJECTIVES
from powermean.contracts.trajectories import Trajectory, TrajectoryPage

PAGE_SIZE = 64
SORTS = {
    "index": "by group",
    "reward": "lowest reward first",
    "-reward": "highest reward first",
    "advantage": "lowest advantage first",
    "-advantage": "highest advantage first",
    "p": "lowest p first",
    "-p": "highest p first",
}


@dataclass(frozen=True)
class Group:
    """Completions of one prompt, adjacent on the page."""

    number: int
    items: tuple[Trajectory, ...]

    @property
    def first(self) -> Trajectory:
        return self.items[0]

    @property
    def mean_reward(self) -> float:
        return sum(item.reward for item in self.items) / len(self.items)

    @property
    def spread(self) -> bool:
        """Whether rewards differ; otherwise there is no advantage and nothing to learn."""
        return len({item.reward for item in self.items}) > 1


def neighbours(steps: tuple[int, ...], step: int) -> tuple[int | None, int | None]:
    """The recorded steps before and after this one."""
    before = [s for s in steps if s < step]
    after = [s for s in steps if s > step]
    return (max(before, default=None), min(after, default=None))


def grouped(items: tuple[Trajectory, ...]) -> list[Group]:
    """Neighbouring trajectories of the same group together, in the order given."""
    return [Group(number, tuple(found)) for number, found in groupby(items, key=lambda item: item.group)]


def _step(request: Request) -> int | None:
    return None if request.path_params["step"] == "latest" else path_number(request, "step")


async def _trajectories(
    client: AsyncClient, job_id: str, step: int | None, offset: int, sort: str
) -> TrajectoryPage:
    """The step's page; if the step has no trajectories, an empty page with the steps that have some."""
    try:
        return await client.trajectories(job_id, step, offset, PAGE_SIZE, sort)
    except ApiError as refused:
        if refused.status != 404 or step is None:
            raise
    newest = await client.trajectories(job_id, limit=1)
    return newest.model_copy(update={"step": step, "items": (), "total": 0})


async def step_page(request: Request) -> Response:
    """GET /jobs/{id}/steps/{step}?sort=&offset=; `latest` goes to the newest recorded step."""
    job_id = request.path_params["job_id"]
    step = _step(request)
    sort = request.query_params.get("sort") or "index"
    if sort not in SORTS:
        raise HTTPException(400, f"sort must be one of {', '.join(SORTS)}")
    offset = whole_number(request, "offset", least=0) or 0
    async with api.client(request) as client:
        job = await client.get_job(job_id)
        found = await _trajectories(client, job_id, step, offset, sort)
    if step is None and found.steps:
        return RedirectResponse(f"/jobs/{job_id}/steps/{found.step}", status_code=303)
    before, after = neighbours(found.steps, found.step)
    return page(
        request,
        "step.html",
        job=job,
        stages=stages(job),
        found=found,
        groups=grouped(found.items),
        by_group=sort == "index",
        replayable=any(item.has_tokens for item in found.items),
        objectives=tuple(OBJECTIVES),
        sorts=SORTS,
        sort=sort,
        offset=offset,
        page_size=PAGE_SIZE,
        before=before,
        after=after,
        status=200 if found.items or step is None else 404,
    )

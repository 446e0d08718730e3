"""One trajectory: each update's numbers for it and for each of its tokens."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from dashboard import api
from dashboard.columns import columns
from dashboard.parameters import path_number, whole_number
from dashboard.recorded_tokens import COLOURINGS, chosen_colouring, recorded_tokens
from dashboard.rendering import page
from dashboard.token_view import legend, share, tokens_of
from powermean.calls import spec_of
from powermean.contracts.token_records import TrajectoryTokens, UpdateTokens
from powermean.contracts.trajectories import Trajectory, TrajectoryPage, TrajectoryRow, TrajectoryUpdate


def chosen_update(record: TrajectoryTokens, wanted: int | None) -> UpdateTokens | None:
    """The requested update, else the last one, when the policy is farthest from the one that sampled.

    None if no update trained on the trajectory. Raises HTTPException 400, naming those that did.
    """
    if wanted is None:
        return record.updates[-1] if record.updates else None
    found = next((update for update in record.updates if update.update == wanted), None)
    if found is None:
        known = ", ".join(str(update.update) for update in record.updates) or "none"
        raise HTTPException(400, f"update must be one that trained on the trajectory ({known}), not {wanted}")
    return found


def _with_index(group: TrajectoryPage, index: int) -> Trajectory:
    found = next((item for item in group.items if item.index == index), None)
    if found is None:
        raise HTTPException(404)
    return found


async def trajectory_page(request: Request) -> Response:
    """GET /jobs/{id}/steps/{step}/trajectories/{index}?by=weight|log-ratio&update=."""
    job_id = request.path_params["job_id"]
    step, index = path_number(request, "step"), path_number(request, "index")
    colouring, wanted = chosen_colouring(request), whole_number(request, "update", least=0)
    async with api.client(request) as client:
        job = await client.get_job(job_id)
        size = spec_of(job, "rollout.group_size").rollout.group_size
        group = await client.trajectories(job_id, step, index - index % size, size, "index")
        item = _with_index(group, index)
        found = await recorded_tokens(client, job_id, step, item)
    update = chosen_update(found.record, wanted) if found.record else None
    tokens = tokens_of(found.record, update, colouring, item.graded) if found.record else []
    return page(
        request,
        "trajectory.html",
        job=job,
        step=step,
        item=item,
        group=group.items,
        total=group.total,
        found=found,
        update=update,
        tokens=tokens,
        share=share(tokens),
        clipped=sum(token.clipped for token in tokens),
        steps=legend(colouring, tokens) if update else [],
        colouring=colouring,
        colourings=COLOURINGS,
        numbers=columns(TrajectoryRow),
        by_update=columns(TrajectoryUpdate),
    )

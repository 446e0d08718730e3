"""The completions of one prompt, one below the other, with coloured tokens for comparison."""

import asyncio
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from dashboard import api
from dashboard.parameters import path_number, whole_number
from dashboard.recorded_tokens import COLOURINGS, Tokens, chosen_colouring, recorded_tokens
from dashboard.rendering import page
from dashboard.token_view import Share, Token, legend, share, tokens_of
from powermean.calls import spec_of
from powermean.contracts.trajectories import Trajectory, TrajectoryUpdate

MOST = 32  # completions on the page; each is another record to read. The others have their own pages


@dataclass(frozen=True)
class Member:
    """One completion of the group, as the chosen update saw it."""

    item: Trajectory
    found: Tokens
    tokens: list[Token]
    share: Share | None
    seen: TrajectoryUpdate | None


def updates_of(records: list[Tokens]) -> list[int]:
    """The updates that trained on at least one of them."""
    return sorted({update.update for found in records if found.record for update in found.record.updates})


async def group_page(request: Request) -> Response:
    """GET /jobs/{id}/steps/{step}/groups/{group}?by=weight|log-ratio&update=."""
    job_id = request.path_params["job_id"]
    step, group = path_number(request, "step"), path_number(request, "group")
    colouring, wanted = chosen_colouring(request), whole_number(request, "update", least=0)
    async with api.client(request) as client:
        job = await client.get_job(job_id)
        size = spec_of(job, "rollout.group_size").rollout.group_size
        listed = await client.trajectories(job_id, step, group * size, min(size, MOST), "index")
        if not listed.items:
            raise HTTPException(404)
        records = await asyncio.gather(
            *(recorded_tokens(client, job_id, step, item) for item in listed.items)
        )
    updates = updates_of(records)
    if wanted is not None and wanted not in updates:
        known = ", ".join(map(str, updates)) or "none"
        raise HTTPException(400, f"update must be one that trained on the group ({known}), not {wanted}")
    number = wanted if wanted is not None else max(updates, default=None)
    members = []
    for item, found in zip(listed.items, records, strict=True):
        update = next((u for u in found.record.updates if u.update == number), None) if found.record else None
        tokens = tokens_of(found.record, update, colouring, item.graded) if found.record else []
        seen = next((u for u in item.updates if u.update == number), None)
        members.append(Member(item, found, tokens, share(tokens), seen))
    shown = [token for member in members for token in member.tokens if token.colour]
    return page(
        request,
        "group.html",
        job=job,
        step=step,
        group=group,
        groups=-(-listed.total // size),
        left_out=size - len(members),
        members=members,
        updates=updates,
        update=number,
        steps=legend(colouring, shown),
        clipped=sum(token.clipped for token in shown),
        colouring=colouring,
        colourings=COLOURINGS,
    )

"""A trajectory's recorded tokens and their colouring, for the pages that show them."""

from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request

from dashboard.token_view import Colouring
from powermean.async_client import AsyncClient
from powermean.calls import ApiError
from powermean.contracts.token_records import TrajectoryTokens
from powermean.contracts.trajectories import Trajectory

COLOURINGS = {
    Colouring.WEIGHT: "token weight W",
    Colouring.LOG_RATIO: "log-ratio x",
}


@dataclass(frozen=True)
class Tokens:
    """A trajectory's record, or why it can't be shown."""

    record: TrajectoryTokens | None
    missing: str | None = None


def chosen_colouring(request: Request) -> Colouring:
    """The parameter `by`; anything but a colouring is a 400."""
    text = request.query_params.get("by") or Colouring.WEIGHT
    try:
        return Colouring(text)
    except ValueError as error:
        raise HTTPException(400, f"by must be one of {', '.join(Colouring)}") from error


async def recorded_tokens(client: AsyncClient, job_id: str, step: int, item: Trajectory) -> Tokens:
    """The record. If it can't be read, the rest of the page is still worth showing."""
    if not item.has_tokens:
        return Tokens(None)
    try:
        return Tokens((await client.trajectory_tokens(job_id, step, item.index)).tokens)
    except ApiError as refused:
        if refused.status == 401:
            raise
        return Tokens(None, str(refused))

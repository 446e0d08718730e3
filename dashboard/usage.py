"""GPU-hours: what people, projects and jobs held in a period."""

from datetime import UTC, datetime, time, timedelta
from typing import Final, get_args
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from dashboard import api
from dashboard.rendering import page
from powermean.contracts.sharing import UsageBy

BY: Final[tuple[UsageBy, ...]] = get_args(UsageBy)
DAYS = 30
SHOWN = 200


async def usage_page(request: Request) -> Response:
    """GET /usage?by=project&from=2026-11-01&to=2026-12-01: whole days, in UTC, the last one included."""
    by = next((one for one in BY if one == request.query_params.get("by", "project")), None)
    if by is None:
        raise HTTPException(400, f"by must be one of {', '.join(BY)}")
    today = datetime.now(UTC).date()
    last = _day(request, "to") or datetime.combine(today, time(), UTC)
    try:
        first, end = _day(request, "from") or last - timedelta(days=DAYS), last + timedelta(days=1)
    except OverflowError as error:
        raise HTTPException(400, f"to must be a day such as {today}") from error
    async with api.client(request) as client:
        found = await client.usage(by, first, end, limit=SHOWN)
    period = {"from": f"{first:%Y-%m-%d}", "to": f"{last:%Y-%m-%d}"}
    exact = {"from": found.start.isoformat(), "to": found.end.isoformat()}
    return page(
        request,
        "usage.html",
        usage=found,
        by=by,
        kinds=BY,
        period=period,
        csv=urlencode({"by": by} | exact),
    )


def _day(request: Request, name: str) -> datetime | None:
    text = request.query_params.get(name)
    if not text:
        return None
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError as error:
        raise HTTPException(400, f"{name} must be a day such as 2026-11-27") from error

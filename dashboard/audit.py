"""The audit log: of everything, for administrators and auditors, or of one project, for its maintainers."""

from datetime import UTC, date, datetime, time, timedelta
from typing import cast

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from dashboard import api
from dashboard.parameters import whole_number
from dashboard.rendering import page
from powermean.contracts.audit import Outcome

PAGE_SIZE = 50


async def audit_page(request: Request) -> Response:
    """GET /audit and GET /projects/{project}/audit, with ?person=&verb=&outcome=&since=&until=&before=."""
    names = ("person", "verb", "outcome", "since", "until")
    kept = {name: value for name in names if (value := request.query_params.get(name, "").strip())}
    if kept.get("outcome") not in (None, "allowed", "refused"):
        raise HTTPException(400, "outcome must be allowed or refused")
    name = request.path_params.get("project")
    before = whole_number(request, "before", 1)
    async with api.client(request) as client:
        found = await client.audit(
            name,
            kept.get("person"),
            kept.get("verb"),
            cast("Outcome | None", kept.get("outcome")),
            _start_of(kept, "since"),
            _start_of(kept, "until", timedelta(days=1)),
            before,
            PAGE_SIZE,
        )
        project = await client.get_project(name) if name else None
    return page(request, "audit.html", found=found, kept=kept, project=project, before=before)


def _start_of(kept: dict[str, str], name: str, later: timedelta = timedelta()) -> datetime | None:
    """The day's start in UTC, which the page shows times in."""
    if name not in kept:
        return None
    try:
        return datetime.combine(date.fromisoformat(kept[name]), time(), UTC) + later
    except (ValueError, OverflowError) as error:
        raise HTTPException(400, f"{name} must be a day, such as 2026-11-27") from error

"""An attempt's log: its tail, followed by polling."""

from starlette.requests import Request
from starlette.responses import Response

from dashboard import api
from dashboard.api import is_fragment
from dashboard.parameters import whole_number
from dashboard.rendering import page


async def log_page(request: Request) -> Response:
    """GET /jobs/{id}/log?attempt=&offset=. htmx gets what lies past the offset, and a new poller."""
    job_id = request.path_params["job_id"]
    attempt = whole_number(request, "attempt", least=1)
    offset = whole_number(request, "offset", least=0)
    async with api.client(request) as client:
        job = await client.get_job(job_id)
        log = await client.logs(job_id, attempt, offset) if job.attempts else None
    follows = log is not None and not job.state.final and log.attempt == job.attempt
    template = "fragments/log_piece.html" if is_fragment(request) else "log.html"
    return page(request, template, job=job, log=log, follows=follows)

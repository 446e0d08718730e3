"""An attempt's log: its tail, followed by polling."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from dashboard import api
from dashboard.api import is_fragment
from dashboard.parameters import whole_number
from dashboard.rendering import page
from dashboard.stages import stages
from powermean.async_client import AsyncClient
from powermean.contracts.api import Job, LogText

# A part of at least this many bytes was probably cut off by the API's limit, so there may be more.
FULL_PART = 60_000


async def tail(read: Callable[[int], Awaitable[LogText]]) -> LogText:
    """The last part of a log that can only be read from an offset and whose length is unknown.

    A short log takes one read. In a longer one, search for an offset with less than a part left: first in
    doubling steps, then by bisection.
    """
    part = await read(0)
    full = part.next_offset
    if full < FULL_PART:
        return part
    within, beyond = part, None
    while beyond is None or beyond - within.offset > full:
        offset = within.offset * 2 or full
        if beyond is not None:
            offset = (within.offset + beyond) // 2
        part = await read(offset)
        if not part.text:
            beyond = offset
        elif part.next_offset - part.offset < FULL_PART:
            return part
        else:
            within = part
    return within


async def log_page(request: Request) -> Response:
    """GET /jobs/{id}/log?attempt=&offset=; default: the tail. htmx gets what follows the offset."""
    job_id = request.path_params["job_id"]
    attempt = whole_number(request, "attempt", least=1)
    offset = whole_number(request, "offset", least=0)
    async with api.client(request) as client:
        job = await client.get_job(job_id)
        log = await _read(client, job, attempt, offset) if job.attempts else None
    follows = log is not None and not job.state.final and log.attempt == job.attempt
    template = "fragments/log_piece.html" if is_fragment(request) else "log.html"
    more = log is not None and log.next_offset - log.offset >= FULL_PART
    return page(request, template, job=job, stages=stages(job), log=log, follows=follows, more=more)


async def _read(client: AsyncClient, job: Job, attempt: int | None, offset: int | None) -> LogText:
    number = attempt or job.attempts[-1].number
    if offset is not None:
        return await client.logs(job.id, number, offset)
    return await tail(lambda start: client.logs(job.id, number, start))

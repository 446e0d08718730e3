"""An attempt's log: its tail, followed by polling; searched; downloaded."""

from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count, islice

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from dashboard import api
from dashboard.api import is_fragment
from dashboard.log_lines import Match, complete, search, without_requests
from dashboard.parameters import whole_number
from dashboard.rendering import page
from dashboard.stages import stages
from powermean.async_client import AsyncClient
from powermean.contracts.api import AttemptNode, Job, LogText

# A part of at least this many bytes was probably cut off by the API's limit, so there may be more.
FULL_PART = 60_000
MOST_SEARCHED = 300  # parts of a log: a search holds them all
MOST_MATCHES = 500
MOST_WANTED = 200  # characters to look for


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
    """GET /jobs/{id}/log?attempt=&node_rank=&offset=&q=&requests=1: the tail, or a part, as htmx asks.

    `q` looks through the whole log; lines of HTTP requests that went well are hidden without `requests`.
    """
    query = request.query_params
    job_id = request.path_params["job_id"]
    attempt = whole_number(request, "attempt", least=1)
    node_rank = whole_number(request, "node_rank", least=0) or 0
    offset = whole_number(request, "offset", least=0)
    wanted, requests = (query.get("q") or "")[:MOST_WANTED], bool(query.get("requests"))
    matches: list[Match] | None = None
    searched: int | None = None  # bytes, if there may be more than are looked through
    async with api.client(request) as client:
        job = await client.get_job(job_id)
        log = await _read(client, job, attempt, node_rank, offset) if job.attempts else None
        if log is not None and wanted:
            parts = [part async for part in _parts(client, job.id, log, MOST_SEARCHED)]
            searched = parts[-1].next_offset if len(parts) == MOST_SEARCHED else None
            found = search([part.text for part in parts], wanted, requests)
            matches = await run_in_threadpool(lambda: list(islice(found, MOST_MATCHES)))
    follows = log is not None and not job.state.final and log.attempt == job.attempt
    more = log is not None and log.next_offset - log.offset >= FULL_PART
    if log is not None:
        log = _shown(log, requests, to_the_end=not follows and not more)
    return page(
        request,
        "fragments/log_piece.html" if is_fragment(request) else "log.html",
        job=job,
        stages=stages(job),
        log=log,
        nodes=_nodes(job, log),
        follows=follows,
        more=more,
        wanted=wanted,
        requests=requests,
        matches=matches,
        most_matches=MOST_MATCHES,
        searched=searched,
    )


async def download(request: Request) -> Response:
    """GET /jobs/{id}/log/download?attempt=&node_rank=: the whole log as a file."""
    job_id = request.path_params["job_id"]
    attempt = whole_number(request, "attempt", least=1)
    node_rank = whole_number(request, "node_rank", least=0) or 0
    async with api.client(request) as client:
        job = await client.get_job(job_id)
        if not job.attempts:
            raise HTTPException(404, "The job has no log yet.")
        log = await client.logs(job_id, attempt or job.attempts[-1].number, 0, node_rank)

    async def body() -> AsyncIterator[bytes]:
        async with api.client(request) as client:
            async for part in _parts(client, job_id, log):
                yield part.text.encode()

    node = f".node{node_rank}" if node_rank else ""
    name = f'attachment; filename="{job_id}.{log.attempt}{node}.log"'
    return StreamingResponse(body(), media_type="text/plain", headers={"Content-Disposition": name})


async def _parts(
    client: AsyncClient, job_id: str, log: LogText, most: int | None = None
) -> AsyncIterator[LogText]:
    """The log that this is a part of, from its start to its end, or no more than so many parts of it."""
    offset = 0
    for _ in count() if most is None else range(most):
        part = await client.logs(job_id, log.attempt, offset, log.node_rank)
        if not part.text:
            return
        yield part
        offset = part.next_offset


def _shown(log: LogText, requests: bool, to_the_end: bool) -> LogText:
    """Whole lines, as long as more is to come; without those of requests, unless they are wanted."""
    whole = log.text if to_the_end else complete(log.text)
    cut = len(log.text.encode()) - len(whole.encode())
    text = whole if requests else without_requests(whole)
    return log.model_copy(update={"text": text, "next_offset": log.next_offset - cut})


def _nodes(job: Job, log: LogText | None) -> tuple[AttemptNode, ...]:
    """The nodes of the attempt whose log is shown, if they are several."""
    return next((one.nodes for one in job.attempts if log is not None and one.number == log.attempt), ())


async def _read(
    client: AsyncClient, job: Job, attempt: int | None, node_rank: int, offset: int | None
) -> LogText:
    number = attempt or job.attempts[-1].number
    if offset is not None:
        return await client.logs(job.id, number, offset, node_rank)
    return await tail(lambda start: client.logs(job.id, number, start, node_rank))

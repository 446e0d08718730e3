"""A job's events as a stream: server-sent events."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response, status
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Message, Send

from server.db.models import MAX_BIG_INTEGER
from server.identity.callers import Caller
from server.routes.access import KnownCallerRoute, May, is_still_allowed
from server.routes.dependencies import RequestEvents

RECHECK_S = 30.0  # a stream outlives its caller's key or membership by as much, and a keep-alive
SEND_DEADLINE_S = 30.0  # a client that reads nothing for this long is gone

router = APIRouter(prefix="/v1", tags=["metrics"], route_class=KnownCallerRoute)

_STREAM = {"text/event-stream": {"schema": {"type": "string"}}}


class EventStream(StreamingResponse):
    """Server-sent events for a client that must keep reading them."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncIterator[bytes]) -> None:
        headers = {
            "Cache-Control": "no-cache, no-transform",
            "X-Accel-Buffering": "no",
            "Connection": "close",  # a server that stops ends the stream, and takes nothing after it
        }
        super().__init__(frames, headers=headers)

    async def stream_response(self, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(SEND_DEADLINE_S):
                    await send(message)
            except TimeoutError as error:
                raise ClientDisconnect from error

        await super().stream_response(send_in_time)


@router.get(
    "/jobs/{job_id}/events",
    summary="A job's events, live",
    response_class=Response,  # errors have the same media type
    responses={
        200: {
            "description": "Server-sent events: the contract Event, with its seq as id.",
            "content": _STREAM,
        },
        204: {"description": "Answer to Last-Event-ID: the job has ended, and the client has everything."},
    },
)
async def get_events(
    job_id: str,
    request: Request,
    caller: Annotated[Caller, May("job.read")],
    hub: RequestEvents,
    after: Annotated[int, Query(ge=0, le=MAX_BIG_INTEGER, description="Last event that the client has.")] = 0,
    last_event_id: Annotated[
        int | None,
        Header(ge=0, le=MAX_BIG_INTEGER, description="Like `after`; sent by browsers that reconnect."),
    ] = None,
) -> Response:
    """First all events after the last one that the client has, then new ones as they happen.

    Kinds: metrics {attempt, rows}, state (the job's summary), rewind {attempt, from_step} (forget the steps
    from there on), trajectories {step, count}, checkpoint {step, attempt}. `event: end` without an id: the
    job has ended and the stream ends. `event: reconnect`, without an id either: this server ends the stream,
    another one goes on with it. A cut connection resumes by Last-Event-ID without gaps or duplicates.
    """
    position = after if last_event_id is None else last_event_id
    first = await hub.first_page(job_id, position)
    if last_event_id is not None and first.ended and first.start == first.upto == position > 0:
        return Response(status_code=status.HTTP_204_NO_CONTENT)
    return EventStream(_while_allowed(hub.stream(job_id, first), request))


async def _while_allowed(frames: AsyncGenerator[bytes, None], request: Request) -> AsyncIterator[bytes]:
    """The frames, until the caller would no longer be let in."""
    checked = time.monotonic()
    async with aclosing(frames):
        async for frame in frames:
            if time.monotonic() - checked > RECHECK_S:
                if not await is_still_allowed(request):
                    return
                checked = time.monotonic()
            yield frame

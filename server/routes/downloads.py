"""Sends an artefact, whole or a range of it, with headers that keep a browser from running it."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote

from fastapi import Request, Response, status
from fastapi.responses import StreamingResponse

from powermean.artefacts import ArtefactStore
from powermean.contracts.artefacts import ArtefactRef
from server.errors import ServiceError

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.IGNORECASE)


class RangeNotSatisfiableError(ServiceError):
    """The file ends before the range begins."""

    status = 416
    code = "range_not_satisfiable"


@dataclass(frozen=True)
class Span:
    """Bytes [start, end) of a file."""

    start: int
    end: int


def download(request: Request, store: ArtefactStore, ref: ArtefactRef, path: str) -> Response:
    """The answer to a GET of the artefact under the last name of a path: 200, 206, or 304.

    Raises RangeNotSatisfiableError, and ArtefactMissingError before anything is sent.
    """
    name = PurePosixPath(path).name
    tag = f'"{ref.sha256}"'
    headers = {
        "ETag": tag,
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
        "X-Content-Type-Options": "nosniff",
    }
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers={"ETag": tag})
    span = None
    if request.headers.get("if-range", tag) == tag:
        span = requested_span(request.headers.get("range", ""), ref.size)
    code = status.HTTP_200_OK
    if span is None:
        span = Span(0, ref.size)
    else:
        code = status.HTTP_206_PARTIAL_CONTENT
        headers["Content-Range"] = f"bytes {span.start}-{span.end - 1}/{ref.size}"
    headers["Content-Length"] = str(span.end - span.start)
    chunks = store.chunks(ref, span.start, span.end)
    return StreamingResponse(chunks, code, headers, media_type="application/octet-stream")


def requested_span(header: str, size: int) -> Span | None:
    """The range in a Range header; None (everything) for no range, several, or an invalid one.

    Raises RangeNotSatisfiableError.
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first:
        span = Span(int(first), min(int(last) + 1, size) if last else size)
        if last and int(last) < int(first):
            return None
    else:
        span = Span(max(size - int(last), 0), size)
    if span.start >= size or span.start == span.end:
        raise RangeNotSatisfiableError(
            f"the file has {size} bytes", remedy="Ask for a range within the file."
        )
    return span

"""Request bodies too large for memory, received into a file."""

import errno
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from server.errors import InvalidInputError, TooManyRequestsError, UnavailableError

COPY = 1 << 20
MOST_AT_ONCE = 4  # uploads of one person; each may take its whole size of the disk
RETRY_S = 10
FORM = "multipart/form-data"


@dataclass(frozen=True)
class Upload:
    """A body in a file, and its name if the form had one."""

    path: Path
    name: str | None


@asynccontextmanager
async def received(request: Request) -> AsyncIterator[Upload]:
    """The body in a file: the form's field `file`, or the body itself.

    The file has no name on the disk, only one in this process: however the request or the server ends,
    nothing is left. Threads are only taken for single writes, so a slow sender holds none.

    Raises InvalidInputError for a form without that field, UnavailableError if the disk is full,
    TooManyRequestsError while as many of the person's uploads as allowed are coming.
    """
    with _counted(request), tempfile.TemporaryFile() as target:
        try:
            name = await _receive(request, target)
            await run_in_threadpool(target.flush)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UnavailableError("no space left on the server for the upload") from error
            raise
        yield Upload(Path(f"/proc/self/fd/{target.fileno()}"), name)


@contextmanager
def _counted(request: Request) -> Iterator[None]:
    """One more of the caller's uploads; on the event loop, so no two change the count at once."""
    coming: Counter[str] = request.app.state.uploads
    who = request.state.caller.person_id
    if coming[who] >= MOST_AT_ONCE:
        raise TooManyRequestsError(RETRY_S, f"{MOST_AT_ONCE} of your uploads are still coming")
    coming[who] += 1
    try:
        yield
    finally:
        coming[who] -= 1
        if not coming[who]:
            del coming[who]


async def _receive(request: Request, target: IO[bytes]) -> str | None:
    if not request.headers.get("content-type", "").startswith(FORM):
        async for piece in request.stream():
            await run_in_threadpool(target.write, piece)
        return None
    async with request.form(max_files=1, max_fields=4) as form:
        file, name = form.get("file"), form.get("name")
        if not isinstance(file, UploadFile):
            raise InvalidInputError.at(
                "file", "the form has no file", "Send the dataset as the form's field `file`."
            )
        while piece := await file.read(COPY):
            await run_in_threadpool(target.write, piece)
        return name if isinstance(name, str) and name else _stem(file.filename)


def _stem(filename: str | None) -> str | None:
    return Path(filename).stem if filename else None

"""Logs of attempts: each byte stored once, in order, and read as text that never splits a character."""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from powermean.artefacts import ArtefactStore
from powermean.contracts.api import FieldError, LogText
from powermean.contracts.artefacts import ArtefactRef
from powermean.tokens import AttemptClaims
from server.db.models import Attempt, LogChunk
from server.db.scoped import ScopedSession
from server.errors import ConflictError, NotFoundError
from server.jobs.events import fence
from server.jobs.repository import find_job

OWNER = "jobs/{job_id}/logs/{attempt}"


@dataclass(frozen=True)
class StoredChunk:
    """Bytes [offset, offset + size) of a log, and where they are stored."""

    offset: int
    size: int
    ref: ArtefactRef


@dataclass(frozen=True)
class StoredRange:
    """The chunks that hold a range of an attempt's log."""

    attempt: int
    start: int
    end: int
    chunks: tuple[StoredChunk, ...]


def owner_of(claims: AttemptClaims) -> str:
    """The owner of the log's artefacts."""
    return OWNER.format(job_id=claims.job_id, attempt=claims.attempt)


def missing_part(session: Session, attempt_id: str, claims: AttemptClaims, offset: int, data: bytes) -> bytes:
    """The end of `data` that the log does not have yet; empty for a repeat.

    Raises FencedError, and ConflictError if bytes before `offset` are missing.
    """
    fence(session, attempt_id, claims)
    length = _length(session, claims.job_id, claims.attempt)
    if offset > length:
        raise ConflictError(
            f"the log has {length} bytes: a chunk at {offset} would leave a gap",
            remedy=f"Send the log from byte {length} on.",
            fields=[FieldError(path="offset", message=f"expected at most {length}")],
        )
    return data[length - offset :]


def append(
    session: Session, attempt_id: str, claims: AttemptClaims, offset: int, data: bytes, ref: ArtefactRef
) -> None:
    """Add stored bytes to the log, unless they have been added meanwhile. Raises as `missing_part`."""
    if len(missing_part(session, attempt_id, claims, offset, data)) == len(data):
        place = {"job_id": claims.job_id, "attempt": claims.attempt, "offset": offset}
        session.add(LogChunk(**place, size=len(data), artefact=ref.model_dump(mode="json")))


def find_range(
    session: ScopedSession, job_id: str, attempt: int | None, offset: int, limit: int
) -> StoredRange:
    """Where bytes [offset, offset + limit) of an attempt's log are stored; default: the current attempt.

    Raises NotFoundError for an unknown job or attempt.
    """
    job = find_job(session, job_id)
    number = job.attempt if attempt is None else attempt
    if attempt is not None and session.get(Attempt, f"{job_id}.{attempt}") is None:
        raise NotFoundError(
            f"{job_id} has no attempt {attempt}", remedy=f"Its attempts are 1 to {job.attempt}."
        )
    end = min(offset + limit, _length(session, job_id, number))
    rows = session.scalars(
        select(LogChunk)
        .where(
            LogChunk.job_id == job_id,
            LogChunk.attempt == number,
            LogChunk.offset < end,
            LogChunk.offset + LogChunk.size > offset,
        )
        .order_by(LogChunk.offset)
    )
    chunks = tuple(
        StoredChunk(row.offset, row.size, ArtefactRef.model_validate(row.artefact)) for row in rows
    )
    return StoredRange(number, offset, max(end, offset), chunks)


def read_text(found: StoredRange, store: ArtefactStore) -> LogText:
    """The range as text, from its first whole character to its last."""
    data = b"".join(_pieces(found, store))
    skipped = next((place for place, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0)
    whole = data[skipped : len(data) - _cut_off(data)]
    start = found.start + skipped
    return LogText(
        attempt=found.attempt,
        offset=start,
        next_offset=start + len(whole),
        text=whole.decode(errors="replace"),
    )


def _pieces(found: StoredRange, store: ArtefactStore) -> Iterable[bytes]:
    for chunk in found.chunks:
        start = max(found.start - chunk.offset, 0)
        yield store.read_range(chunk.ref, start, min(found.end - chunk.offset, chunk.size))


def _cut_off(data: bytes) -> int:
    """How many bytes at the end belong to an incomplete character."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if length > back else 0
        if byte < 0x80:
            return 0
    return 0


def _length(session: Session, job_id: str, attempt: int) -> int:
    last = session.scalars(
        select(LogChunk)
        .where(LogChunk.job_id == job_id, LogChunk.attempt == attempt)
        .order_by(LogChunk.offset.desc())
        .limit(1)
    ).one_or_none()
    return 0 if last is None else last.offset + last.size

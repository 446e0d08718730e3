"""Logs of attempts: each byte stored once, in order, and read as text that never splits a character."""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from powermean.artefacts import ArtefactStore
from powermean.contracts.api import FieldError, LogText
from powermean.contracts.artefacts import ArtefactRef
from powermean.tokens import AttemptClaims
from server.db.models import Attempt, Job, LogChunk
from server.db.scoped import ScopedSession
from server.errors import ConflictError, FencedError, NotFoundError
from server.jobs import members
from server.jobs.events import fence
from server.jobs.repository import find_job

OWNER = "jobs/{job_id}/logs/{attempt}"
SPAN = 2**40  # stored offsets of a node's log: its own, from node_rank * SPAN on


@dataclass(frozen=True)
class StoredChunk:
    """Bytes [offset, offset + size) of a log, and where they are stored."""

    offset: int
    size: int
    ref: ArtefactRef


@dataclass(frozen=True)
class StoredRange:
    """The chunks that hold a range of the log of one of an attempt's nodes."""

    attempt: int
    node_rank: int
    start: int
    end: int
    chunks: tuple[StoredChunk, ...]


def owner_of(claims: AttemptClaims) -> str:
    """The owner of the log's artefacts."""
    return OWNER.format(job_id=claims.job_id, attempt=claims.attempt)


def missing_part(session: Session, attempt_id: str, claims: AttemptClaims, offset: int, data: bytes) -> bytes:
    """The end of `data` that the log does not have yet; empty for a repeat.

    Where another node has ended the attempt, this one's last words may hold the cause.

    Raises FencedError, and ConflictError if bytes before `offset` are missing.
    """
    try:
        fence(session, attempt_id, claims)
    except FencedError:
        if not members.is_ending(session, claims):
            raise
    length = _length(session, claims.job_id, claims.attempt, claims.node_rank)
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
        place = {"job_id": claims.job_id, "attempt": claims.attempt}
        place["offset"] = claims.node_rank * SPAN + offset
        session.add(LogChunk(**place, size=len(data), artefact=ref.model_dump(mode="json")))


def find_range(
    session: ScopedSession, job_id: str, attempt: int | None, node_rank: int, offset: int, limit: int
) -> StoredRange:
    """Where bytes [offset, offset + limit) of a node's log are stored; default: of the current attempt.

    Raises NotFoundError for an unknown job, attempt or node.
    """
    job = find_job(session, job_id)
    number = job.attempt if attempt is None else attempt
    if attempt is not None or node_rank > 0:
        _check_written(session, job, number, node_rank)
    end = min(offset + limit, _length(session, job_id, number, node_rank))
    if end <= offset:
        return StoredRange(number, node_rank, offset, offset, ())
    first = node_rank * SPAN
    rows = session.scalars(
        select(LogChunk)
        .where(
            LogChunk.job_id == job_id,
            LogChunk.attempt == number,
            LogChunk.offset < first + end,
            LogChunk.offset + LogChunk.size > first + offset,
        )
        .order_by(LogChunk.offset)
    )
    chunks = tuple(
        StoredChunk(row.offset - first, row.size, ArtefactRef.model_validate(row.artefact)) for row in rows
    )
    return StoredRange(number, node_rank, offset, end, chunks)


def _check_written(session: Session, job: Job, number: int, node_rank: int) -> None:
    attempt = session.get(Attempt, f"{job.id}.{number}")
    if attempt is None:
        raise NotFoundError(
            f"{job.id} has no attempt {number}", remedy=f"Its attempts are 1 to {job.attempt}."
        )
    if node_rank >= attempt.nodes:
        raise NotFoundError(
            f"attempt {number} of {job.id} has no node {node_rank}",
            remedy=f"Its nodes are 0 to {attempt.nodes - 1}.",
        )


def read_text(found: StoredRange, store: ArtefactStore) -> LogText:
    """The range as text, from its first whole character to its last."""
    data = b"".join(_pieces(found, store))
    skipped = next((place for place, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0)
    whole = data[skipped : len(data) - _cut_off(data)]
    start = found.start + skipped
    return LogText(
        attempt=found.attempt,
        node_rank=found.node_rank,
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


def _length(session: Session, job_id: str, attempt: int, node_rank: int) -> int:
    first = node_rank * SPAN
    last = session.scalars(
        select(LogChunk)
        .where(LogChunk.job_id == job_id, LogChunk.attempt == attempt)
        .where(LogChunk.offset >= first, LogChunk.offset < first + SPAN)
        .order_by(LogChunk.offset.desc())
        .limit(1)
    ).one_or_none()
    return 0 if last is None else last.offset + last.size - first

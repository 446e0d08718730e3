"""What nobody owns: objects that no row refers to, and messages about what is gone.

One call looks at a few owners, so that a large store takes many short requests. Only what is older than a
grace period is removed: an object is stored before the row that refers to it. Jobs that have not ended, or
still hold something on a node, are left alone, because an attempt may be about to report what it stored.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from powermean.artefacts import ArtefactStore, StoredObject
from powermean.contracts.api import JobState
from powermean.contracts.replays import ReplayState
from powermean.contracts.storage import Collected
from server.db.models import Allocation, Attempt, Job, Outbox, Replay
from server.db.session import Database
from server.errors import ConflictError
from server.storage.holds import is_held
from server.storage.references import owned
from server.storage.rows import orphaned_messages

GRACE = timedelta(days=1)
OWNERS = 100  # in one call
SHOWN = 20
MESSAGES = 10_000
KINDS = ("datasets", "jobs", "probe")


def collect(
    database: Database, store: ArtefactStore, *, dry_run: bool, after: str | None, grace: timedelta = GRACE
) -> Collected:
    """Look at the owners after `after` (kind/id), and remove what nobody refers to unless it is a dry run.

    Raises ArtefactError, and ConflictError while a backup holds the store.
    """
    with database.read() as session:
        if not dry_run and is_held(session):
            raise ConflictError(
                "a backup is being made, so nothing may be removed now", remedy="Try again when it is done."
            )
    owners = _owners(store, after)
    oldest = datetime.now(UTC) - grace
    looked_at, orphans = 0, []
    for kind, owner in owners[:OWNERS]:
        found = store.list_stored(f"{kind}/{owner}")  # before the rows: what they refer to was there
        looked_at += len(found)
        with database.read() as session:
            orphans += unreferenced(session, kind, owner, [one for one in found if one.modified <= oldest])
    if not dry_run:
        for one in orphans:
            store.delete(one.ref)
    last = owners[OWNERS - 1] if len(owners) > OWNERS else None
    return Collected(
        dry_run=dry_run,
        looked_at=looked_at,
        objects=len(orphans),
        bytes=sum(one.ref.size for one in orphans),
        rows=_messages(database, dry_run) if after is None else 0,
        keys=tuple(one.ref.key for one in orphans[:SHOWN]),
        next="/".join(last) if last is not None else None,
    )


def unreferenced(
    session: Session, kind: str, owner: str, found: Iterable[StoredObject]
) -> list[StoredObject]:
    """The objects of an owner that no row refers to and nobody is about to."""
    if kind == "jobs" and _is_busy(session, owner):
        return []
    kept = owned(session, kind, owner)
    return [one for one in found if one.ref.key not in kept]


def _is_busy(session: Session, job_id: str) -> bool:
    state = session.scalar(select(Job.state).where(Job.id == job_id))
    if state is None:
        return False
    held = select(Allocation.id).join(Attempt, Attempt.id == Allocation.attempt_id)
    held = held.where(Attempt.job_id == job_id, Allocation.released_at.is_(None))
    replayed = select(Replay.id).where(
        Replay.job_id == job_id, Replay.state.in_((ReplayState.WAITING, ReplayState.RUNNING))
    )
    return not JobState(state).final or any(
        session.scalar(query.limit(1)) is not None for query in (held, replayed)
    )


def _owners(store: ArtefactStore, after: str | None) -> list[tuple[str, str]]:
    """The next owners in the store, one more than are looked at."""
    start = tuple(after.split("/", 1)) if after else ()
    every = ((kind, owner) for kind in KINDS if (kind,) >= start[:1] for owner in store.children(kind))
    return sorted(one for one in every if one > start)[: OWNERS + 1]


def _messages(database: Database, dry_run: bool) -> int:
    with database.read() as session:
        ids = orphaned_messages(session, MESSAGES)
    if ids and not dry_run:
        for start in range(0, len(ids), 1000):
            with database.write() as session:
                session.execute(delete(Outbox).where(Outbox.id.in_(ids[start : start + 1000])))
    return len(ids)

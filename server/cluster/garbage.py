"""Removal of objects in the artefact store that nothing refers to any more.

The transaction that drops the last reference notes the key; the scheduler's leader removes the object later.
A store that is down, or a server that stops in between, only delays it. What a row refers to is kept: another
row may have the same object, and a reference may be newer than the note. While a backup holds the store
(storage/holds.py), everything waits.
"""

import logging
from collections.abc import Iterable

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from powermean.artefacts import ArtefactError, ArtefactStore
from powermean.contracts.artefacts import ArtefactRef
from server.db.models import Garbage, Job
from server.db.session import Database
from server.storage.holds import is_held
from server.storage.references import owned, owner_of, referenced

log = logging.getLogger(__name__)

_A_TURN = 100
# Killed attempts may leave published weights and uncommitted checkpoints under jobs/<id>/.
_LEFTOVERS = ("weights", "checkpoints")


def remove_garbage(database: Database, artefacts: ArtefactStore) -> None:
    """Remove some of the noted objects; failures are retried next time."""
    with database.read() as session:
        keys = session.execute(select(Garbage.key).order_by(Garbage.key).limit(_A_TURN)).scalars().all()
        kept = referenced(session, [key for key in keys if not key.endswith("/")])
    gone = []
    for key in keys:
        with database.read() as session:
            if is_held(session):
                break
        try:
            if key.endswith("/"):
                _remove_below(database, artefacts, key.rstrip("/"))
            elif key not in kept:
                _remove(artefacts, [key])
        except ArtefactError as error:
            log.warning("cannot remove %s: %s", key, error)
            break
        gone.append(key)
    if gone:
        with database.write() as session:
            session.execute(delete(Garbage).where(Garbage.key.in_(gone)))


def sweep(artefacts: ArtefactStore) -> None:
    """Remove half-written files left by writers that died."""
    try:
        artefacts.sweep()
    except ArtefactError as error:
        log.warning("cannot clean the artefact store: %s", error)


def _remove_below(database: Database, artefacts: ArtefactStore, owner: str) -> None:
    """Remove what no row refers to: of a whole job (jobs/<id>), or of a part of it (jobs/<id>/logs).

    Of a whole job that is still there, only what a killed attempt may have left.
    """
    kind, job_id = owner_of(owner)
    whole = owner == f"{kind}/{job_id}"
    with database.read() as session:
        kept = owned(session, kind, job_id)  # of a job that is gone, what its forks began with
        if whole and _exists(session, job_id):
            folders: Iterable[str] = [f"{owner}/{name}" for name in _LEFTOVERS]
        else:
            folders = [owner] if kept or not whole else ()
    if not folders:
        artefacts.delete_prefix(owner)
    for folder in folders:
        _remove(artefacts, (ref.key for ref in artefacts.list(folder) if ref.key not in kept))


def _exists(session: Session, job_id: str) -> bool:
    return session.scalar(select(Job.id).where(Job.id == job_id)) is not None


def _remove(artefacts: ArtefactStore, keys: Iterable[str]) -> None:
    for key in keys:
        artefacts.delete(
            ArtefactRef(key=key, sha256="0" * 64, size=0)
        )  # the key alone identifies what to delete

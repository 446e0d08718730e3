"""Removal of objects in the artefact store that nothing refers to any more.

The transaction that drops the last reference notes the key; the scheduler's leader removes the object later.
A store that is down, or a server that stops in between, only delays it.
"""

import logging
from collections.abc import Iterable

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from powermean.artefacts import ArtefactError, ArtefactStore
from powermean.contracts.artefacts import ArtefactRef
from server.db.models import Checkpoint, Garbage
from server.db.session import Database

log = logging.getLogger(__name__)

_A_TURN = 100
# Killed attempts may leave published weights and uncommitted checkpoints under jobs/<id>/.
_LEFTOVERS = ("weights", "checkpoints")


def remove_garbage(database: Database, artefacts: ArtefactStore) -> None:
    """Remove some of the noted objects; failures are retried next time."""
    with database.read() as session:
        keys = session.execute(select(Garbage.key).order_by(Garbage.key).limit(_A_TURN)).scalars().all()
    gone = []
    for key in keys:
        try:
            if key.endswith("/"):
                _remove_leftovers(database, artefacts, key.rstrip("/"))
            else:
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


def _remove_leftovers(database: Database, artefacts: ArtefactStore, owner: str) -> None:
    """Remove what an ended job (`owner`: jobs/<id>) left that no committed checkpoint refers to."""
    with database.read() as session:
        kept = _checkpoint_keys(session, owner.rpartition("/")[2])
    for name in _LEFTOVERS:
        found = (ref.key for ref in artefacts.list(f"{owner}/{name}"))
        _remove(artefacts, (key for key in found if key not in kept))


def _checkpoint_keys(session: Session, job_id: str) -> set[str]:
    manifests = session.execute(select(Checkpoint.manifest).where(Checkpoint.job_id == job_id)).scalars()
    return {ref["key"] for manifest in manifests for ref in manifest["files"].values()}


def _remove(artefacts: ArtefactStore, keys: Iterable[str]) -> None:
    for key in keys:
        artefacts.delete(
            ArtefactRef(key=key, sha256="0" * 64, size=0)
        )  # the key alone identifies what to delete

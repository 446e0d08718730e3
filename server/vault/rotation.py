"""A new key for all secrets: `python -m server rotate-secrets`.

It may be stopped at any time: each secret is readable before and after its turn, because the file keeps every
key that a row still needs. Run again, it goes on with the same key. Servers may run meanwhile.
"""

from sqlalchemy import select

from server.audit.journal import record_command
from server.db.models import PersonSecret, ProjectSecret, SealedValue
from server.db.session import Database
from server.vault.key_file import KeyFile, KeyUnavailableError
from server.vault.sealing import Owner, seal, unseal
from server.vault.secrets import sealed_in

VERB, REQUEST = "secret.rotate", "python -m server rotate-secrets"  # in the audit log
BATCH = 50  # secrets of a transaction
KINDS: tuple[type[SealedValue], ...] = (ProjectSecret, PersonSecret)


def rotate(database: Database, keys: KeyFile) -> int:
    """Encrypt every secret anew; returns how many. Raises KeyUnavailableError, naming what can't be read.

    The key before the new one stays in the file until the next rotation: a server may have begun to set a
    secret with it.
    """
    with keys.locked():
        _record(database, {"stage": "begun"})  # before any change: one that is stopped is in the log, too
        if _in_use(database) <= {keys.ids()[-1]}:  # otherwise an earlier rotation was not finished
            keys.add()
        newest, count = keys.ids()[-1], 0
        for kind in KINDS:
            while changed := _encrypt_some(database, keys, kind, newest):
                count += changed
        keys.keep({*_in_use(database), *keys.ids()[-2:]})
        _record(database, {"stage": "done", "secrets": str(count), "key": newest})
    return count


def _record(database: Database, detail: dict[str, str]) -> None:
    with database.write() as session:
        record_command(session, VERB, REQUEST, detail)


def _in_use(database: Database) -> set[str]:
    with database.read() as session:
        return {key_id for kind in KINDS for key_id in session.scalars(select(kind.key_id).distinct())}


def _encrypt_some(database: Database, keys: KeyFile, kind: type[SealedValue], newest: str) -> int:
    with database.write() as session:
        query = select(kind).where(kind.key_id != newest).order_by(kind.name).limit(BATCH).with_for_update()
        rows = session.scalars(query).all()
        for row in rows:
            owner = _owner(row)
            try:
                sealed = seal(keys, owner, row.name, unseal(keys, owner, row.name, sealed_in(row)))
            except KeyUnavailableError as error:
                raise KeyUnavailableError(
                    f"secret {row.name} of {owner.kind} {owner.id}: {error}",
                    remedy="Remove it or set it again, and repeat the rotation.",
                ) from error
            row.key_id, row.wrapped_key, row.blob = sealed.key_id, sealed.wrapped_key, sealed.blob
        return len(rows)


def _owner(row: SealedValue) -> Owner:
    if isinstance(row, ProjectSecret):
        return Owner("project", row.project_id)
    assert isinstance(row, PersonSecret)
    return Owner("person", row.person_id)

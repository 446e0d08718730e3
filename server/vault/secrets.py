"""Secrets of projects and people: set, listed without their values, and handed to the jobs that name them."""

from collections.abc import Collection

from sqlalchemy import Select, delete, func, select
from sqlalchemy.orm import Session

from powermean.contracts.api import JobState
from powermean.contracts.job import JobSpec
from powermean.contracts.secrets import OWN, SecretValues, SecretView
from server.db.inserts import upsert
from server.db.models import Job, Person, PersonSecret, ProjectSecret, SealedValue
from server.db.session import database_now
from server.errors import ConflictError, InvalidInputError, NotFoundError
from server.vault.key_file import KeyService, KeyUnavailableError
from server.vault.sealing import Owner, Sealed, seal, unseal

MOST_OF_AN_OWNER = 200


def put(
    session: Session, keys: KeyService, owner: Owner, name: str, value: str, person_id: str
) -> SecretView:
    """Set a secret, or replace its value. Raises ConflictError where the owner has too many."""
    if _find(session, owner, name) is None and _count(session, owner) >= MOST_OF_AN_OWNER:
        raise ConflictError(f"there are {MOST_OF_AN_OWNER} secrets already", remedy="Remove one first.")
    sealed = seal(keys, owner, name, value)
    row = {
        _column(owner): owner.id,
        "name": name,
        "key_id": sealed.key_id,
        "wrapped_key": sealed.wrapped_key,
        "blob": sealed.blob,
        "set_by": person_id,
        "set_at": database_now(session),
        "used_at": None,
    }
    upsert(session, _kind(owner), [row], replace=tuple(set(row) - {_column(owner), "name"}))
    return next(view for view in listed(session, owner) if view.name == name)


def listed(session: Session, owner: Owner) -> tuple[SecretView, ...]:
    """By name, without the values."""
    kind = _kind(owner)
    query = _of(owner).join(Person, Person.id == kind.set_by).add_columns(Person.name).order_by(kind.name)
    return tuple(
        SecretView(name=row.name, set_by=setter, set_at=row.set_at, used_at=row.used_at)
        for row, setter in session.execute(query)
    )


def remove(session: Session, owner: Owner, name: str) -> None:
    """Raises NotFoundError, or ConflictError with the jobs that still name it."""
    if _find(session, owner, name, lock="update") is None:
        raise _no_secret(name)
    if jobs := _jobs_naming(session, owner, name):
        raise ConflictError(
            f"secret {name} is named by jobs that have not ended: {', '.join(jobs)}",
            remedy="Cancel them, or wait for their end. Setting another value needs no waiting.",
        )
    kind = _kind(owner)
    session.execute(delete(kind).where(getattr(kind, _column(owner)) == owner.id, kind.name == name))


def check(session: Session, spec: JobSpec, project: str, person_id: str) -> None:
    """Check that the secrets that a spec names are there, and keep them there until the job is stored.

    Raises InvalidInputError at the variable.
    """
    for variable, reference in spec.secrets.items():
        owner, name = owner_of(reference, project, person_id)
        if _find(session, owner, name, lock="share") is None:
            whose = f"project {project} has" if owner.kind == "project" else "you have"
            where = f" --project {project}" if owner.kind == "project" else ""
            raise InvalidInputError.at(
                f"secrets.{variable}", f"{whose} no secret {name}", f"powermean secret set {name}{where}"
            )


def values_of(
    session: Session, keys: KeyService, job: Job, only: Collection[str] | None = None
) -> SecretValues:
    """The values that a job's spec names, by variable (of `only` these); they count as used now.

    Raises KeyUnavailableError, also for a secret that is gone or whose owner is no longer active.
    """
    found = {}
    named: dict[str, str] = job.spec.get("secrets") or {}
    for variable, reference in named.items():
        if only is None or variable in only:
            owner, name = owner_of(reference, job.project_id, job.created_by)
            row = _find(session, owner, name)
            if row is None or (owner.kind == "person" and not session.get_one(Person, owner.id).active):
                raise KeyUnavailableError(
                    f"secret {reference} is gone",
                    path=f"secrets.{variable}",
                    remedy="Set it, and submit the job again.",
                )
            found[variable] = unseal(keys, owner, name, sealed_in(row))
            row.used_at = database_now(session)
    return found


def owner_of(reference: str, project: str, person_id: str) -> tuple[Owner, str]:
    """Whose secret a spec's `NAME` or `me/NAME` is, and its name."""
    if reference.startswith(OWN):
        return Owner("person", person_id), reference.removeprefix(OWN)
    return Owner("project", project), reference


def sealed_in(row: SealedValue) -> Sealed:
    """What the row has of the value."""
    return Sealed(row.key_id, row.wrapped_key, row.blob)


def _kind(owner: Owner) -> type[ProjectSecret] | type[PersonSecret]:
    return ProjectSecret if owner.kind == "project" else PersonSecret


def _column(owner: Owner) -> str:
    return f"{owner.kind}_id"


def _of(owner: Owner) -> Select[SealedValue]:
    kind: type[SealedValue] = _kind(owner)
    return select(kind).where(getattr(kind, _column(owner)) == owner.id)


def _find(session: Session, owner: Owner, name: str, lock: str | None = None) -> SealedValue | None:
    """`lock`: update keeps submitters waiting that share it, and the other way round."""
    query = _of(owner).where(_kind(owner).name == name)
    if lock is not None:
        query = query.with_for_update(read=lock == "share")
    return session.scalars(query).one_or_none()


def _count(session: Session, owner: Owner) -> int:
    kind = _kind(owner)
    query = select(func.count()).select_from(kind).where(getattr(kind, _column(owner)) == owner.id)
    return session.scalar(query) or 0


def _jobs_naming(session: Session, owner: Owner, name: str) -> list[str]:
    """Jobs that have not ended and name the secret."""
    reference = name if owner.kind == "project" else OWN + name
    whose = Job.project_id == owner.id if owner.kind == "project" else Job.created_by == owner.id
    ended = [state for state in JobState if state.final]
    query = select(Job.id, Job.spec["secrets"]).where(whose, Job.state.not_in(ended)).order_by(Job.id)
    return [job_id for job_id, named in session.execute(query) if reference in (named or {}).values()]


def _no_secret(name: str) -> NotFoundError:
    return NotFoundError(f"no secret {name}", remedy="`powermean secret list` shows the secrets.")

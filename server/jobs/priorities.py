"""Priority classes, and who may give a job which."""

from collections.abc import Collection
from typing import cast

from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session

from powermean.contracts.api import JobState
from powermean.contracts.priorities import DEFAULT_PRIORITY, PriorityRank, PriorityRole
from powermean.contracts.priorities import PriorityClass as PriorityClassView
from server.db.inserts import upsert
from server.db.models import Job, PriorityClass
from server.db.scoped import ScopedSession
from server.db.session import changes
from server.errors import ConflictError, InvalidInputError, NotFoundError
from server.identity.callers import Caller

_ROLES = ("viewer", "member", "maintainer", "admin")
_ROLE = (
    select(PriorityClass.name, PriorityClass.role)
    .where(PriorityClass.name.in_(bindparam("names", expanding=True)))
    .order_by(PriorityClass.name)
    .with_for_update(read=True)
)


def list_classes(session: Session) -> tuple[PriorityClassView, ...]:
    """All of them, the highest first."""
    query = select(PriorityClass).order_by(PriorityClass.value.desc(), PriorityClass.name)
    return tuple(_view(one) for one in session.scalars(query))


def show_class(session: Session, name: str) -> PriorityClassView:
    """Raises NotFoundError."""
    return _view(_find(session, name))


def set_class(session: Session, name: str, rank: PriorityRank) -> PriorityClassView:
    """Make a class, or change one: jobs that wait or run have its new value at once."""
    row = {"name": name, "value": rank.value, "role": rank.role}
    upsert(session, PriorityClass, [row], replace=("value", "role"))
    changes(session).plan = True
    return PriorityClassView(name=name, value=rank.value, role=rank.role)


def remove_class(session: ScopedSession, name: str) -> None:
    """Raises NotFoundError, or ConflictError: it is the default, or live jobs have it."""
    row = _find(session, name, locks=True)
    if name == DEFAULT_PRIORITY:
        raise ConflictError(f"{name} is the priority of specs that name none", remedy="Change it instead.")
    live = [state for state in JobState if not state.final]
    using = select(func.count()).select_from(Job).where(Job.priority == name, Job.state.in_(live))
    if count := session.scalar(using):
        raise ConflictError(
            f"{count} jobs that have not ended have priority {name}",
            remedy="Give them another one first, or wait until they have ended.",
        )
    session.delete(row)


def objection(session: Session, caller: Caller, project: str, name: str) -> str | None:
    """Why the caller may not give jobs of the project this priority; None: they may.

    The class stays until the transaction ends. Raises InvalidInputError at `priority`: there is none.
    """
    role = roles_for(session, {name}).get(name)
    if role is None:
        names = ", ".join(one.name for one in list_classes(session))
        raise InvalidInputError.at("priority", f"there is no priority class {name}", f"Choose among {names}.")
    if may_use(caller, project, role):
        return None
    mine = _role_of(caller, project)
    least = "an administrator" if role == "admin" else f"a {role} of project {project}"
    return f"priority {name} needs {least}, and you are a {mine}"


def roles_for(session: Session, names: Collection[str]) -> dict[str, str]:
    """The least role that each of these classes needs; they stay until the transaction ends."""
    found = session.connection().execute(_ROLE, {"names": list(names)})
    return {row.name: row.role for row in found}


def may_use(caller: Caller, project: str, role: str) -> bool:
    """Whether the caller may use a class that needs this role."""
    return _ROLES.index(_role_of(caller, project)) >= _ROLES.index(role)


def _role_of(caller: Caller, project: str) -> str:
    return "admin" if caller.cluster_role == "admin" else caller.roles.get(project, "viewer")


def _find(session: Session, name: str, *, locks: bool = False) -> PriorityClass:
    row = session.get(PriorityClass, name, with_for_update=locks or None)
    if row is None:
        raise NotFoundError(f"no priority class {name}", remedy="GET /v1/priorities lists them.")
    return row


def _view(row: PriorityClass) -> PriorityClassView:
    return PriorityClassView(name=row.name, value=row.value, role=cast(PriorityRole, row.role))

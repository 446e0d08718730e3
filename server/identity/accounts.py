"""How a person shows who they are: by a password, or by an OIDC provider's word."""

import logging
import secrets
from dataclasses import dataclass
from datetime import timedelta

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from powermean.contracts.identity import Email
from server.db.models import Membership, Person, Project
from server.db.session import database_now
from server.errors import ConflictError, ForbiddenError, UnauthenticatedError
from server.identity.oidc import Granted, Subject
from server.identity.passwords import is_outdated
from server.identity.people import check_others_administrate, is_here
from server.identity.sessions import SignedIn, end_sessions

_EMAIL: TypeAdapter[str] = TypeAdapter(Email)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Account:
    """The account at an e-mail address, as it was when the password was asked for."""

    person_id: str
    password_hash: str


def normal_email(given: str) -> str | None:
    """The address as accounts have it; None for what no account has, such as letters that only look right."""
    try:
        return _EMAIL.validate_python(given)
    except ValidationError:
        return None


def has_passwords(session: Session) -> bool:
    """Whether it makes sense to ask for one."""
    return session.scalar(select(Person.id).where(Person.password_hash.is_not(None)).limit(1)) is not None


def account_at(session: Session, email: str | None) -> Account | None:
    """The account that a password may open; None if there is none."""
    person = session.scalars(select(Person).where(Person.email == email)).one_or_none() if email else None
    if person is None or person.password_hash is None or not is_here(person, database_now(session)):
        return None
    return Account(person.id, person.password_hash)


def signed_in(session: Session, account: Account | None, *, right: bool, rehashed: str | None) -> SignedIn:
    """The person, if the password was right and nothing has changed meanwhile.

    Raises UnauthenticatedError, which is the same for wrong passwords and unknown addresses.
    """
    person = session.get(Person, account.person_id) if account is not None and right else None
    if (
        account is None
        or person is None
        or person.password_hash != account.password_hash
        or not is_here(person, database_now(session))
    ):
        raise UnauthenticatedError(
            "e-mail address or password is wrong",
            remedy="An administrator can send you a link to set a new password.",
        )
    if rehashed is not None and is_outdated(account.password_hash):
        person.password_hash = rehashed
    return SignedIn(person, None, "password")


def set_password(session: Session, person_id: str, hashed: str) -> SignedIn:
    """Store a password's hash, and end all of the person's sessions and unused links; open a new one.

    Raises ConflictError for whom a provider vouches for.
    """
    person = session.get_one(Person, person_id)
    check_own_password(person)
    person.password_hash = hashed
    end_sessions(session, person.id)
    return SignedIn(person, None, "password")


def check_own_password(person: Person) -> None:
    """Raises ConflictError: a password would go on working when the provider closes the account."""
    if person.oidc_subject is not None:
        raise ConflictError(
            "this account signs in at the provider", remedy="Change the password there, or sign in there."
        )


def accept(session: Session, subject: Subject, allowed: Granted, *, word_holds: timedelta) -> SignedIn | None:
    """The person whom a provider vouches for, found by issuer and subject alone; a new one gets an account.

    Applies what the claims allow. None: it is nothing, and nobody has given the person anything else; that
    also ends their sessions. Commit in either case. Raises ForbiddenError if the account was deactivated.
    """
    person = _person_of(session, subject)
    if not person.active:
        raise ForbiddenError("this account is not active any more", remedy="Ask an administrator.")
    person.name = subject.name
    person.oidc_until = database_now(session) + word_holds
    _apply(session, person, allowed)
    if person.cluster_role is None and not _is_member(session, person.id):
        end_sessions(session, person.id)
        return None
    return SignedIn(person, None, "oidc")


def link(
    session: Session, person_id: str, subject: Subject, allowed: Granted, *, word_holds: timedelta
) -> SignedIn | None:
    """From now on the provider vouches for this person: their password and all sessions end.

    Answers as `accept` does. Raises ConflictError if the provider's account opens another one here, which is
    in use, or if nobody would administrate the service any more.
    """
    person = session.get_one(Person, person_id)
    check_own_password(person)
    if allowed.decides_cluster_role and allowed.cluster_role != "admin" and person.cluster_role == "admin":
        check_others_administrate(session, person.id)
    other = _find(session, subject)
    if other is not None:
        if other.active:
            raise ConflictError(
                f"it signs in {other.name} ({other.id}) here already",
                remedy="Sign in with it, or ask an administrator to deactivate that account first.",
            )
        other.oidc_issuer = other.oidc_subject = None
        session.flush()
    person.oidc_issuer, person.oidc_subject = subject.issuer, subject.subject
    person.password_hash = None
    end_sessions(session, person.id)
    session.flush()
    return accept(session, subject, allowed, word_holds=word_holds)


def _find(session: Session, subject: Subject) -> Person | None:
    query = select(Person).where(Person.oidc_issuer == subject.issuer, Person.oidc_subject == subject.subject)
    return session.scalars(query.with_for_update()).one_or_none()


def _person_of(session: Session, subject: Subject) -> Person:
    person = _find(session, subject)
    if person is not None:
        return person
    person = Person(
        id=f"person-{secrets.token_hex(8)}",
        name=subject.name,
        email=_free_email(session, subject.email),
        kind="person",
        active=True,
        created_at=database_now(session),
        oidc_issuer=subject.issuer,
        oidc_subject=subject.subject,
    )
    try:
        with session.begin_nested():
            session.add(person)
    except IntegrityError as error:
        raise ConflictError("this account is being made right now", remedy="Sign in again.") from error
    return person


def _free_email(session: Session, email: str | None) -> str | None:
    """The address, unless another account has it: that one may be somebody else's."""
    normal = normal_email(email) if email is not None else None
    taken = session.scalar(select(Person.id).where(Person.email == normal)) if normal else None
    if taken is not None:
        log.warning("%s signs in at the provider with the address of %s: kept apart", normal, taken)
    return None if taken else normal


def _apply(session: Session, person: Person, allowed: Granted) -> None:
    known = set(session.scalars(select(Project.id).where(Project.id.in_(allowed.projects))))
    if missing := allowed.roles.keys() - known:
        log.warning("POWERMEAN_OIDC_GRANTS names projects that do not exist: %s", ", ".join(sorted(missing)))
    for project in sorted(known):
        membership = session.get(Membership, (person.id, project))
        role = allowed.roles.get(project)
        if role is None:
            if membership is not None:
                session.delete(membership)
        elif membership is None:
            session.add(Membership(person_id=person.id, project_id=project, role=role))
        else:
            membership.role = role
    if allowed.decides_cluster_role:
        person.cluster_role = allowed.cluster_role
    granted = sorted(allowed.roles.keys() & known)
    if person.default_project is None and granted:
        person.default_project = granted[0]
    session.flush()


def _is_member(session: Session, person_id: str) -> bool:
    return (
        session.scalar(select(Membership.role).where(Membership.person_id == person_id).limit(1)) is not None
    )

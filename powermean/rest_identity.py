"""The calls about people, projects, keys, signing in, secrets, storage and the audit log: see rest.py."""

from datetime import datetime
from urllib.parse import quote

from powermean.calls import Call, flags, nothing, params, reads
from powermean.contracts.api import LoginCode
from powermean.contracts.audit import AuditHead, AuditPage, Outcome
from powermean.contracts.identity import (
    KeyList,
    KeyRequest,
    Me,
    Member,
    MemberList,
    MemberRequest,
    NewKey,
    NewPerson,
    NewProject,
    Person,
    PersonChange,
    PersonList,
    Project,
    ProjectChange,
    ProjectList,
    ProjectRole,
)
from powermean.contracts.secrets import SecretList, SecretView
from powermean.contracts.signin import (
    DeviceAnswer,
    DeviceClaim,
    DeviceCode,
    DeviceDecision,
    DeviceRequest,
    DeviceView,
    OidcStart,
    OwnSessionList,
    SignInWays,
)
from powermean.contracts.storage import Collected, ProjectStorage, Retention


def me() -> Call[Me]:
    """Who the caller is, and what this key allows."""
    return Call("GET", "/v1/me", reads(Me))


def people() -> Call[PersonList]:
    """All accounts, by name. For administrators and auditors."""
    return Call("GET", "/v1/people", reads(PersonList))


def add_person(wanted: NewPerson) -> Call[Person]:
    """Make an account for a person, or a service account for a program. For administrators."""
    return Call("POST", "/v1/people", reads(Person), json=wanted.model_dump(mode="json"))


def change_person(person: str, change: PersonChange) -> Call[Person]:
    """Change an account, by id or e-mail address; what is left out stays. For administrators.

    `active: false` ends their keys and sessions at once.
    """
    body = change.model_dump(mode="json", exclude_unset=True)
    return Call("PATCH", _person_path(person), reads(Person), json=body)


def invite_person(person: str) -> Call[LoginCode]:
    """A link for their next sign-in, which works once. For administrators."""
    return Call("POST", _person_path(person, "/login-codes"), reads(LoginCode))


def projects() -> Call[ProjectList]:
    """The projects that the caller sees, with their role in each."""
    return Call("GET", "/v1/projects", reads(ProjectList))


def create_project(name: str, title: str | None = None) -> Call[Project]:
    """Make a project; its name never changes. For administrators."""
    body = NewProject(name=name, title=title).model_dump(mode="json")
    return Call("POST", "/v1/projects", reads(Project), json=body)


def get_project(project: str) -> Call[Project]:
    return Call("GET", _project_path(project), reads(Project))


def change_project(project: str, title: str) -> Call[Project]:
    """Change what pages call it. For its maintainers."""
    body = ProjectChange(title=title).model_dump(mode="json")
    return Call("PATCH", _project_path(project), reads(Project), json=body)


def storage(project: str) -> Call[ProjectStorage]:
    """What a project stores: bytes by kind, its limit, the largest things."""
    return Call("GET", _project_path(project, "/storage"), reads(ProjectStorage))


def limit_storage(project: str, limit: int | None) -> Call[ProjectStorage]:
    """Set the most bytes that a project may store; None: no limit. For administrators."""
    body = {"bytes": limit}
    return Call("PUT", _project_path(project, "/storage/limit"), reads(ProjectStorage), json=body)


def retention(project: str) -> Call[Retention]:
    """How long a project keeps what its ended jobs stored."""
    return Call("GET", _project_path(project, "/retention"), reads(Retention))


def set_retention(project: str, wanted: Retention) -> Call[Retention]:
    """Replace these rules. For maintainers."""
    body = wanted.model_dump(mode="json")
    return Call("PUT", _project_path(project, "/retention"), reads(Retention), json=body)


def delete_project(project: str, cascade: bool = False) -> Call[None]:
    """Delete a project that holds nothing, or with `cascade` all that it holds. For administrators."""
    return Call("DELETE", _project_path(project), nothing, flags(cascade=cascade))


def collect_garbage(dry_run: bool = True, after: str | None = None) -> Call[Collected]:
    """Look at a part of the artefact store for what nobody owns; pass `next` as `after` for the next part.

    Only a call with `dry_run=False` removes anything. For administrators.
    """
    chosen = params(dry_run=str(dry_run).lower(), after=after)
    return Call("POST", "/v1/gc", reads(Collected), chosen)


def members(project: str) -> Call[MemberList]:
    """Who is in the project, by name."""
    return Call("GET", _project_path(project, "/members"), reads(MemberList))


def set_member(project: str, person: str, role: ProjectRole) -> Call[Member]:
    """Add a person, by id or e-mail address, or change their role. For the project's maintainers."""
    body = MemberRequest(role=role).model_dump(mode="json")
    return Call("PUT", _member_path(project, person), reads(Member), json=body)


def remove_member(project: str, person: str) -> Call[None]:
    """Take a person out of the project; what they made stays in it. For the project's maintainers."""
    return Call("DELETE", _member_path(project, person), nothing)


def keys() -> Call[KeyList]:
    """One's own keys, newest first; all keys for administrators."""
    return Call("GET", "/v1/keys", reads(KeyList))


def create_key(wanted: KeyRequest) -> Call[NewKey]:
    """A new key; the answer is the only place where it is shown."""
    return Call("POST", "/v1/keys", reads(NewKey), json=wanted.model_dump(mode="json"))


def revoke_key(key_id: str, cascade: bool = False) -> Call[None]:
    """Revoke a key of one's own, or anybody's as an administrator; with `cascade` those made with it, too."""
    return Call("DELETE", f"/v1/keys/{quote(key_id, safe='')}", nothing, flags(cascade=cascade))


def login_code() -> Call[LoginCode]:
    """A link for one sign-in of a browser."""
    return Call("POST", "/v1/login-codes", reads(LoginCode))


def start_device(wanted: DeviceRequest) -> Call[DeviceCode]:
    """A code that a signed-in person confirms on the page /device."""
    return Call("POST", "/v1/device-codes", reads(DeviceCode), json=wanted.model_dump(mode="json"))


def claim_device(device_code: str) -> Call[DeviceAnswer]:
    """Whether the person has confirmed; the key comes with the first answer after that."""
    body = DeviceClaim(device_code=device_code).model_dump(mode="json")
    return Call("POST", "/v1/device-codes/claim", reads(DeviceAnswer), json=body)


def show_device(user_code: str) -> Call[DeviceView]:
    """Which command line waits with this code."""
    return Call("GET", f"/v1/device-codes/{quote(user_code, safe='')}", reads(DeviceView))


def decide_device(user_code: str, decision: DeviceDecision) -> Call[DeviceView]:
    """Sign it in as oneself, or refuse; only with a browser session."""
    path = f"/v1/device-codes/{quote(user_code, safe='')}/decision"
    return Call("POST", path, reads(DeviceView), json=decision.model_dump(mode="json"))


def sign_in_ways() -> Call[SignInWays]:
    """How people can sign in; needs no key."""
    return Call("GET", "/v1/sign-in", reads(SignInWays))


def start_oidc() -> Call[OidcStart]:
    """Where to send a browser that signs in at the provider; needs no key."""
    return Call("POST", "/v1/sessions/oidc", reads(OidcStart))


def sessions() -> Call[OwnSessionList]:
    """The browsers that are signed in as oneself."""
    return Call("GET", "/v1/me/sessions", reads(OwnSessionList))


def end_session(session_id: str) -> Call[None]:
    """Sign one of them out."""
    return Call("DELETE", f"/v1/me/sessions/{quote(session_id, safe='')}", nothing)


def set_secret(name: str, value: str, project: str | None = None) -> Call[SecretView]:
    """Set a secret of the project, or one of your own; no call returns its value."""
    return Call("PUT", _secrets_path(project, name), reads(SecretView), json={"value": value})


def secrets(project: str | None = None) -> Call[SecretList]:
    """The secrets of the project, or your own, without their values."""
    return Call("GET", _secrets_path(project), reads(SecretList))


def remove_secret(name: str, project: str | None = None) -> Call[None]:
    """Refused while a job that has not ended names it."""
    return Call("DELETE", _secrets_path(project, name), nothing)


def _secrets_path(project: str | None, name: str | None = None) -> str:
    owner = "me" if project is None else f"projects/{quote(project, safe='')}"
    return f"/v1/{owner}/secrets" + ("" if name is None else f"/{quote(name, safe='')}")


def audit(
    project: str | None = None,
    actor: str | None = None,
    verb: str | None = None,
    outcome: Outcome | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    before: int | None = None,
    limit: int | None = None,
) -> Call[AuditPage]:
    """Who did what, newest first; pass `page.next` as `before` for the next page.

    Everything for administrators and auditors, one project for its maintainers.
    """
    chosen = params(
        actor=actor,
        verb=verb,
        outcome=outcome,
        since=since.isoformat() if since else None,
        until=until.isoformat() if until else None,
        before=before,
        limit=limit,
    )
    path = f"/v1/projects/{quote(project, safe='')}/audit" if project is not None else "/v1/audit"
    return Call("GET", path, reads(AuditPage), chosen)


def audit_head() -> Call[AuditHead]:
    """The audit log's newest entry, signed. For administrators and auditors."""
    return Call("GET", "/v1/audit/head", reads(AuditHead))


def audit_export() -> Call[None]:
    """The whole audit log as JSON lines, oldest first: see Client.audit_export."""
    return Call("GET", "/v1/audit/export", nothing)


def _person_path(person: str, rest: str = "") -> str:
    return f"/v1/people/{quote(person, safe='')}{rest}"


def _project_path(project: str, rest: str = "") -> str:
    return f"/v1/projects/{quote(project, safe='')}{rest}"


def _member_path(project: str, person: str) -> str:
    return _project_path(project, f"/members/{quote(person, safe='')}")

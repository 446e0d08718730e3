"""The calls about people, projects, members and keys, as values: see rest.py."""

from urllib.parse import quote

from powermean.contracts.api import LoginCode
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
from powermean.rest import Call, nothing, reads


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
    """A code for their next sign-in: {url}/login/{code} works once. For administrators."""
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


def revoke_key(key_id: str) -> Call[None]:
    """Revoke a key of one's own, or anybody's as an administrator."""
    return Call("DELETE", f"/v1/keys/{quote(key_id, safe='')}", nothing)


def _person_path(person: str, rest: str = "") -> str:
    return f"/v1/people/{quote(person, safe='')}{rest}"


def _project_path(project: str, rest: str = "") -> str:
    return f"/v1/projects/{quote(project, safe='')}{rest}"


def _member_path(project: str, person: str) -> str:
    return _project_path(project, f"/members/{quote(person, safe='')}")

"""Wire types of people, projects and keys."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from powermean.contracts.base import Contract, Name
from powermean.contracts.names import NODE_NAME, PROJECT_NAME

ProjectRole = Literal["viewer", "member", "maintainer"]
ClusterRole = Literal["admin", "auditor"]
Role = Literal["admin", "auditor", "maintainer", "member", "viewer", "node"]
# Plain letters alone, so that no name looks like another. Also a path's part and a column's width.
ProjectName = Annotated[str, StringConstraints(pattern=PROJECT_NAME)]
Email = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True, to_lower=True, max_length=254, pattern=r"^[!-?A-~]+@[a-zA-Z0-9.-]+$"
    ),
]


class NewProject(Contract):
    """Request for a project."""

    name: ProjectName = Field(
        description="What specs and commands call it: up to 63 lower-case letters, digits and hyphens, "
        "and no hyphen first. It never changes."
    )
    title: Name | None = Field(None, description="What pages call it; default: the name.")


class ProjectChange(Contract):
    """What to change of a project."""

    title: Name


class Project(Contract):
    """What a team owns together: jobs, datasets, models, keys."""

    name: str
    title: str
    role: Role | None = Field(None, description="Yours in it; admin and auditor hold everywhere.")
    created_at: datetime


class ProjectList(Contract):
    """The projects that the caller sees, by name."""

    items: tuple[Project, ...]


class NewPerson(Contract):
    """Request for a person's account, or a service account for a program."""

    name: Name
    email: Email | None = Field(None, description="With it, the person can sign in.")
    kind: Literal["person", "service"] = "person"
    cluster_role: ClusterRole | None = Field(
        None, description="admin may do everything, auditor reads everything; null: only what projects give."
    )
    project: ProjectName | None = Field(None, description="First project, which becomes the default one.")
    role: ProjectRole = Field("member", description="Role in that project.")


class PersonChange(Contract):
    """What to change of an account; what is left out stays."""

    name: Name | None = None
    email: Email | None = Field(None, description="With it, the person can sign in by password.")
    active: bool | None = Field(None, description="False ends all its keys and sessions at once.")
    cluster_role: ClusterRole | Literal["none"] | None = Field(None, description="`none` takes it away.")
    default_project: ProjectName | None = None


class Person(Contract):
    """An account."""

    id: str
    name: str
    email: str | None = None
    kind: Literal["person", "service"]
    cluster_role: ClusterRole | None = None
    active: bool
    default_project: str | None = None
    projects: dict[str, ProjectRole] = Field({}, description="Project -> role in it.")
    created_at: datetime


class PersonList(Contract):
    """Accounts, by name."""

    items: tuple[Person, ...]


class Me(Person):
    """Who the caller is."""

    key_id: str | None = Field(None, description="The key of this request or session, if there is one.")
    allowed: dict[str, ProjectRole] = Field(
        {}, description="Project -> role with this key, which may allow less than the person has."
    )


class MemberRequest(Contract):
    """A person's role in a project."""

    role: ProjectRole


class Member(Contract):
    """A person in a project."""

    person_id: str
    name: str
    email: str | None = None
    kind: Literal["person", "service"]
    active: bool
    role: ProjectRole


class MemberList(Contract):
    """A project's members, by name."""

    items: tuple[Member, ...]


class KeyRequest(Contract):
    """Request for a new key."""

    name: Name = Field(description="What it is for, or which node's it is.")
    role: Role = Field(
        "member",
        description="The most that it allows; your own role in a project still holds. admin: all you may; "
        "node: for a node's worker (administrators only).",
    )
    project: ProjectName | None = Field(None, description="Allow it in this project alone.")
    person_id: str | None = Field(
        None, max_length=32, description="Whose key it is; default: yours (others: administrators only)."
    )
    days: int | None = Field(None, ge=1, le=3660, description="How long it works; null: until it is revoked.")
    node: Annotated[str, Field(max_length=64, pattern=NODE_NAME)] | None = Field(
        None, description="With role node: the only node that may use it."
    )


class KeyView(Contract):
    """A key, without the key itself."""

    id: str
    name: str
    role: Role
    project: str | None = None
    person_id: str | None = Field(None, description="Whose it is; null: a node's.")
    owner: str | None = Field(None, description="That person's name.")
    node: str | None = Field(None, description="The only node that may use it.")
    prefix: str | None = Field(None, description="How it begins, to tell it from others.")
    created_at: datetime
    expires_at: datetime | None = None
    used_at: datetime | None = Field(None, description="To within five minutes.")
    revoked_at: datetime | None = None
    made_by: str | None = Field(None, description="The key that made it, if a key did.")


class NewKey(KeyView):
    """A new key. It is shown only here."""

    key: str


class KeyList(Contract):
    """Keys, newest first."""

    items: tuple[KeyView, ...]

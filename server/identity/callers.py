"""The person behind a request, and what the policy lets them do with this key."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from powermean.contracts.identity import ClusterRole, ProjectRole
from server.identity.policy import CLUSTER_VERBS, ROLES, Grant, Verb, grant


@dataclass(frozen=True)
class Caller:
    """A signed-in person or a service account, already restricted to what their key allows."""

    person_id: str
    name: str
    key_id: str | None
    cluster_role: ClusterRole | None
    roles: Mapping[str, ProjectRole]  # by project
    default_project: str | None
    cap: str = "admin"  # the most that the key allows; new keys allow no more
    bound: str | None = None  # the only project that the key allows

    def may(self, verb: Verb, project: str | None = None, owner: str | None = None) -> bool:
        """Whether the policy allows it, for a thing of `project` that `owner` made.

        Cluster verbs need no project; others are refused without one.
        """
        allowed = self._grant(verb, project)
        return allowed == "yes" or (allowed == "own" and owner == self.person_id)

    def covers(self, role: str, project: str | None) -> bool:
        """Whether this key allows all that one of this role and project does."""
        if self.bound not in (None, project):
            return False
        if self.cap in ROLES and role in ROLES:
            return ROLES.index(role) <= ROLES.index(self.cap)
        return self.cap in ("admin", role) or role == "viewer"

    def _grant(self, verb: Verb, project: str | None) -> Grant:
        if self.cluster_role == "admin":
            return "yes"
        if self.cluster_role == "auditor" and grant(verb, "auditor") == "yes":
            return "yes"
        if verb in CLUSTER_VERBS:
            return grant(verb, "viewer")
        role = self.roles.get(project or "")
        return grant(verb, role) if role is not None else "no"

    @property
    def visible(self) -> frozenset[str] | None:
        """The projects whose things this caller sees; None: all."""
        return None if self.cluster_role is not None else frozenset(self.roles)


def capped(role: ProjectRole, most: str) -> ProjectRole:
    """The lower of a person's role and what their key allows."""
    highest = {"admin": "maintainer", "auditor": "viewer"}.get(most, most)
    return min(role, cast(ProjectRole, highest), key=ROLES.index)

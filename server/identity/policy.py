"""Who may do what: the one place that decides. docs/people.md prints this table.

A role holds in a project; `auditor` and `admin` hold everywhere. An administrator may do everything, and so
has no column. What concerns the cluster and no project is for everybody who is signed in, or for nobody but
the auditor and the administrator.
"""

from typing import Final, Literal

from powermean.contracts.identity import ProjectRole

Verb = Literal[
    "project.read", "project.change", "project.remove", "member.change",
    "storage.read", "storage.limit", "quota.read", "quota.change", "audit.read",
    "job.read", "job.submit", "job.change", "replay.ask",
    "dataset.read", "dataset.add", "dataset.remove", "secret.read", "secret.change",
    "self.use", "cluster.read", "cluster.change", "person.read", "person.change", "project.create",
    "cluster.audit", "operations.read",
]  # fmt: skip
Grant = Literal["no", "own", "yes"]  # own: of what the caller made

ROLES: Final[tuple[ProjectRole, ...]] = ("viewer", "member", "maintainer")  # each may what the one before may

# fmt: off
POLICY: Final[dict[Verb, tuple[Grant, Grant, Grant, Grant]]] = {
    # in a project      viewer  member  maintainer  auditor
    "project.read":    ("yes",  "yes",  "yes",      "yes"),
    "project.change":  ("no",   "no",   "yes",      "no"),
    "project.remove":  ("no",   "no",   "no",       "no"),
    "member.change":   ("no",   "no",   "yes",      "no"),
    "storage.read":    ("yes",  "yes",  "yes",      "yes"),
    "storage.limit":   ("no",   "no",   "no",       "no"),
    "quota.read":      ("yes",  "yes",  "yes",      "yes"),
    "quota.change":    ("no",   "no",   "no",       "no"),
    "audit.read":      ("no",   "no",   "yes",      "yes"),
    "job.read":        ("yes",  "yes",  "yes",      "yes"),
    "job.submit":      ("no",   "yes",  "yes",      "no"),
    "job.change":      ("no",   "own",  "yes",      "no"),
    "replay.ask":      ("no",   "yes",  "yes",      "no"),
    "dataset.read":    ("yes",  "yes",  "yes",      "yes"),
    "dataset.add":     ("no",   "yes",  "yes",      "no"),
    "dataset.remove":  ("no",   "own",  "yes",      "no"),
    "secret.read":     ("no",   "yes",  "yes",      "yes"),  # names alone: nobody reads values
    "secret.change":   ("no",   "no",   "yes",      "no"),
    # in the cluster    everybody who is signed in  auditor
    "self.use":        ("yes",  "yes",  "yes",      "yes"),  # one's own name, keys and sessions
    "cluster.read":    ("yes",  "yes",  "yes",      "yes"),  # nodes and shared engines
    "cluster.change":  ("no",   "no",   "no",       "no"),
    "person.read":     ("no",   "no",   "no",       "yes"),
    "person.change":   ("no",   "no",   "no",       "no"),
    "project.create":  ("no",   "no",   "no",       "no"),
    "cluster.audit":   ("no",   "no",   "no",       "yes"),  # the audit log of everything
    "operations.read": ("no",   "no",   "no",       "yes"),  # Prometheus' numbers, over all projects
}
# fmt: on
CLUSTER_VERBS: Final[frozenset[Verb]] = frozenset(
    {
        "self.use",
        "cluster.read",
        "cluster.change",
        "person.read",
        "person.change",
        "project.create",
        "cluster.audit",
        "operations.read",
    }
)  # fmt: skip


def grant(verb: Verb, role: ProjectRole | Literal["auditor"]) -> Grant:
    """What the role may; project roles decide about cluster verbs alike."""
    viewer, member, maintainer, auditor = POLICY[verb]
    return {"viewer": viewer, "member": member, "maintainer": maintainer, "auditor": auditor}[role]

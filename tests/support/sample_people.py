"""People, projects and members, as the API answers them."""

from datetime import UTC, datetime
from typing import Any

from powermean.contracts.identity import KeyView, Me, Member, Person, Project

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
ADA: dict[str, Any] = {"name": "Ada", "email": "ada@example.org", "kind": "person", "active": True}


def person(**changes: Any) -> Person:
    return Person.model_validate({"id": "person-ada", "created_at": NOW} | ADA | changes)


def me(**changes: Any) -> Me:
    return Me.model_validate({"id": "person-ada", "created_at": NOW} | ADA | changes)


def project(name: str = "team-a", **changes: Any) -> Project:
    given = {"name": name, "title": name, "role": "maintainer", "created_at": NOW}
    return Project.model_validate(given | changes)


def member(**changes: Any) -> Member:
    return Member.model_validate({"person_id": "person-ada", "role": "member"} | ADA | changes)


def key(**changes: Any) -> KeyView:
    given = {"id": "key-1", "name": "laptop", "role": "member", "owner": "Ada", "created_at": NOW}
    return KeyView.model_validate(given | changes)

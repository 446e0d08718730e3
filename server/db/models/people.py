"""People, projects and their quotas, and how people and programs show who they are."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Float, ForeignKey, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from server.db.models.base import Base


class Project(Base):
    """What a team owns together. The id is its name."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(String(63), primary_key=True)
    title: Mapped[str] = mapped_column(String(120))
    storage_limit: Mapped[int | None] = mapped_column(BigInteger)  # bytes; null: none
    gpu_quota: Mapped[int] = mapped_column(Integer, default=0, server_default="0")  # guaranteed GPUs
    gpu_limit: Mapped[int | None]  # the most, with what is borrowed; null: all that is idle
    cpu_quota: Mapped[int] = mapped_column(Integer, default=0, server_default="0")  # slots of CPU jobs
    cpu_limit: Mapped[int | None]
    share_weight: Mapped[float] = mapped_column(Float, default=1.0, server_default="1")  # among borrowers
    quota_version: Mapped[int] = mapped_column(Integer, default=0, server_default="0")  # counts its changes
    retention: Mapped[dict[str, Any] | None] = mapped_column(JSON)  # contracts.storage.Retention
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]  # nobody sees it from then on; its rows go in batches


class Person(Base):
    """Somebody who may use the service, or a service account. kind: person or service."""

    __tablename__ = "people"
    __table_args__ = (Index("uq_people_oidc", "oidc_issuer", "oidc_subject", unique=True),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(120))
    email: Mapped[str | None] = mapped_column(String(254), unique=True)  # in lower case
    kind: Mapped[str] = mapped_column(String(8))
    cluster_role: Mapped[str | None] = mapped_column(String(16))  # admin or auditor
    default_project: Mapped[str | None] = mapped_column(ForeignKey("projects.id"))
    active: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[datetime]
    password_hash: Mapped[str | None] = mapped_column(String(200))  # identity/passwords.py
    oidc_issuer: Mapped[str | None] = mapped_column(String(255))  # who vouches for the person, and as whom
    oidc_subject: Mapped[str | None] = mapped_column(String(255))
    oidc_until: Mapped[datetime | None]  # how long that word holds; null: nobody's word is needed


class Membership(Base):
    """A person's role in a project: viewer, member or maintainer."""

    __tablename__ = "memberships"

    person_id: Mapped[str] = mapped_column(ForeignKey("people.id"), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True, index=True)
    role: Mapped[str] = mapped_column(String(16))


class ApiKey(Base):
    """A bearer key, stored hashed: a person's, or a node's token.

    A person's key allows at most what `role` does, in `project_id` alone if it names one.
    """

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(120))
    role: Mapped[str] = mapped_column(String(16))  # node, or the most that it allows: identity/policy.py
    person_id: Mapped[str | None] = mapped_column(ForeignKey("people.id"), index=True)  # null: a node's
    project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id"))  # null: all of the person's
    node: Mapped[str | None] = mapped_column(String(64))  # the only one whose token it is
    key_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    prefix: Mapped[str | None] = mapped_column(
        String(16)
    )  # to tell keys apart; null: made by an older version
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    used_at: Mapped[datetime | None]  # to within sessions.TOUCH
    revoked_at: Mapped[datetime | None]
    made_by: Mapped[str | None] = mapped_column(String(32), index=True)  # the key that made it


class BrowserSession(Base):
    """A signed-in browser; the cookie's value is stored hashed. A code is a session not yet opened.

    kind: session, or how one can be opened: code (by its own person) or invite (by an administrator's link).
    """

    __tablename__ = "browser_sessions"

    id_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(8))
    method: Mapped[str | None] = mapped_column(String(16))  # of a session: how it was opened
    person_id: Mapped[str] = mapped_column(ForeignKey("people.id"), index=True)
    key_id: Mapped[str | None] = mapped_column(ForeignKey("api_keys.id"))  # that opened it, if one did
    agent: Mapped[str | None] = mapped_column(String(200))
    address: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime]
    used_at: Mapped[datetime]  # to within sessions.TOUCH
    expires_at: Mapped[datetime]  # unless it is used
    ends_at: Mapped[datetime]  # in any case


class DeviceSignIn(Base):
    """A command line that waits for a person's word. state: pending, approved or denied."""

    __tablename__ = "device_sign_ins"

    secret_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_code: Mapped[str] = mapped_column(String(16), unique=True)
    client: Mapped[str] = mapped_column(String(120))
    address: Mapped[str | None] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(8))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    person_id: Mapped[str | None] = mapped_column(ForeignKey("people.id"))  # who decided
    project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id"))  # of the key, as what follows
    role: Mapped[str | None] = mapped_column(String(16))
    key_ends_at: Mapped[datetime | None]
    made_by: Mapped[str | None] = mapped_column(String(32))  # the key behind the session that decided

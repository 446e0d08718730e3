"""Values that only their key opens."""

from datetime import datetime

from sqlalchemy import ForeignKey, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from server.db.models.base import Base, OwnedByProject


class SealedValue:
    """A secret's value, encrypted (server/vault/sealing.py), and who set it."""

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    key_id: Mapped[str] = mapped_column(String(32))  # of the key in the file that wrapped `wrapped_key`
    wrapped_key: Mapped[bytes] = mapped_column(LargeBinary)
    blob: Mapped[bytes] = mapped_column(LargeBinary)
    set_by: Mapped[str] = mapped_column(ForeignKey("people.id"))
    set_at: Mapped[datetime]
    used_at: Mapped[datetime | None]  # when a job last got it


class ProjectSecret(OwnedByProject, SealedValue, Base):
    """A secret that all jobs of the project may name."""

    __tablename__ = "project_secrets"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)


class PersonSecret(SealedValue, Base):
    """A secret that the person's own jobs may name, as me/NAME."""

    __tablename__ = "person_secrets"

    person_id: Mapped[str] = mapped_column(ForeignKey("people.id"), primary_key=True)

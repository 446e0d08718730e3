"""Wire types of keys and browser sessions."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, model_validator

from powermean.contracts.base import Contract, Name

Role = Literal["admin", "member", "node"]


class KeyRequest(Contract):
    """Request for a new key."""

    name: Name = Field(description="Whose key it is, or which node's.")
    role: Role = Field(
        "member", description="admin may manage keys; member uses the service; node is for a node's worker."
    )


class KeyView(Contract):
    """A key, without the key itself."""

    id: str
    name: str
    role: Role
    created_at: datetime
    revoked_at: datetime | None = None


class NewKey(KeyView):
    """A new key. It is shown only here."""

    key: str


class KeyList(Contract):
    """Keys, newest first."""

    items: tuple[KeyView, ...]


class SessionRequest(Contract):
    """Sign a browser in, with a key or a one-time code (POST /v1/login-codes)."""

    key: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    code: Annotated[str, Field(min_length=1, max_length=200)] | None = None

    @model_validator(mode="after")
    def _one_proof(self) -> "SessionRequest":
        if (self.key is None) == (self.code is None):
            raise ValueError("give exactly one of key and code")
        return self


class SessionView(Contract):
    """Who is signed in, and until when; the session itself is in an HttpOnly cookie."""

    name: str
    role: Role
    expires_at: datetime

"""Wire types of signing in: passwords, OIDC, one's sessions, and the codes of command lines."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, model_validator

from powermean.contracts.base import Contract, Name
from powermean.contracts.identity import ClusterRole, NewKey, ProjectName, ProjectRole, Role

MIN_PASSWORD = 12  # characters; NIST SP 800-63B asks for length and for no rules of composition
MAX_PASSWORD = 200

SignInMethod = Literal["key", "code", "invitation", "password", "oidc"]
DeviceState = Literal["pending", "approved", "denied"]
KEY_DAYS = 90  # how long a new key lives unless its maker says otherwise

Password = Annotated[str, Field(min_length=MIN_PASSWORD, max_length=MAX_PASSWORD)]


class OidcProof(Contract):
    """What the provider sent the browser back with, and what the browser had kept."""

    code: Annotated[str, Field(min_length=1, max_length=2000)]
    state: Annotated[str, Field(min_length=1, max_length=200)]
    secret: Annotated[str, Field(min_length=1, max_length=200)]


class SessionRequest(Contract):
    """Sign a browser in, with one proof of who it is."""

    key: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    code: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="A one-time code: POST /v1/login-codes, or an invitation."
    )
    email: Annotated[str, Field(min_length=1, max_length=254)] | None = None
    password: Annotated[str, Field(min_length=1, max_length=MAX_PASSWORD)] | None = None
    oidc: OidcProof | None = None

    @model_validator(mode="after")
    def _one_proof(self) -> "SessionRequest":
        if (self.email is None) != (self.password is None):
            raise ValueError("give email and password together")
        if [self.key, self.code, self.email, self.oidc].count(None) != 3:
            raise ValueError("give exactly one of key, code, email with password, and oidc")
        return self


class SessionView(Contract):
    """Who is signed in, how, and until when; the session itself is in an HttpOnly cookie."""

    name: str
    role: Role
    method: SignInMethod
    expires_at: datetime


class SignInWays(Contract):
    """How people can sign in here, for the page that asks them."""

    oidc: str | None = Field(description="Name of the OIDC provider, if one is configured.")
    passwords: bool = Field(description="Whether anybody here has one.")


class OidcStart(Contract):
    """Where to send the browser, and what it must keep until it is back, out of scripts' reach."""

    url: str
    secret: str


class OidcGrant(Contract):
    """One line of the table that says what a claim allows: a role in a project, or in the whole cluster."""

    claim: str = Field("groups", min_length=1, description="Its name; dots lead into objects.")
    value: str = Field(min_length=1, description="One of the claim's values; * for any.")
    project: ProjectName | None = None
    role: ProjectRole | None = None
    cluster_role: ClusterRole | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "OidcGrant":
        if (self.project is None) != (self.role is None) or (self.role is None) == (
            self.cluster_role is None
        ):
            raise ValueError("give project and role, or cluster_role")
        return self


class PasswordChange(Contract):
    """Set one's own password."""

    password: Password
    current: Annotated[str, Field(max_length=MAX_PASSWORD)] | None = Field(
        None, description="The present password; not needed after an invitation."
    )


class OwnSession(Contract):
    """A browser that is signed in as the caller."""

    id: str
    method: SignInMethod
    agent: str | None = Field(description="What the browser says it is.")
    address: str | None = Field(description="Where it signed in from.")
    created_at: datetime
    used_at: datetime = Field(description="To within five minutes.")
    expires_at: datetime = Field(description="When it ends unless it is used.")
    ends_at: datetime = Field(description="When it ends in any case.")
    current: bool = Field(description="The one that asks.")


class OwnSessionList(Contract):
    """The caller's sessions, the last used first."""

    items: tuple[OwnSession, ...]


class DeviceRequest(Contract):
    """A command line asks to be signed in."""

    client: Name = Field(description="What asks, for the person who confirms it: `powermean on HOST`.")


class DeviceCode(Contract):
    """The person opens /device and enters `user_code`; meanwhile the command line asks with `device_code`."""

    device_code: str
    user_code: str
    interval_s: float = Field(description="Pause between two questions.")
    expires_at: datetime


class DeviceClaim(Contract):
    """Has the person confirmed?"""

    device_code: Annotated[str, Field(min_length=1, max_length=200)]


class SignedInDevice(Contract):
    """The command line's key, and whose it is. It is shown only here."""

    person: str
    key: NewKey


class DeviceAnswer(Contract):
    """The person's word so far; `signed_in` once they have agreed, and only once."""

    state: DeviceState
    signed_in: SignedInDevice | None = None


class DeviceView(Contract):
    """A command line that waits for the person's word."""

    user_code: str
    client: str
    address: str | None
    created_at: datetime
    expires_at: datetime
    state: DeviceState


class DeviceDecision(Contract):
    """The person's word: what the command line may do, as a key of theirs."""

    approve: bool
    project: ProjectName | None = Field(
        None, description="The only project that it may use; null: all of yours."
    )
    days: int = Field(KEY_DAYS, ge=1, le=366, description="How long it stays signed in.")

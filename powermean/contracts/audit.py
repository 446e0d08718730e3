"""The audit log: who did what, when, from where, to what, and whether it was allowed."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from powermean.contracts.base import Contract, Sha256

Outcome = Literal["allowed", "refused"]
_COMMANDS = ("python -m server ", "powermean restore")  # requests of those who have a server's machine


class AuditEvent(Contract):
    """One thing that somebody did, or was refused. Never holds a key, a code or a body."""

    at: datetime = Field(description="By the server's clock.")
    actor: str | None = Field(None, description="Id of the person, node or attempt; null: a stranger.")
    actor_name: str | None = Field(None, description="The actor's name at the time.")
    key_id: str | None = Field(None, description="The key that was used; null: a browser session, or none.")
    address: str | None = Field(None, description="The caller's network address.")
    verb: str = Field(description="What the policy decides about, such as job.submit.")
    request: str = Field(description="Method and route, such as POST /v1/jobs/{job_id}/cancel.")
    target: str | None = Field(None, description="Id of what it was done to.")
    project: str | None = Field(None, description="The target's project, if it has one.")
    outcome: Outcome
    status: int | None = Field(None, description="Status of a refusal.")
    count: int = Field(1, ge=1, description="How many refusals like this one the entry stands for.")
    detail: dict[str, str] = Field(default={}, description="What it was set to, such as a role.")
    request_id: str | None = Field(None, description="Finds the request in the server's log.")

    @property
    def who(self) -> str:
        """Who did it, for people."""
        if self.outcome == "allowed" and self.request.startswith(_COMMANDS):
            return "on the server"
        unnamed = "several" if self.verb == "other" else "stranger"  # a flood's rest is of anybody
        return self.actor_name or self.actor or unnamed


class AuditEntry(AuditEvent):
    """An event in the log. `hash` covers everything else in the entry, `previous` included."""

    seq: int = Field(ge=1, description="1 for the first entry, without gaps.")
    previous: Sha256 = Field(description="The previous entry's hash; zeros for the first one.")
    hash: Sha256


class AuditCut(Contract):
    """The newest entry that was archived and removed with all before it, signed: the log begins after it."""

    seq: int = Field(ge=1)
    hash: Sha256
    signature: str = Field(description="EdDSA JWT of seq and hash, for another audience than a head's.")


class AuditHead(Contract):
    """The log's newest entry, signed. Kept elsewhere, it shows later that nothing up to it was touched."""

    seq: int = Field(ge=0)
    hash: Sha256
    signature: str = Field(description="EdDSA JWT of seq and hash, by the key that signs attempt tokens.")
    cut: AuditCut | None = Field(  # left out while it is null, because older readers refuse unknown fields
        None,
        exclude_if=lambda cut: cut is None,
        description="Up to where the log was archived; not there: never.",
    )


class AuditPage(Contract):
    """Entries, newest first."""

    items: tuple[AuditEntry, ...]
    words: dict[str, str] = Field({}, description="What the items' requests do, for people, by `request`.")
    next: int | None = Field(None, description="`before` for the next page.")

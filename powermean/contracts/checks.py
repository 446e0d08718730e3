"""What `powermean doctor` finds, and what a node asks the server for that."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from powermean.contracts.artefacts import ArtefactRef
from powermean.contracts.base import Contract

Verdict = Literal["ok", "warning", "failed"]


class Check(Contract):
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    said: str = Field(description="What was found, for people.")
    remedy: str | None = Field(None, description="What to do about it.")


class Checkup(Contract):
    """All that was looked at in one place."""

    of: Literal["server", "node"]
    checks: tuple[Check, ...]


class NodeQuestion(Contract):
    """What a node asks about itself."""

    instance: str = Field("", max_length=64, description="Its worker, as in reports.")
    probe: ArtefactRef | None = Field(None, description="A small object below probe/ that it has stored.")


class NodeAnswer(Contract):
    """What the server says about the node that asks."""

    version: str = Field(description="The server's.")
    now: datetime = Field(description="By the database's clock, which decides about leases.")
    probe_error: str | None = Field(None, description="Why the server can't read the object; null: it can.")
    holder: str | None = Field(None, description="Host of another worker that has the node's name.")
    public_key: str = Field(description="What attempt tokens are verified with, as PEM.")

"""Where an object lies in a store: `{owner}/{sha256}-{name}`."""

import re

from powermean.artefacts.errors import ArtefactKeyInvalidError
from powermean.contracts.artefacts import ArtefactRef

NAME_LENGTH = 100

# of a key between slashes; the whole last part of an object's key
PART = re.compile(r"[A-Za-z0-9@+=_-][A-Za-z0-9.@+=_-]*")
OBJECT = re.compile(r"(?P<sha256>[0-9a-f]{64})-(?P<name>.+)")


def check_key(key: str) -> str:
    """The key, if it names a place inside the store; otherwise raises ArtefactKeyInvalidError."""
    if len(key) > 500 or not all(PART.fullmatch(part) for part in key.split("/")):
        raise ArtefactKeyInvalidError(f"not an artefact key: {key[:100]!r}")
    return key


def check_owner(owner: str) -> str:
    """The owner, if it leaves room for hash and name; otherwise raises ArtefactKeyInvalidError."""
    check_key(owner)
    if len(owner) > 300:
        raise ArtefactKeyInvalidError(f"owner longer than 300 characters: {owner[:100]!r}")
    return owner


def clean_name(name: str) -> str:
    """The name with what a key can't have replaced, and its end alone if it is too long."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[-NAME_LENGTH:] or "data"


def object_ref(owner: str, sha256: str, name: str, size: int) -> ArtefactRef:
    """The reference to an object of this owner."""
    return ArtefactRef(key=f"{owner}/{sha256}-{name}", sha256=sha256, size=size)

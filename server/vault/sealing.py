"""Envelope encryption: each value has a data key of its own, which the key service wraps.

The owner and the name of a secret are part of what is authenticated, so that a row's contents are of no use
in another row.
"""

import json
import os
from dataclasses import dataclass, field
from typing import Literal

from server.vault.key_file import KEY_BYTES, KeyService, WrappedKey, decrypt, encrypt


@dataclass(frozen=True)
class Owner:
    """Whose a secret is."""

    kind: Literal["project", "person"]
    id: str


@dataclass(frozen=True)
class Sealed:
    """What the database has of a value."""

    key_id: str
    wrapped_key: bytes = field(repr=False)
    blob: bytes = field(repr=False)


def seal(keys: KeyService, owner: Owner, name: str, value: str) -> Sealed:
    """Encrypt a value with a new data key."""
    context = _context(owner, name)
    data_key = os.urandom(KEY_BYTES)
    wrapped = keys.wrap(data_key, context)
    return Sealed(wrapped.key_id, wrapped.blob, encrypt(data_key, value.encode(), context))


def unseal(keys: KeyService, owner: Owner, name: str, sealed: Sealed) -> str:
    """The value. Raises KeyUnavailableError."""
    context = _context(owner, name)
    data_key = keys.unwrap(WrappedKey(sealed.key_id, sealed.wrapped_key), context)
    return decrypt(data_key, sealed.blob, context).decode()


def _context(owner: Owner, name: str) -> bytes:
    return json.dumps(["powermean secret", owner.kind, owner.id, name]).encode()

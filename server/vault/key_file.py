"""The keys that protect all others, in a file: an ID and 256 random bits a line, newest last.

`KeyService` is what a key management service does: it wraps and unwraps data keys; its own never leave it.
"""

import fcntl
import os
import stat
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from powermean import private_files
from powermean.errors import PowermeanError

FILE_NAME = "secrets.keys"
KEY_BYTES = 32
NONCE_BYTES = 12


class KeyUnavailableError(PowermeanError):
    """The key that wrapped a data key is not here, or is not the one that did."""

    code = "secret_key_unavailable"


@dataclass(frozen=True)
class WrappedKey:
    """A data key, encrypted with the key `key_id`."""

    key_id: str
    blob: bytes = field(repr=False)


class KeyService(Protocol):
    """Wraps data keys. `context` must be the same for both: a wrapped key is of no use elsewhere."""

    def wrap(self, data_key: bytes, context: bytes) -> WrappedKey:
        """With the newest key."""

    def unwrap(self, wrapped: WrappedKey, context: bytes) -> bytes:
        """Raises KeyUnavailableError."""


class KeyFile:
    """A KeyService on this machine. It reads the file each time, so that a rotation needs no restart."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME

    @classmethod
    def ensure(cls, folder: Path) -> "KeyFile":
        """The file in `folder`, made on first use; safe if several servers start at once.

        Raises KeyUnavailableError for a file that others may read, or that holds no keys.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        keys = cls(folder)
        if not keys.path.exists():
            private_files.write_new(keys.path, _line(*_new_key()))
        if keys.path.stat().st_mode & (stat.S_IRWXO):
            raise KeyUnavailableError(
                f"other users of this machine can read {keys.path}", remedy=f"chmod 600 {keys.path}"
            )
        keys.ids()
        return keys

    def wrap(self, data_key: bytes, context: bytes) -> WrappedKey:
        """See KeyService."""
        keys = self._read()
        key_id = next(reversed(keys))
        return WrappedKey(key_id, encrypt(keys[key_id], data_key, _bound(key_id, context)))

    def unwrap(self, wrapped: WrappedKey, context: bytes) -> bytes:
        """See KeyService."""
        key = self._read().get(wrapped.key_id)
        if key is None:
            raise KeyUnavailableError(
                f"{self.path} lacks the key {wrapped.key_id}, with which this was encrypted",
                remedy="Restore that file from its backup, or set the secrets again.",
            )
        return decrypt(key, wrapped.blob, _bound(wrapped.key_id, context))

    def ids(self) -> list[str]:
        """Oldest first; new data keys are wrapped with the last one's key."""
        return list(self._read())

    def add(self) -> str:
        """Add a new key, which is used from now on; returns its ID."""
        key_id, key = _new_key()
        self._write({**self._read(), key_id: key})
        return key_id

    def keep(self, ids: Collection[str]) -> None:
        """Remove all other keys."""
        self._write({key_id: key for key_id, key in self._read().items() if key_id in ids})

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One rotation at a time; the lock is free again when its holder dies."""
        with self.path.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise KeyUnavailableError(
                    "another rotation is running", remedy="Wait for its end."
                ) from error
            yield

    def _read(self) -> dict[str, bytes]:
        try:
            pairs = [line.split() for line in self.path.read_text().splitlines() if line]
            keys = {key_id: b64decode(key, validate=True) for key_id, key in pairs}
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not a file of keys"
            raise KeyUnavailableError(f"{self.path} can't be read: {why}") from None
        if not keys or any(len(key) != KEY_BYTES for key in keys.values()):
            raise KeyUnavailableError(f"{self.path} is not a file of keys")
        return keys

    def _write(self, keys: dict[str, bytes]) -> None:
        private_files.replace(self.path, "".join(_line(key_id, key) for key_id, key in keys.items()))


def encrypt(key: bytes, text: bytes, context: bytes) -> bytes:
    """AES-256-GCM with a fresh nonce, which comes first."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, text, context)


def decrypt(key: bytes, blob: bytes, context: bytes) -> bytes:
    """Raises KeyUnavailableError where key or context are not those of the encryption, or it was changed."""
    try:
        return AESGCM(key).decrypt(blob[:NONCE_BYTES], blob[NONCE_BYTES:], context)
    except (InvalidTag, ValueError) as error:
        raise KeyUnavailableError(
            "a secret does not decrypt: its row was changed or belongs to another name, or the key file is "
            "another service's",
            remedy="Set the secret again.",
        ) from error


def _new_key() -> tuple[str, bytes]:
    return f"key-{os.urandom(6).hex()}", os.urandom(KEY_BYTES)


def _line(key_id: str, key: bytes) -> str:
    return f"{key_id} {b64encode(key).decode()}\n"


def _bound(key_id: str, context: bytes) -> bytes:
    return b"data key\0" + key_id.encode() + b"\0" + context

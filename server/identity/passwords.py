"""Passwords: argon2id with the library's parameters, and the same work for accounts that don't exist."""

import threading
import unicodedata
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from server.errors import InvalidInputError

_AT_ONCE = 4  # hashes; each takes 64 MiB and a core for some tens of milliseconds

HASHER = PasswordHasher()
_turns = threading.BoundedSemaphore(_AT_ONCE)


def hash_password(password: str) -> str:
    """What is stored of a password: salt, parameters and hash, in one text."""
    with _turns:
        return HASHER.hash(_normal(password))


def is_password(stored: str | None, given: str) -> bool:
    """Whether `given` is the password; does the same work where none is stored."""
    with _turns:
        try:
            right = HASHER.verify(stored or _nobodys(), _normal(given))
        except (VerificationError, InvalidHashError):
            return False
    return right and stored is not None


def is_outdated(stored: str) -> bool:
    """Whether the hash was made with other parameters than today's."""
    return HASHER.check_needs_rehash(stored)


def check_choice(password: str, *known: str | None) -> None:
    """Raises InvalidInputError for a password that is the person's own name or address, or one character."""
    chosen = _normal(password).casefold()
    if len(set(chosen)) < 4 or any(
        one and _normal(one).casefold() in (chosen, chosen[::-1]) for one in known
    ):
        raise InvalidInputError.at(
            "password",
            "is too easy to guess",
            remedy="Take a few words, or what a password manager suggests.",
        )


def _normal(password: str) -> str:
    """The same bytes from every keyboard: NIST SP 800-63B, 3.1.1.2."""
    return unicodedata.normalize("NFKC", password)


@cache
def _nobodys() -> str:
    return HASHER.hash("no account has this hash")

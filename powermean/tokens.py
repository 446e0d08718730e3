"""Attempt tokens: short-lived, signed by the server, proving that the bearer acts for one attempt at a job.

They are EdDSA (Ed25519) JWTs, so a rollout service can verify them offline with just the server's public key.
The attempt's number is the job's fencing token: whoever checks a token compares it with the number it knows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from powermean import private_files
from powermean.errors import PowermeanError

ALGORITHM = "EdDSA"
ISSUER = "powermean"
AUDIENCE = "powermean-attempt"
LIFETIME_S = 900.0  # every heartbeat's reply contains a fresh one
CLOCK_SKEW_S = 30.0  # largest accepted clock difference between two hosts
PRIVATE_KEY_NAME = "attempt_token.key"
PUBLIC_KEY_NAME = "attempt_token.pub"


class Verb(StrEnum):
    """What a token allows."""

    REPORT = "report"  # heartbeats, metrics, logs, checkpoints, the outcome: everything sent to the server
    GENERATE = "generate"  # completions from a rollout service
    PUBLISH = "publish"  # new weights for a rollout service


ALL_VERBS = tuple(Verb)


class TokenError(PowermeanError):
    """The token can't be accepted."""


class TokenInvalidError(TokenError):
    """Not signed by this server, or not an attempt token."""


class TokenExpiredError(TokenError):
    """It has expired; the next heartbeat's reply contains a fresh one."""


class TokenKeyError(TokenError):
    """The key itself can't be used: not PEM, or not Ed25519."""


@dataclass(frozen=True)
class AttemptClaims:
    """The claims of a verified token."""

    job_id: str
    attempt: int
    verbs: frozenset[str]
    node_rank: int = 0  # which of the attempt's nodes has it

    @property
    def attempt_id(self) -> str:
        return f"{self.job_id}.{self.attempt}"

    def allows(self, verb: str) -> bool:
        return verb in self.verbs


@dataclass(frozen=True)
class KeyPair:
    """The server's signing key, and the public key for nodes and engines, both as PEM."""

    private_pem: str
    public_pem: str


def sign_attempt_token(
    private_key_pem: str,
    job_id: str,
    attempt: int,
    verbs: Iterable[str] = ALL_VERBS,
    lifetime_s: float = LIFETIME_S,
    now: datetime | None = None,
    node_rank: int = 0,
) -> str:
    """A token for attempt number `attempt` of the job, valid for `lifetime_s` seconds from now.

    Raises TokenKeyError if the key is unusable.
    """
    if lifetime_s <= 0:
        raise ValueError("lifetime_s must be above 0")
    issued = now or datetime.now(UTC)
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": job_id,
        "attempt": attempt,
        "node_rank": node_rank,
        "verbs": sorted(verbs),
        "iat": issued,
        "exp": issued + timedelta(seconds=lifetime_s),
    }
    try:
        return jwt.encode(claims, private_key_pem, algorithm=ALGORITHM)
    except (jwt.InvalidKeyError, UnsupportedAlgorithm, ValueError, TypeError) as error:
        raise TokenKeyError("the private key is not an Ed25519 key in PEM") from error


def verify_attempt_token(token: str, public_key_pem: str, *, even_expired: bool = False) -> AttemptClaims:
    """The token's claims, if the server with this public key signed it and it is still valid.

    With `even_expired` its age does not matter: only for who checks otherwise that the attempt is current.

    Raises TokenExpiredError, TokenInvalidError, or TokenKeyError if the key is unusable.
    """
    claims, expires_at = _verified(token, public_key_pem)
    if not even_expired and expires_at <= datetime.now(UTC).timestamp() - CLOCK_SKEW_S:
        raise TokenExpiredError("the attempt token has expired")
    return claims


@lru_cache(maxsize=4096)  # a token comes with each of an attempt's reports, until a heartbeat replaces it
def _verified(token: str, public_key_pem: str) -> tuple[AttemptClaims, int]:
    """The claims of a token of any age, and when it expires."""
    try:
        claims = jwt.decode(
            token,
            public_key_pem,
            algorithms=[ALGORITHM],
            audience=AUDIENCE,
            issuer=ISSUER,
            leeway=CLOCK_SKEW_S,
            options={"require": ["exp", "iat", "sub", "aud", "iss"], "verify_exp": False},
        )
    except jwt.InvalidKeyError as error:
        raise TokenKeyError("the public key is not an Ed25519 key in PEM") from error
    except jwt.InvalidTokenError as error:
        raise TokenInvalidError(f"not a valid attempt token: {error}") from error
    except (UnsupportedAlgorithm, ValueError, TypeError) as error:
        raise TokenKeyError("the public key is not an Ed25519 key in PEM") from error
    if type(claims["exp"]) is not int:
        raise TokenInvalidError("not an attempt token: it does not say when it expires")
    return _claims(claims), claims["exp"]


def _claims(claims: dict[str, object]) -> AttemptClaims:
    job_id, attempt, verbs = claims["sub"], claims.get("attempt"), claims.get("verbs")
    node_rank = claims.get("node_rank", 0)  # tokens from before have none
    if not isinstance(job_id, str) or type(attempt) is not int or attempt < 1:
        raise TokenInvalidError("not an attempt token: it names no attempt")
    if not isinstance(verbs, list) or not all(isinstance(verb, str) for verb in verbs):
        raise TokenInvalidError("not an attempt token: it names no verbs")
    if type(node_rank) is not int or node_rank < 0:
        raise TokenInvalidError("not an attempt token: it names no node")
    return AttemptClaims(job_id, attempt, frozenset(verbs), node_rank)


def ensure_key_pair(folder: Path, copy: Path | None = None) -> KeyPair:
    """The key pair in `folder`, generated on first use; safe if several servers start at once.

    Only its owner can read the private key. `copy` gets the public one, too: nodes need nothing else of the
    folder. Raises TokenKeyError if the file there is not such a key.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    private_path = folder / PRIVATE_KEY_NAME
    if not private_path.exists():
        private_files.write_new(private_path, _pem(Ed25519PrivateKey.generate()))
    private_pem = private_path.read_text()
    public_pem = _public_half(private_pem)
    for path in (folder / PUBLIC_KEY_NAME, copy):
        if path is not None and (not path.exists() or path.read_text() != public_pem):
            private_files.replace(path, public_pem)
    return KeyPair(private_pem, public_pem)


def _pem(key: Ed25519PrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _public_half(private_pem: str) -> str:
    try:
        key = serialization.load_pem_private_key(private_pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TokenKeyError(f"{PRIVATE_KEY_NAME} is not a private key in PEM") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise TokenKeyError(f"{PRIVATE_KEY_NAME} is not an Ed25519 key")
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )

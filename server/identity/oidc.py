"""Signing in at an OpenID Connect provider: the authorisation code flow with PKCE, and what its claims allow.

The browser keeps one random secret from the start to the return. State, nonce and PKCE's verifier are derived
from it, so that the server stores nothing about a sign-in that may never be finished, and an answer is only
good in the browser that asked. Nothing here knows the database.
"""

import base64
import hmac
import json
import logging
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.httpx_client import OAuth2Client
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from powermean.contracts.signin import OidcGrant
from server.errors import UnauthenticatedError, UnavailableError

TIMEOUT_S = 10.0
METADATA_S = 3600.0  # how long the provider's addresses and keys are remembered
RELOAD_S = 30.0  # shortest pause between two reads of them for a key that is not known
CLOCK_SKEW_S = 60
# Only what a public key verifies: with HS256, "none" or a mix of them the token could be made by others.
ALGORITHMS = [
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
    "Ed25519",
]

log = logging.getLogger(__name__)


_RANKS = ("viewer", "member", "maintainer", "auditor", "admin")


@dataclass(frozen=True)
class Granted:
    """What a person's claims allow. Projects of the table that give no role are those to leave."""

    roles: Mapping[str, str]
    projects: frozenset[str]  # all of the table
    cluster_role: str | None
    decides_cluster_role: bool


@dataclass(frozen=True)
class Subject:
    """Whom the provider vouches for. `(issuer, subject)` is the identity; the rest is what people read."""

    issuer: str
    subject: str
    name: str
    email: str | None
    claims: Mapping[str, Any]


def granted(grants: Sequence[OidcGrant], claims: Mapping[str, Any]) -> Granted:
    """Apply the table; of several roles in a project the highest holds."""
    held = [grant for grant in grants if _has(claims, grant)]
    roles: dict[str, str] = {}
    for grant in sorted(held, key=lambda one: _RANKS.index(one.role or "viewer")):
        if grant.project is not None and grant.role is not None:
            roles[grant.project] = grant.role
    cluster = [grant.cluster_role for grant in held if grant.cluster_role is not None]
    return Granted(
        roles=roles,
        projects=frozenset(grant.project for grant in grants if grant.project is not None),
        cluster_role=max(cluster, key=_RANKS.index, default=None),
        decides_cluster_role=any(grant.cluster_role is not None for grant in grants),
    )


def _has(claims: Mapping[str, Any], grant: OidcGrant) -> bool:
    found: Any = claims
    for part in [grant.claim] if grant.claim in claims else grant.claim.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    values = found if isinstance(found, list) else [] if found is None else [found]
    return any(grant.value in ("*", one) for one in values if isinstance(one, str))


class Provider:
    """The configured provider, as its discovery document describes it."""

    def __init__(self, issuer: str, client_id: str, client_secret: str | None, scopes: str) -> None:
        self.issuer = issuer
        self._client_id = client_id
        self._client_secret = client_secret
        self._scopes = scopes
        self._lock = threading.Lock()
        self._read_at = -METADATA_S
        self._metadata: dict[str, Any] = {}
        self._keys = KeySet([])

    def start(self, redirect_uri: str) -> tuple[str, str]:
        """The provider's address for the browser, and the secret that the browser has to keep.

        Raises UnavailableError if the provider can't be reached.
        """
        secret = secrets.token_urlsafe(32)
        endpoint = self._endpoint("authorization_endpoint")
        with self._client(redirect_uri) as client:
            url, _ = client.create_authorization_url(
                endpoint,
                state=_derived(secret, "state"),
                nonce=_derived(secret, "nonce"),
                code_verifier=_derived(secret, "verifier"),
            )
        return str(url), secret

    def finish(self, redirect_uri: str, code: str, state: str, secret: str) -> Subject:
        """Whom the provider sent back with this code.

        Raises:
            UnauthenticatedError: the answer belongs to another browser or another sign-in, or the provider or
                the token's signature, audience, nonce or time refuse it.
            UnavailableError: the provider can't be reached.
        """
        if not hmac.compare_digest(state.encode(), _derived(secret, "state").encode()):
            raise _refused("this sign-in was started in another browser, or before another one")
        endpoint = self._endpoint("token_endpoint")
        try:
            with self._client(redirect_uri) as client:
                token = client.fetch_token(endpoint, code=code, code_verifier=_derived(secret, "verifier"))
                claims = self._verified(token, _derived(secret, "nonce"))
                return self._subject(self._more_claims(client, claims["sub"]) | claims)
        except httpx2.HTTPError as error:
            raise _unreachable(self.issuer, error) from error
        except (AuthlibBaseError, JoseError, ValueError, TypeError) as error:
            log.warning("a sign-in at %s was refused: %s: %s", self.issuer, type(error).__name__, error)
            raise _refused("the sign-in at the provider is not valid, or was used already") from error

    def _client(self, redirect_uri: str) -> OAuth2Client:
        """Shows our secret in a header, or in the form if the provider wants that."""
        ways = self._metadata.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        way = "client_secret_basic" if "client_secret_basic" in ways else "client_secret_post"
        return OAuth2Client(
            self._client_id,
            self._client_secret,
            token_endpoint_auth_method=way if self._client_secret else "none",
            scope=self._scopes,
            redirect_uri=redirect_uri,
            code_challenge_method="S256",
            timeout=TIMEOUT_S,
        )

    def _verified(self, token: Mapping[str, Any], nonce: str) -> dict[str, Any]:
        """The claims of the ID token: signed by the provider, for us, in answer to this request, just now."""
        text = token.get("id_token")
        if not isinstance(text, str):
            raise ValueError("the provider's answer has no ID token")
        try:
            decoded = jwt.decode(text, self._keys, algorithms=ALGORITHMS)
        except (JoseError, ValueError):
            if not self._discover(after=RELOAD_S):
                raise
            decoded = jwt.decode(text, self._keys, algorithms=ALGORITHMS)  # the provider has new keys
        claims = CodeIDToken(
            decoded.claims,
            decoded.header,
            options={
                "iss": {"essential": True, "value": self.issuer},
                "aud": {"essential": True, "value": self._client_id},
                "exp": {"essential": True},
                "sub": {"essential": True},
            },
            params={
                "nonce": nonce,
                "client_id": self._client_id,
                "access_token": token.get("access_token"),
            },
        )
        claims.validate(leeway=CLOCK_SKEW_S)
        if not isinstance(claims["sub"], str) or not 0 < len(claims["sub"]) <= 255:
            raise ValueError("the ID token has no usable subject")
        return dict(claims)

    def _more_claims(self, client: OAuth2Client, subject: str) -> dict[str, Any]:
        """Claims of the userinfo endpoint: some providers give groups only there."""
        if "userinfo_endpoint" not in self._metadata:
            return {}
        answer = client.get(self._metadata["userinfo_endpoint"])
        answer.raise_for_status()
        found = answer.json()
        if not isinstance(found, dict) or found.get("sub") != subject:
            raise ValueError("the userinfo is somebody else's")
        return found

    def _subject(self, claims: Mapping[str, Any]) -> Subject:
        email = claims.get("email")
        verified = claims.get("email_verified", False) is True
        name = claims.get("name") or claims.get("preferred_username") or email or claims["sub"]
        return Subject(
            issuer=self.issuer,
            subject=claims["sub"],
            name="".join(c for c in str(name) if c.isprintable())[:120].strip() or "somebody",
            email=email if isinstance(email, str) and verified else None,
            claims=claims,
        )

    def _endpoint(self, name: str) -> str:
        self._discover(after=METADATA_S)
        return str(self._metadata[name])

    def _discover(self, after: float) -> bool:
        """Read the provider's document and keys if that was more than `after` seconds ago; whether it did.

        Raises UnavailableError.
        """
        with self._lock:
            if time.monotonic() - self._read_at < after:
                return False
            try:
                with httpx2.Client(timeout=TIMEOUT_S) as http:
                    metadata = _document(http, f"{self.issuer.rstrip('/')}/.well-known/openid-configuration")
                    if metadata.get("issuer") != self.issuer:
                        raise ValueError(f"it calls itself {metadata.get('issuer')!r}")
                    missing = {"authorization_endpoint", "token_endpoint", "jwks_uri"} - metadata.keys()
                    if missing:
                        raise ValueError(f"its document lacks {', '.join(sorted(missing))}")
                    keys = KeySet.import_key_set(_document(http, metadata["jwks_uri"]))  # type: ignore[arg-type]
            except (httpx2.HTTPError, JoseError, ValueError) as error:
                raise _unreachable(self.issuer, error) from error
            self._metadata, self._keys, self._read_at = metadata, keys, time.monotonic()
            return True


def _document(http: httpx2.Client, url: str) -> dict[str, Any]:
    answer = http.get(url)
    answer.raise_for_status()
    found = json.loads(answer.content)
    if not isinstance(found, dict):
        raise ValueError(f"{url} is no JSON object")
    return found


def _derived(secret: str, label: str) -> str:
    """43 characters that show nothing of the secret, nor of what is derived for another label."""
    return (
        base64.urlsafe_b64encode(hmac.digest(secret.encode(), label.encode(), "sha256")).rstrip(b"=").decode()
    )


def _refused(why: str) -> UnauthenticatedError:
    return UnauthenticatedError(why, remedy="Start again at /login.")


def _unreachable(issuer: str, error: Exception) -> UnavailableError:
    log.error("the OIDC provider %s: %s: %s", issuer, type(error).__name__, error)
    return UnavailableError(
        "the sign-in provider does not answer as it should",
        remedy="Try again in a moment, or tell an administrator.",
    )

"""The OIDC client against a provider process: what it accepts, and above all what it does not."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey
from pydantic import ValidationError

from powermean.contracts.signin import OidcGrant
from server.errors import UnauthenticatedError, UnavailableError
from server.identity.oidc import Provider, granted
from server.settings import Settings
from tests.support.oidc_provider import OidcProvider, oidc_provider

pytestmark = pytest.mark.slow
BACK = "http://127.0.0.1:8700/login/oidc/callback"


@pytest.fixture(scope="module")
def idp() -> Iterator[OidcProvider]:
    with oidc_provider() as running:
        running.add("ada", name="Ada", email="Ada@Example.org", email_verified=True, groups=["ml"])
        yield running


@pytest.fixture
def ours(idp: OidcProvider) -> Iterator[Provider]:
    yield Provider(idp.issuer, "powermean", "secret", "openid profile email")
    idp.tell_the_truth()


def answer(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


def come_back(idp: OidcProvider, provider: Provider, **changes: str):
    """A sign-in from start to end, with something else in the last step."""
    url, secret = provider.start(BACK)
    given = answer(idp.agree(url, "ada")) | {"secret": secret} | changes
    return provider.finish(BACK, given["code"], given["state"], given["secret"])


def raw_id_token(idp: OidcProvider, client_id: str) -> str:
    """A genuine token of the provider, for whichever client."""
    other = Provider(idp.issuer, client_id, "secret", "openid")
    url, _ = other.start(BACK)
    verifier = "v" * 43
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=")
    asked = httpx.URL(url).copy_set_param("code_challenge", challenge.decode())
    code = answer(idp.agree(str(asked), "ada"))["code"]
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": BACK, "code_verifier": verifier}
    got = httpx.post(f"{idp.issuer}/oauth2/token", data=form, auth=(client_id, "secret"))
    return str(got.json()["id_token"])


def claims_for(idp: OidcProvider, nonce: str, **changes: object) -> dict[str, object]:
    now = int(time.time())
    usual = {"iss": idp.issuer, "sub": "ada", "aud": "powermean", "iat": now, "exp": now + 60, "nonce": nonce}
    return usual | changes


def test_a_person_comes_back_with_their_claims(idp: OidcProvider, ours: Provider) -> None:
    found = come_back(idp, ours)
    assert (found.issuer, found.subject, found.name) == (idp.issuer, "ada", "Ada")
    assert found.email == "Ada@Example.org"
    assert found.claims["groups"] == ["ml"]


def test_a_sign_in_begins_at_one_server_and_ends_at_another(idp: OidcProvider, ours: Provider) -> None:
    url, secret = ours.start(BACK)
    given = answer(idp.agree(url, "ada"))
    other = Provider(idp.issuer, "powermean", "secret", "openid profile email")
    assert other.finish(BACK, given["code"], given["state"], secret).subject == "ada"


def test_an_address_that_the_provider_has_not_verified_is_left_out(idp: OidcProvider, ours: Provider) -> None:
    idp.add("eve", email="ada@example.org")
    url, secret = ours.start(BACK)
    given = answer(idp.agree(url, "eve"))
    assert ours.finish(BACK, given["code"], given["state"], secret).email is None


def test_the_request_says_nothing_that_would_help_whoever_reads_it(ours: Provider) -> None:
    url, secret = ours.start(BACK)
    asked = answer(url)
    assert asked["code_challenge_method"] == "S256"
    assert asked["redirect_uri"] == BACK
    assert secret not in url
    assert len({asked["state"], asked["nonce"], asked["code_challenge"]}) == 3
    again, _ = ours.start(BACK)
    assert answer(again)["state"] != asked["state"]


def test_a_code_works_once(idp: OidcProvider, ours: Provider) -> None:
    url, secret = ours.start(BACK)
    given = answer(idp.agree(url, "ada"))
    assert ours.finish(BACK, given["code"], given["state"], secret).subject == "ada"
    with pytest.raises(UnauthenticatedError):
        ours.finish(BACK, given["code"], given["state"], secret)


def test_another_browsers_answer_is_refused_before_its_code_is_used(
    idp: OidcProvider, ours: Provider
) -> None:
    """An attacker's own answer in the victim's browser would sign the victim in as the attacker."""
    url, attackers = ours.start(BACK)
    given = answer(idp.agree(url, "ada"))
    _, victims = ours.start(BACK)
    with pytest.raises(UnauthenticatedError, match="another browser"):
        ours.finish(BACK, given["code"], given["state"], victims)
    for state in ("", "x", given["state"][:-1], "é" * 43):
        with pytest.raises(UnauthenticatedError, match="another browser"):
            ours.finish(BACK, given["code"], state, attackers)
    assert ours.finish(BACK, given["code"], given["state"], attackers).subject == "ada"


def test_a_stolen_code_is_worth_nothing_without_the_verifier(idp: OidcProvider, ours: Provider) -> None:
    """The thief starts a sign-in of his own and puts the victim's code into it."""
    victims, _ = ours.start(BACK)
    stolen = answer(idp.agree(victims, "ada"))["code"]
    with pytest.raises(UnauthenticatedError, match="not valid"):
        come_back(idp, ours, code=stolen)


@pytest.mark.parametrize("code", ["", "wrong", "../x", "é"])
def test_codes_that_the_provider_does_not_know(idp: OidcProvider, ours: Provider, code: str) -> None:
    with pytest.raises(UnauthenticatedError):
        come_back(idp, ours, code=code)


def test_a_token_for_another_client_is_refused(idp: OidcProvider, ours: Provider) -> None:
    idp.lie(id_token=raw_id_token(idp, "another-service"))
    with pytest.raises(UnauthenticatedError):
        come_back(idp, ours)


def test_a_token_of_an_earlier_sign_in_is_refused(idp: OidcProvider, ours: Provider) -> None:
    idp.lie(id_token=raw_id_token(idp, "powermean"))  # genuine, ours, but with another nonce
    with pytest.raises(UnauthenticatedError):
        come_back(idp, ours)


@pytest.mark.parametrize(
    "how", ["unsigned", "by our secret", "by the public key", "by another key", "no token"]
)
def test_forged_tokens(idp: OidcProvider, ours: Provider, how: str) -> None:
    url, secret = ours.start(BACK)
    given = answer(idp.agree(url, "ada"))
    claims = claims_for(idp, answer(url)["nonce"])
    public = httpx.get(f"{idp.issuer}/jwks").json()["keys"][0]
    kid = {"kid": public["kid"]} if "kid" in public else {}
    if how == "unsigned":
        parts = [{"alg": "none", **kid}, claims]
        encoded = [
            base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts
        ]
        forged = ".".join([*encoded, ""])
    elif how == "by another key":
        forged = jwt.encode({"alg": "RS256", **kid}, claims, RSAKey.generate_key(2048))
    elif how == "no token":
        forged = None
    else:
        secret_key = "secret" if how == "by our secret" else RSAKey.import_key(public).as_pem().decode()
        forged = hs256({"alg": "HS256", **kid}, claims, secret_key)
    idp.lie(id_token=forged)
    with pytest.raises(UnauthenticatedError, match="not valid"):
        ours.finish(BACK, given["code"], given["state"], secret)


def hs256(header: dict[str, object], claims: dict[str, object], secret: str) -> str:
    """joserfc refuses to sign with a public key, as an attacker would."""

    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    text = f"{part(json.dumps(header).encode())}.{part(json.dumps(claims).encode())}"
    return f"{text}.{part(hmac.digest(secret.encode(), text.encode(), hashlib.sha256))}"


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": 1},
        {"iss": "https://evil.example"},
        {"aud": ["powermean-2"]},
        {"aud": ["powermean", "other"], "azp": "other"},
        {"nonce": "other"},
        {"sub": ""},
        {"sub": 7},
        {"iat": 4_000_000_000},
    ],
    ids=str,
)
def test_tokens_that_the_provider_signs_and_that_are_not_for_this(
    idp: OidcProvider, ours: Provider, changes: dict[str, object]
) -> None:
    url, secret = ours.start(BACK)
    given = answer(idp.agree(url, "ada"))
    idp.lie(claims=claims_for(idp, answer(url)["nonce"]) | changes)
    with pytest.raises(UnauthenticatedError, match="not valid"):
        ours.finish(BACK, given["code"], given["state"], secret)


def test_a_provider_that_is_not_there_is_said_to_be_so(idp: OidcProvider) -> None:
    with pytest.raises(UnavailableError):
        Provider("http://127.0.0.1:9", "powermean", None, "openid").start(BACK)
    with pytest.raises(UnavailableError):  # the document is of another issuer
        Provider(idp.issuer.replace("localhost", "127.0.0.1") + "/", "powermean", None, "openid").start(BACK)


TABLE = (
    OidcGrant(value="ml", project="vision", role="member"),
    OidcGrant(value="ml-leads", project="vision", role="maintainer"),
    OidcGrant(claim="realm_access.roles", value="reader", project="text", role="viewer"),
    OidcGrant(claim="https://example.org/team", value="*", project="all", role="viewer"),
    OidcGrant(value="admins", cluster_role="admin"),
    OidcGrant(value="audit", cluster_role="auditor"),
)


@pytest.mark.parametrize(
    ("claims", "roles", "cluster_role"),
    [
        ({}, {}, None),
        ({"groups": ["ml"]}, {"vision": "member"}, None),
        ({"groups": ["ml-leads", "ml"]}, {"vision": "maintainer"}, None),
        ({"groups": "ml"}, {"vision": "member"}, None),
        ({"realm_access": {"roles": ["reader"]}}, {"text": "viewer"}, None),
        ({"https://example.org/team": "any"}, {"all": "viewer"}, None),
        ({"groups": ["audit", "admins"]}, {}, "admin"),
        ({"groups": ["ML", " ml", "ml-"]}, {}, None),
        ({"groups": {"ml": True}}, {}, None),
        ({"groups": [None, 3, ["ml"]], "realm_access": "reader"}, {}, None),
    ],
    ids=str,
)
def test_the_table_of_grants(
    claims: dict[str, object], roles: dict[str, str], cluster_role: str | None
) -> None:
    found = granted(TABLE, claims)
    assert (found.roles, found.cluster_role) == (roles, cluster_role)
    assert found.projects == {"vision", "text", "all"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"oidc_issuer": "http://login.example.org"},
        {"oidc_issuer": "login.example.org"},
        {"oidc_client_id": None},
        {"oidc_grants": '[{"value": "ml"}]'},
        {"oidc_grants": '[{"value": "ml", "project": "vision"}]'},
        {"oidc_grants": '[{"value": "ml", "project": "Vision", "role": "member"}]'},
        {"oidc_grants": '[{"value": "ml", "project": "v", "role": "member", "cluster_role": "admin"}]'},
        {"oidc_grants": '[{"value": "ml", "project": "v", "role": "admin"}]'},
        {"oidc_grants": '{"value": "ml"}'},
        {"oidc_grants": "ml=vision"},
    ],
    ids=str,
)
def test_settings_that_would_let_in_whom_nobody_meant_are_refused(wrong: dict[str, object]) -> None:
    right = {"oidc_issuer": "https://login.example.org", "oidc_client_id": "powermean", "oidc_grants": ""}
    assert Settings(**right).oidc_grants == ()
    with pytest.raises(ValidationError):
        Settings(**right | wrong)

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest

from powermean import tokens
from powermean.tokens import (
    ALL_VERBS,
    PRIVATE_KEY_NAME,
    PUBLIC_KEY_NAME,
    KeyPair,
    TokenExpiredError,
    TokenInvalidError,
    TokenKeyError,
    Verb,
    ensure_key_pair,
    sign_attempt_token,
    verify_attempt_token,
)

JOB = "job-abcdefghijklmnop"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return ensure_key_pair(tmp_path_factory.mktemp("secrets"))


def test_a_signed_token_says_what_was_signed(pair: KeyPair) -> None:
    token = sign_attempt_token(pair.private_pem, JOB, 3, [Verb.GENERATE], 60)
    claims = verify_attempt_token(token, pair.public_pem)
    assert (claims.job_id, claims.attempt, claims.attempt_id) == (JOB, 3, f"{JOB}.3")
    assert claims.allows(Verb.GENERATE)
    assert not claims.allows(Verb.PUBLISH)


def test_all_verbs_by_default(pair: KeyPair) -> None:
    claims = verify_attempt_token(sign_attempt_token(pair.private_pem, JOB, 1), pair.public_pem)
    assert claims.verbs == frozenset(ALL_VERBS)


def test_another_servers_signature_is_refused(pair: KeyPair, tmp_path: Path) -> None:
    other = ensure_key_pair(tmp_path)
    with pytest.raises(TokenInvalidError):
        verify_attempt_token(sign_attempt_token(other.private_pem, JOB, 1), pair.public_pem)


def test_an_old_token_is_refused_as_expired(pair: KeyPair) -> None:
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    token = sign_attempt_token(pair.private_pem, JOB, 1, lifetime_s=900, now=hour_ago)
    assert verify_attempt_token(token, pair.public_pem, even_expired=True).job_id == JOB
    with pytest.raises(TokenExpiredError):  # also if it is known from before
        verify_attempt_token(token, pair.public_pem)


def test_a_token_that_was_valid_expires(pair: KeyPair, monkeypatch: pytest.MonkeyPatch) -> None:
    token = sign_attempt_token(pair.private_pem, JOB, 1, lifetime_s=60)
    verify_attempt_token(token, pair.public_pem)
    monkeypatch.setattr(tokens, "CLOCK_SKEW_S", -61.0)  # as if so much time had passed
    with pytest.raises(TokenExpiredError):
        verify_attempt_token(token, pair.public_pem)


@pytest.mark.parametrize("forged", ["", "x", "a.b.c", jwt.encode({"sub": JOB}, "k" * 32, algorithm="HS256")])
def test_what_is_no_token_is_refused(pair: KeyPair, forged: str) -> None:
    with pytest.raises(TokenInvalidError):
        verify_attempt_token(forged, pair.public_pem)


def test_the_public_key_is_no_hmac_secret(pair: KeyPair) -> None:
    """The classic confusion: a token signed by HMAC with the public key, which everybody has."""
    header, payload, _ = sign_attempt_token(pair.private_pem, JOB, 1).split(".")
    unsigned = jwt.utils.base64url_encode(b'{"alg":"none","typ":"JWT"}').decode()
    with pytest.raises(TokenInvalidError):
        verify_attempt_token(f"{unsigned}.{payload}.", pair.public_pem)
    assert header != unsigned


@pytest.mark.parametrize(
    "change", [{"attempt": 0}, {"attempt": True}, {"attempt": "1"}, {"verbs": "report"}, {"exp": "9e9"}]
)
def test_claims_of_the_wrong_shape_are_refused(pair: KeyPair, change: dict[str, object]) -> None:
    now = datetime.now(UTC)
    claims = {"iss": "powermean", "aud": "powermean-attempt", "sub": JOB, "attempt": 1, "verbs": []}
    claims |= {"iat": now, "exp": now + timedelta(seconds=60)} | change
    with pytest.raises(TokenInvalidError):
        verify_attempt_token(jwt.encode(claims, pair.private_pem, algorithm="EdDSA"), pair.public_pem)


def test_unusable_keys_have_their_own_error(pair: KeyPair) -> None:
    token = sign_attempt_token(pair.private_pem, JOB, 1)
    with pytest.raises(TokenKeyError):
        verify_attempt_token(token, "no key")
    with pytest.raises(TokenKeyError):
        sign_attempt_token("no key", JOB, 1)


def test_the_pair_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    first = ensure_key_pair(folder)
    assert ensure_key_pair(folder) == first
    assert stat.S_IMODE(os.stat(folder / PRIVATE_KEY_NAME).st_mode) == 0o600
    assert {path.name for path in folder.iterdir()} == {PRIVATE_KEY_NAME, PUBLIC_KEY_NAME}


def test_nodes_get_a_copy_of_the_public_key_that_stays_in_step(tmp_path: Path) -> None:
    copy = tmp_path / "public" / "attempt_token.pub"
    copy.parent.mkdir()
    copy.write_text("of an earlier key")
    pair = ensure_key_pair(tmp_path / "secrets", copy)
    assert copy.read_text() == pair.public_pem
    assert [path.name for path in copy.parent.iterdir()] == ["attempt_token.pub"]


def test_servers_that_start_together_agree_on_one_pair(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        pairs = list(pool.map(ensure_key_pair, [tmp_path] * 8))
    assert len(set(pairs)) == 1
    assert (tmp_path / PUBLIC_KEY_NAME).read_text() == pairs[0].public_pem


def test_a_damaged_private_key_is_named(tmp_path: Path) -> None:
    (tmp_path / PRIVATE_KEY_NAME).write_text("garbage")
    with pytest.raises(TokenKeyError, match=PRIVATE_KEY_NAME):
        ensure_key_pair(tmp_path)

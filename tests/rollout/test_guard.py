"""Whose token the service takes, and for how long."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from powermean.tokens import KeyPair, ensure_key_pair, sign_attempt_token
from rollout.guard import Guard


@pytest.fixture
def keys(tmp_path: Path) -> KeyPair:
    return ensure_key_pair(tmp_path)


def status(keys: KeyPair, token: str, *, even_expired: bool) -> int:
    answers = PlainTextResponse("here")
    guard = Guard(answers, frozenset({"testserver"}), keys.public_pem, 100, even_expired=even_expired)
    return TestClient(guard).post("/v1/generate", headers={"Authorization": f"Bearer {token}"}).status_code


@pytest.mark.parametrize(("even_expired", "expected"), [(True, 200), (False, 401)])
def test_an_engine_of_one_attempt_takes_its_token_through_a_long_partition(
    keys: KeyPair, even_expired: bool, expected: int
):
    old = sign_attempt_token(keys.private_pem, "job-a", 1, now=datetime.now(UTC) - timedelta(hours=1))
    assert status(keys, old, even_expired=even_expired) == expected


def test_no_engine_takes_a_token_that_another_key_signed(keys: KeyPair, tmp_path: Path):
    other = ensure_key_pair(tmp_path / "other")
    assert status(keys, sign_attempt_token(other.private_pem, "job-a", 1), even_expired=True) == 401

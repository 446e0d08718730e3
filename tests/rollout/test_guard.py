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


def old(keys: KeyPair, job: str = "job-a") -> str:
    return sign_attempt_token(keys.private_pem, job, 1, now=datetime.now(UTC) - timedelta(hours=1))


def status(keys: KeyPair, token: str, *, current: bool, path: str = "/v1/generate") -> int:
    answers = PlainTextResponse("here")
    guard = Guard(answers, frozenset({"testserver"}), keys.public_pem, 100, lambda _claims: current)
    return TestClient(guard).post(path, headers={"Authorization": f"Bearer {token}"}).status_code


@pytest.mark.parametrize(("current", "expected"), [(True, 200), (False, 401)])
def test_a_current_attempts_token_is_taken_through_a_long_partition(
    keys: KeyPair, current: bool, expected: int
):
    assert status(keys, old(keys), current=current) == expected
    assert status(keys, old(keys), current=current, path="/health") == 200
    assert status(keys, sign_attempt_token(keys.private_pem, "job-a", 1), current=False) == 200


@pytest.mark.parametrize("path", ["/v1/generate", "/health"])
def test_no_engine_takes_a_token_that_another_key_signed(keys: KeyPair, tmp_path: Path, path: str):
    other = ensure_key_pair(tmp_path / "other")
    fresh = sign_attempt_token(other.private_pem, "job-a", 1)
    assert [status(keys, token, current=True, path=path) for token in (old(other), fresh)] == [401, 401]
